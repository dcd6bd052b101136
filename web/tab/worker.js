// The thread that computes. It takes messages `{id, task, ...}` and answers `{id, progress}` any number of times, then
// `{id, result}` or `{id, error}`.

import { AudioProblem, MODEL_RATE_HZ, denoiseChannel, mixed } from "./denoise.js";
import { loadModel, modelFacts, possibleThreads, tensor } from "./model.js";
import { decodedSource, wavSource } from "./source.js";
import { Stream } from "./stream.js";
import { WavWriter } from "./wav-writer.js";

const FILE_MODEL = "frcrn-small";
const STREAM_MODEL = "frcrn-small-stream";
const MIN_RATE_HZ = 8_000;
const MAX_RATE_HZ = 192_000;

let fileSession = null;
const cancelled = new Set();
let stream = null;
let queue = Promise.resolve(); // the hops of a stream, one after the other

const TASKS = {
  /** Load the model for files. */
  async load(_, progress) {
    await load(progress);
    return { model: FILE_MODEL, threads: possibleThreads() };
  },

  /**
   * Denoise a WAV file or decoded channels; the result is null if the file has to be decoded first. With `full`, a
   * result without any of the input in it, only mix.
   */
  async denoise({ id, file, decoded, full, dryShare, highBand }, progress) {
    const source = decoded ? decodedSource(decoded.channels, decoded.rateHz) : await wavSource(file);
    if (source === null) return null;
    if (source.rateHz < MIN_RATE_HZ || source.rateHz > MAX_RATE_HZ) {
      throw new AudioProblem(`The sample rate must be ${MIN_RATE_HZ} to ${MAX_RATE_HZ} Hz, and is ${source.rateHz} Hz.`);
    }
    const began = performance.now();
    const wet = full ? await wavSource(full) : null;
    const session = dryShare < 1 && !wet ? await load() : null;
    const model = {
      async run(audio) {
        await new Promise((resolve) => setTimeout(resolve)); // lets a message in that cancels this
        if (cancelled.delete(id)) throw new Cancelled();
        const { denoised } = await session.run({ audio: tensor(audio, [1, audio.length]) });
        return denoised.data;
      },
    };
    const shares = new Array(source.channels).fill(0);
    const writer = new WavWriter(source.channels, source.rateHz, source.bits);
    const channels = shares.map((_, channel) => {
      if (dryShare === 1) return source.blocks(channel);
      if (wet) return mixed(wet.blocks(channel), source.blocks(channel), dryShare);
      return denoiseChannel(source, channel, model, { dryShare, highBand }, (share) => {
        shares[channel] = share;
        progress(shares.reduce((sum, value) => sum + value, 0) / shares.length);
      });
    });
    for (;;) {
      const blocks = [];
      for (const channel of channels) blocks.push(await channel.next());
      if (blocks[0].done) break;
      writer.write(blocks.map(({ value }) => value));
    }
    return {
      blob: writer.finish(),
      audioS: source.samples / source.rateHz,
      processingS: (performance.now() - began) / 1000,
      clipped: writer.clipped,
    };
  },

  /** Open a live stream. */
  async open({ rateHz, dryShare, highBand }, progress) {
    const facts = (await modelFacts())[STREAM_MODEL];
    const session = await loadModel(`${STREAM_MODEL}.step`, { threads: 1, onProgress: progress });
    await new Stream(session, facts, MODEL_RATE_HZ).process(new Float32Array(0.4 * MODEL_RATE_HZ)); // the first calls are slow
    stream = new Stream(session, facts, rateHz, highBand);
    stream.dryShare = dryShare;
    return { model: STREAM_MODEL, latency_samples: stream.latencySamples, latency_s: stream.latencySamples / rateHz };
  },

  /** Change the share of the input in the live stream. */
  async set({ dryShare }) {
    stream.dryShare = dryShare;
  },

  /** Process the next samples of the live stream. @param {{samples: Int16Array}} message */
  async process({ samples }) {
    const began = performance.now();
    const out = await stream.process(Float32Array.from(samples, (value) => value / 32768));
    const result = Int16Array.from(out, (value) => Math.max(-32768, Math.min(32767, Math.round(32768 * value))));
    return { samples: result, processingS: (performance.now() - began) / 1000 };
  },
};

async function load(onProgress) {
  fileSession ??= loadModel(FILE_MODEL, { threads: possibleThreads(), onProgress });
  try {
    return await fileSession;
  } catch (error) {
    fileSession = null;
    throw error;
  }
}

class Cancelled extends Error {}

self.onmessage = ({ data }) => {
  if (data.cancel) return cancelled.add(data.cancel);
  queue = queue.then(() => answer(data));
  return undefined;
};

async function answer(message) {
  const { id, task } = message;
  try {
    if (cancelled.delete(id)) throw new Cancelled();
    const result = await TASKS[task](message, (progress) => self.postMessage({ id, progress }));
    self.postMessage({ id, result });
  } catch (error) {
    const kind = error instanceof Cancelled ? "cancelled" : error instanceof AudioProblem ? "audio" : "other";
    self.postMessage({ id, error: { kind, message: error.message || String(error) } });
  }
}
