// Denoise a signal block by block, as `frcrn_accel/pipeline.py` does.

import { HighBand } from "./high-band.js";
import { measureLevel } from "./level.js";
import { Resampler, joined } from "./resample.js";
import { planWindows, weightsOf } from "./windows.js";

export const MODEL_RATE_HZ = 16_000;
export const HOP_SAMPLES = 320;
const FRAME_SAMPLES = 640;
const LOUDEST_FRAME = 10 ** (-12 / 10);
const MARGIN = FRAME_SAMPLES - HOP_SAMPLES; // silence around the signal, see `_enhance` of the library

/** The audio cannot be denoised. */
export class AudioProblem extends Error {}

/**
 * Denoise one channel.
 *
 * @param {import("./source.js").Source} source
 * @param {number} channel
 * @param {object} model
 * @param {(audio: Float32Array) => Promise<Float32Array>} model.run Denoises a window at the model's rate.
 * @param {object} options
 * @param {number} options.dryShare Share of the input in the result, as amplitude.
 * @param {"follow"|"drop"} options.highBand What becomes of the band above the model's.
 * @param {(share: number) => void} onProgress
 * @returns {AsyncIterable<Float32Array>} Blocks of the result, which has the length of the source.
 */
export async function* denoiseChannel(source, channel, model, { dryShare, highBand }, onProgress) {
  const level = await measureLevel(() => modelRate(source, channel));
  if (level.samples === 0) return;
  const result = source.rateHz > MODEL_RATE_HZ && highBand === "follow" ? withHighBand : sourceRate;
  const wet = fitted(result(source, channel, level, model, onProgress), source.samples);
  yield* dryShare > 0 ? mixed(wet, source.blocks(channel), dryShare) : wet;
}

async function* modelRate(source, channel) {
  const resampler = new Resampler(source.rateHz, MODEL_RATE_HZ);
  let left = Math.ceil((source.samples * MODEL_RATE_HZ) / source.rateHz);
  for await (const block of source.blocks(channel)) {
    if (!block.every(Number.isFinite)) throw new AudioProblem("The audio contains NaN or infinity.");
    resampler.write(block);
    const out = resampler.read(Math.min(left, resampler.ready));
    left -= out.length;
    yield out;
  }
  resampler.finish();
  yield resampler.read(Math.min(left, resampler.ready));
}

async function* sourceRate(source, channel, level, model, onProgress) {
  const resampler = new Resampler(MODEL_RATE_HZ, source.rateHz);
  for await (const block of enhance(modelRate(source, channel), level, model, onProgress)) {
    resampler.write(block);
    yield resampler.read();
  }
  resampler.finish();
  yield resampler.read();
}

/** The same, and the band above the model's, which is what the signal loses on the way to the model's rate and back. */
async function* withHighBand(source, channel, level, model, onProgress) {
  const highBand = new HighBand(source.rateHz);
  const [wetUp, dryUp] = [new Resampler(MODEL_RATE_HZ, source.rateHz), new Resampler(MODEL_RATE_HZ, source.rateHz)];
  const signal = new Held(source.blocks(channel));
  const [dry, low] = [new Held(), new Held()];
  const scaled = async () => {
    low.append(wetUp.read());
    const back = dryUp.read();
    const band = await signal.take(back.length);
    highBand.write(band.map((value, index) => value - back[index]));
    return added(highBand.read());
  };
  const added = async (high) => {
    const below = await low.take(high.length);
    return below.map((value, index) => value + high[index]);
  };
  for await (const wet of enhance(dry.kept(modelRate(source, channel)), level, model, onProgress)) {
    const input = await dry.take(wet.length);
    highBand.writeModel(input, wet);
    wetUp.write(wet);
    dryUp.write(input);
    yield await scaled();
  }
  wetUp.finish();
  dryUp.finish();
  yield await scaled();
  yield await added(highBand.finish());
}

async function* fitted(blocks, samples) {
  let left = samples;
  for await (const block of blocks) {
    yield block.subarray(0, left);
    left -= Math.min(left, block.length);
  }
}

/** The part of a signal that was not taken yet. */
class Held {
  #blocks;
  #held = new Float32Array(0);

  /** @param {AsyncIterable<Float32Array>} blocks Where `take` gets more from. */
  constructor(blocks = []) {
    this.#blocks = (blocks[Symbol.asyncIterator] ?? blocks[Symbol.iterator]).call(blocks);
  }

  append(block) {
    this.#held = joined(this.#held, block);
  }

  /** Pass blocks on, and append each. */
  async *kept(blocks) {
    for await (const block of blocks) {
      this.append(block);
      yield block;
    }
  }

