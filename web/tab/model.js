// Load onnxruntime-web and the models. Both are stored compressed, so that no host has to compress them.

import * as ort from "../ort/ort.wasm.min.mjs";

const MAX_THREADS = 4;

const site = new URL("../", import.meta.url);
let runtime = null;

/**
 * Load a model.
 *
 * @param {string} name
 * @param {object} options
 * @param {number} options.threads
 * @param {(share: number) => void} options.onProgress Share of the download.
 * @returns {Promise<ort.InferenceSession>}
 */
export async function loadModel(name, { threads, onProgress = () => {} }) {
  const shares = [0, 0];
  const part = (index) => (share) => {
    shares[index] = share;
    onProgress((shares[0] + shares[1]) / 2);
  };
  runtime ??= fetchUnpacked("ort/ort-wasm-simd-threaded.wasm.gz", part(0));
  const [binary, model] = await Promise.all([runtime, fetchUnpacked(`models/${name}.onnx.gz`, part(1))]);
  ort.env.wasm.wasmBinary = binary;
  ort.env.wasm.wasmPaths = { mjs: new URL("ort/ort-wasm-simd-threaded.mjs", site).href };
  ort.env.wasm.numThreads = threads;
  return ort.InferenceSession.create(new Uint8Array(model), { executionProviders: ["wasm"] });
}

/** Return the threads that this page may use: more than one only where it is isolated from other sites. */
export const possibleThreads = () =>
  globalThis.crossOriginIsolated ? Math.min(MAX_THREADS, navigator.hardwareConcurrency || 1) : 1;

/** Make a tensor of 32-bit floats. */
export const tensor = (data, shape) => new ort.Tensor("float32", data, shape);

/** Get what the build wrote about the models. */
export async function modelFacts() {
  const response = await fetch(new URL("models/models.json", site));
  if (!response.ok) throw new Error(`models.json: status ${response.status}`);
  return response.json();
}

async function fetchUnpacked(path, onProgress) {
  const response = await fetch(new URL(path, site));
  if (!response.ok) throw new Error(`${path}: status ${response.status}`);
  const total = Number(response.headers.get("Content-Length"));
  let received = 0;
  const counted = response.body.pipeThrough(
    new TransformStream({
      transform(chunk, controller) {
        received += chunk.length;
        if (total) onProgress(Math.min(1, received / total));
        controller.enqueue(chunk);
      },
    }),
  );
  const packed = new Uint8Array(await new Response(counted).arrayBuffer());
  onProgress(1);
  if (packed[0] !== 0x1f || packed[1] !== 0x8b) return packed.buffer; // a host may unpack it on the way
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}
