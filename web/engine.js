// The engine of the static site: this tab. It has the interface of `server.js`.

import { Problem } from "./problem.js";
import { sampleRateOf } from "./tab/sample-rate.js";

const HIGH_BAND = "follow"; // unless the user chooses otherwise
const RECENT_S = 3;

export const traits = {
  privacy: "WAV, FLAC, MP3, Ogg, Opus, MP4 and more. Nothing leaves this device: the file is denoised in this page.",
  connecting: "Loading the model",
  slow: "this device is too slow for live audio, or busy.",
  formats: ["wav"],
};

/** A worker, and the messages on their way to it. */
class Computer {
  #worker = new Worker(new URL("tab/worker.js", import.meta.url), { type: "module" });
  #waiting = new Map();
  #last = 0;

  constructor() {
    this.#worker.onmessage = ({ data: { id, progress, result, error } }) => {
      const waiting = this.#waiting.get(id);
      if (waiting === undefined) return;
      if (progress !== undefined) return waiting.onProgress(progress);
      this.#waiting.delete(id);
      if (error) waiting.reject(problemOf(error));
      else waiting.resolve(result);
    };
    this.#worker.onerror = (event) => {
      event.preventDefault();
      for (const { reject } of this.#waiting.values()) reject(unreachable());
      this.#waiting.clear();
    };
  }

  /** Run a task. */
  ask(task, values, { onProgress = () => {}, signal = null, transfer = [] } = {}) {
    const id = ++this.#last;
    return new Promise((resolve, reject) => {
      if (signal?.aborted) return reject(signal.reason);
      this.#waiting.set(id, { resolve, reject, onProgress });
      signal?.addEventListener("abort", () => {
        if (!this.#waiting.delete(id)) return;
        this.#worker.postMessage({ cancel: id });
        reject(signal.reason);
      });
      this.#worker.postMessage({ id, task, ...values }, transfer);
    });
  }

  stop() {
    this.#worker.terminate();
  }
}

const computer = new Computer();
let loadShare = 0;
let loaded = null;
let failure = null;

function load() {
  failure = null;
  loaded = computer.ask("load", {}, { onProgress: (share) => (loadShare = share) });
  loaded.then(keepForLater, (error) => (failure = error));
}

/** Have all files kept for use without a network, once the ones that are needed now are here. */
async function keepForLater() {
  await navigator.serviceWorker?.register(new URL("../service-worker.js", import.meta.url)).catch(console.warn);
}

load();

/** Get the reason why the tab cannot denoise yet; "" if it can. */
export async function notReady() {
  const isLoaded = await Promise.race([loaded.then(() => true), new Promise((resolve) => setTimeout(resolve, 100, false))]);
  return isLoaded ? "" : `Loading the model, ${Math.floor(100 * loadShare)} %`;
}

/** Get what there is to show of the models. */
export async function models() {
  const { model, threads } = await loaded;
  const backend = `this device, ${threads} thread${threads > 1 ? "s" : ""}`;
  return [{ name: model, backend, precision: "fp32", attenuation_limit_db: null, high_band: HIGH_BAND }];
}

/** Denoise a file; see `server.js`. */
export async function denoise(file, { limitDb, highBand = null, full = null, signal, onProgress }) {
  if (failure) load();
  const watch = setInterval(() => onProgress("loading", loadShare), 250);
  let described;
  try {
    [described] = await models();
  } finally {
    clearInterval(watch);
  }
  signal.throwIfAborted();
  onProgress("computing", 0);
  const values = { dryShare: dryShareOf(limitDb), highBand: highBand ?? HIGH_BAND, full: full?.blob };
  const options = { signal, onProgress: (share) => onProgress("computing", share) };
  let result = await computer.ask("denoise", { ...values, file }, options);
  if (result === null) {
    onProgress("decoding", null);
    const decoded = await decode(file);
    signal.throwIfAborted();
    const transfer = decoded.channels.map(({ buffer }) => buffer);
    result = await computer.ask("denoise", { ...values, decoded }, { ...options, transfer });
  }
  return { ...result, suffix: "wav", model: described.name, backend: described.backend };
}

async function decode(file) {
  const rateHz = await sampleRateOf(file);
  let audio;
  try {
    audio = await new OfflineAudioContext(1, 1, rateHz).decodeAudioData(await file.arrayBuffer());
  } catch {
    const remedy = "Convert it to WAV or FLAC first, or use frcrn-accel on the command line, which reads more formats.";
    throw new Problem("Not readable", `This browser cannot read ${file.name}. ${remedy}`);
  }
  const channels = Array.from({ length: audio.numberOfChannels }, (_, index) => audio.getChannelData(index).slice());
  return { channels, rateHz };
}

/** A live stream: 16-bit samples in, the same number out; see `server.js`. */
export class LiveStream {
  onSamples = () => {};
  onEnd = () => {};

  #computer = new Computer();
  #measured = { audio_s: 0, processing_s: 0 };
  #recent = { audioS: 0, processingS: 0 }; // of the last seconds
  #rateHz;
  #last = Promise.resolve();

  static async open(rateHz, limitDb, highBand) {
    const stream = new LiveStream();
    stream.#rateHz = rateHz;
    const options = { rateHz, dryShare: dryShareOf(limitDb), highBand: highBand ?? HIGH_BAND };
    const started = await stream.#computer.ask("open", options);
    return { stream, started: { ...started, sample_rate: rateHz, backend: "this device" } };
  }

  send(samples) {
    const answer = this.#computer.ask("process", { samples }, { transfer: [samples.buffer] });
    this.#last = answer.then(
      (result) => {
        const audioS = result.samples.length / this.#rateHz;
        this.#measured.audio_s += audioS;
        this.#measured.processing_s += result.processingS;
        const kept = Math.exp(-audioS / RECENT_S);
        this.#recent.audioS = kept * this.#recent.audioS + audioS;
        this.#recent.processingS = kept * this.#recent.processingS + result.processingS;
        this.onSamples(result.samples);
      },
      (error) => this.onEnd(error),
    );
  }

  get realTimeFactor() {
    return this.#recent.audioS ? this.#recent.processingS / this.#recent.audioS : null;
  }

  setLimit(limitDb) {
    this.#computer.ask("set", { dryShare: dryShareOf(limitDb) });
  }

  async finish() {
    await this.#last;
    this.#computer.stop();
    const { audio_s, processing_s } = this.#measured;
    return { ...this.#measured, real_time_factor: audio_s ? processing_s / audio_s : undefined };
  }

  abandon() {
    this.onEnd = () => {};
    this.#computer.stop();
  }
}

const dryShareOf = (limitDb) => (limitDb === null ? 0 : 10 ** (-limitDb / 20));

export const unreachable = () =>
  new Problem("Not loaded", "A part of this page could not be loaded. Are you online? Reload the page to try again.");

function problemOf({ kind, message }) {
  if (kind === "audio") return new Problem("Not denoised", message);
  if (/fetch|status \d/i.test(message)) return unreachable();
  const detail = /memory|allocat/i.test(message)
    ? "There is not enough memory for this. Close other tabs, or take a shorter file."
    : `The page failed: ${message}`;
  return new Problem("Failed", detail);
}