  /** Remove and return the next samples, fewer at the end of the signal. */
  async take(samples) {
    while (this.#held.length < samples) {
      const { value, done } = await this.#blocks.next();
      if (done) break;
      this.append(value);
    }
    const out = this.#held.subarray(0, samples);
    this.#held = this.#held.subarray(samples);
    return out;
  }
}

async function* enhance(blocks, { samples, gain, offset }, model, onProgress) {
  const padded = Math.ceil((samples + 2 * MARGIN) / HOP_SAMPLES) * HOP_SAMPLES;
  const plan = planWindows(padded, MODEL_RATE_HZ, HOP_SAMPLES);
  const feed = new Feed(blocks, offset);
  let sum = new Float32Array(0); // of the windows so far, from `position` on
  let position = 0;
  for (const [index, window] of plan.entries()) {
    const audio = await feed.read(window.start, window.stop);
    for (let at = 0; at < audio.length; at++) audio[at] *= gain;
    const headroom = headroomOf(audio);
    let denoised = await model.run(headroom ? audio.map((value, at) => value * headroom[at]) : audio);
    if (headroom) denoised = denoised.map((value, at) => value / headroom[at]);
    if (!denoised.every(Number.isFinite)) throw new AudioProblem("The model returned NaN or infinity.");
    const weights = weightsOf(window);
    // The window's weights are zero before `position`, where its fade-in begins.
    const grown = new Float32Array(window.stop - position);
    for (let at = 0; at < grown.length; at++) {
      const inside = at + position - window.start;
      grown[at] = (denoised[inside] / gain) * weights[inside];
    }
    for (let at = 0; at < sum.length; at++) grown[at] += sum[at];
    const end = index + 1 < plan.length ? plan[index + 1].fadeIn[0] : padded;
    onProgress((index + 1) / plan.length);
    yield grown.subarray(Math.max(0, MARGIN - position), Math.max(0, Math.min(end, MARGIN + samples) - position));
    sum = grown.subarray(end - position);
    position = end;
  }
}

/** Return the gain that brings events down to a level that the model knows, for each sample; null if there are none. */
function headroomOf(audio) {
  const powers = new Float64Array(audio.length / HOP_SAMPLES);
  audio.forEach((value, at) => (powers[Math.floor(at / HOP_SAMPLES)] += value ** 2 / HOP_SAMPLES));
  if (powers.every((power) => power <= LOUDEST_FRAME)) return null;
  const gainsDb = powers.map((power) => Math.min(0, 10 * Math.log10(LOUDEST_FRAME / power)));
  const at = (frame) => gainsDb[Math.min(gainsDb.length - 1, Math.max(0, frame))];
  const least = gainsDb.map((_, frame) => Math.min(at(frame - 1), at(frame), at(frame + 1))); // it may begin late in a frame
  return Float32Array.from(audio, (_, sample) => {
    const place = Math.min(least.length - 1, Math.max(0, (sample - (HOP_SAMPLES - 1) / 2) / HOP_SAMPLES));
    const frame = Math.floor(place);
    const next = least[Math.min(least.length - 1, frame + 1)];
    return 10 ** ((least[frame] + (next - least[frame]) * (place - frame)) / 20);
  });
}

/** Reads windows from blocks, and keeps only what is needed from the last window's start. */
class Feed {
  #blocks;
  #offset;
  #held = new Float32Array(MARGIN);
  #start = 0;

  constructor(blocks, offset) {
    this.#blocks = blocks[Symbol.asyncIterator]();
    this.#offset = offset;
  }

  /** Return samples `start` to `stop`, with zeros after the end of the signal. `start` must not decrease. */
  async read(start, stop) {
    const pieces = [this.#held.subarray(start - this.#start)];
    let length = pieces[0].length;
    while (length < stop - start) {
      const { value, done } = await this.#blocks.next();
      const piece = done ? new Float32Array(stop - start - length) : value.map((sample) => sample - this.#offset);
      pieces.push(piece);
      length += piece.length;
    }
    this.#held = new Float32Array(length);
    let at = 0;
    for (const piece of pieces) {
      this.#held.set(piece, at);
      at += piece.length;
    }
    this.#start = start;
    return this.#held.slice(0, stop - start);
  }
}

/** Mix two signals of one length; `dryShare` is the share of the second, as amplitude. */
export async function* mixed(wet, dryBlocks, dryShare) {
  const dry = new Held(dryBlocks);
  for await (const block of wet) {
    const before = await dry.take(block.length);
    yield block.map((value, index) => value * (1 - dryShare) + before[index] * dryShare);
  }
}
