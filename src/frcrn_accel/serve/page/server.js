// Requests to the server, and its errors.

import { Problem } from "./problem.js";
import { askForToken } from "./token.js";

const SUBPROTOCOL = "frcrn-accel.bearer";
const NO_LIMIT_DB = 1000; // overrides a server's default limit; no audible noise is left

let token = null; // kept until the page is closed

/** Texts and formats of the page with this engine. */
export const traits = {
  privacy: "WAV, FLAC, MP3, Ogg, Opus, MP4 and more. The file is sent to this server only, which does not keep it.",
  connecting: "Connecting to the server",
  slow: "the server or the connection is too slow for live audio.",
  formats: ["wav", "flac", "mp3", "ogg", "opus", ""], // "" is that of the file
};

/** Get the entries of `GET /v1/models`. With `mayAsk`, ask the user for a token if the server requires one. */
export function models({ mayAsk = true } = {}) {
  const ask = async () => {
    const response = await reach(() => fetch(address("v1/models"), { headers: headers() }));
    if (!response.ok) throw problemOf(response.status, await response.text());
    return (await response.json()).models;
  };
  return mayAsk ? withToken(ask) : ask();
}

/** Get the reason why the server accepts no requests now; "" if it does. */
export async function notReady() {
  const response = await reach(() => fetch(address("ready"), { cache: "no-store" }));
  return response.ok ? "" : problemOf(response.status, await response.text()).message;
}

/**
 * Denoise a file.
 *
 * @param {Blob} file
 * @param {object} options
 * @param {string} options.format Format of the result; "" for that of the file.
 * @param {number} options.limitDb Attenuation limit; Infinity for none.
 * @param {"follow"|"drop"|null} [options.highBand] What becomes of the band above 8 kHz; null for the engine's default.
 * @param {AbortSignal} options.signal Cancels the request.
 * @param {(stage: string, share: number|null) => void} options.onProgress Called with "sending", "computing" or
 *   "receiving" and the share of it that is done; null if that is not known.
 * @returns {Promise<Answer>}
 *
 * @typedef {object} Answer
 * @property {Blob} blob The denoised file.
 * @property {string} suffix Of its name.
 * @property {number} audioS Its length.
 * @property {number} processingS
 * @property {number} clipped Number of samples that were beyond full scale.
 * @property {string} warnings What was missing or damaged, and what the result cannot keep, a line each.
 * @property {string} model
 * @property {string} backend
 */
export function denoise(file, { format, limitDb, highBand = null, signal, onProgress }) {
  const target = address("v1/denoise");
  if (format) target.searchParams.set("format", format);
  target.searchParams.set("attenuation_limit_db", String(Math.min(limitDb, NO_LIMIT_DB)));
  if (highBand) target.searchParams.set("high_band", highBand);
  return withToken(() => post(target, file, signal, onProgress));
}

// Not with fetch, which has no upload progress.
function post(target, body, signal, onProgress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", target);
    request.responseType = "blob";
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.upload.onprogress = (event) => event.lengthComputable && onProgress("sending", event.loaded / event.total);
    request.upload.onload = () => onProgress("computing", null);
    request.onprogress = (event) => event.lengthComputable && onProgress("receiving", event.loaded / event.total);
    request.onload = async () => {
      const header = (name) => request.getResponseHeader(name);
      // A proxy may answer with a page of its own and status 200.
      if (request.status === 200 && header("X-Audio-Seconds") !== null) resolve(answerOf(request.response, header));
      else {
        const error = problemOf(request.status, await request.response.text());
        const wait = header("Retry-After");
        if (wait) error.message += ` (retry in ${wait} s)`;
        reject(error);
      }
    };
    request.onerror = () => reject(unreachable());
    request.onabort = () => reject(signal.reason);
    if (signal.aborted) return reject(signal.reason);
    signal.addEventListener("abort", () => request.abort(), { once: true });
    request.send(body);
  });
}

const answerOf = (blob, header) => ({
  blob,
  suffix: /filename="[^"]*\.(\w+)"/.exec(header("Content-Disposition"))[1],
  audioS: Number(header("X-Audio-Seconds")),
  processingS: Number(header("X-Processing-Seconds")),
  clipped: Number(header("X-Clipped-Samples")),
  warnings: decodeURIComponent(header("X-Warnings") ?? ""),
  model: decodeURIComponent(header("X-Model")),
  backend: decodeURIComponent(header("X-Backend")),
});

/** A live stream: 16-bit samples in, the same number out. */
export class LiveStream {
  /** Called with an `Int16Array` of denoised samples. */
  onSamples = () => {};
  /** Called once, with null or with the error. */
  onEnd = () => {};
  /** Processing time per second of audio of the last seconds; null because the server tells it at the end only. */
  realTimeFactor = null;

  #socket;
  #flushed = null;
  #problem = null;
  #hasEnded = false;

  /** Open a stream. @returns {Promise<{stream: LiveStream, started: object}>} once the server has started it. */
  static async open(sampleRate, limitDb, highBand) {
    await models(); // asks for a token if needed; a WebSocket cannot report that one is missing
    const stream = new LiveStream();
    const band = highBand ? { high_band: highBand } : {};
    const started = await stream.#start({ type: "start", sample_rate: sampleRate, ...limit(limitDb), ...band });
    return { stream, started };
  }

  send(samples) {
    if (this.#socket.readyState === WebSocket.OPEN) this.#socket.send(samples);
  }

  setLimit(limitDb) {
    this.send(JSON.stringify({ type: "set", ...limit(limitDb) }));
  }

  /** End the stream normally. @returns {Promise<object|null>} the server's measurements; null if the connection was lost. */
  finish() {
    if (this.#socket.readyState !== WebSocket.OPEN) return Promise.resolve(null);
    return new Promise((resolve) => {
      this.#flushed = resolve;
      this.#socket.send(JSON.stringify({ type: "flush" }));
    });
  }

  /** Close the connection without waiting for the rest. */
  abandon() {
    this.onEnd = () => {};
    this.#socket.close();
  }

  #start(message) {
    const target = address("v1/stream");
    target.protocol = target.protocol.replace("http", "ws");
    this.#socket = new WebSocket(target, token === null ? [] : [SUBPROTOCOL, base64url(token)]);
    this.#socket.binaryType = "arraybuffer";
    this.#socket.onopen = () => this.#socket.send(JSON.stringify(message));
    return new Promise((resolve, reject) => {
      this.#socket.onmessage = ({ data }) => {
        if (typeof data !== "string") return this.onSamples(new Int16Array(data));
        const answer = JSON.parse(data);
        if (answer.type === "started") resolve(answer);
        else if (answer.type === "error") this.#problem = new Problem(answer.title, sentence(answer.detail));
        else if (answer.type === "flushed") this.#flushed?.(answer);
      };
      this.#socket.onclose = ({ code }) => {
        const isInOrder = code === 1000 && this.#problem === null;
        const problem =
          this.#problem ?? new Problem("Connection lost", `The connection to the server was lost (${code}). Start again.`);
        reject(problem);
        this.#flushed?.(null);
        if (!this.#hasEnded) this.onEnd(isInOrder ? null : problem);
        this.#hasEnded = true;
      };
    });
  }
}

const address = (path) => new URL(`../${path}`, import.meta.url);
const headers = () => (token === null ? {} : { Authorization: `Bearer ${token}` });
const limit = (limitDb) => ({ attenuation_limit_db: Math.min(limitDb, NO_LIMIT_DB) });
export const unreachable = () =>
  new Problem("No answer", "The server does not answer. Is it running, and are you online?");

function base64url(text) {
  const bytes = new TextEncoder().encode(text);
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

async function withToken(ask) {
  for (;;) {
    try {
      return await ask();
    } catch (error) {
      if (error.status !== 401) throw error;
      const given = await askForToken(token === null ? "" : "The server rejected this token.");
      if (given === null) throw error;
      token = given;
    }
  }
}

async function reach(ask) {
  try {
    return await ask();
  } catch {
    throw unreachable();
  }
}

/** Make a problem from a problem document (RFC 9457), or from whatever a proxy sent instead. */
function problemOf(status, text) {
  try {
    const { title, detail } = JSON.parse(text);
    if (title) return new Problem(title, sentence(detail || title), status);
  } catch {
    // Not JSON.
  }
  return new Problem("Error", `The server answered with status ${status}.`, status);
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
