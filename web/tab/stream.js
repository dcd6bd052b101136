// Denoise a live signal, as `frcrn_accel/streaming/` does.

import { HOP_SAMPLES, MODEL_RATE_HZ } from "./denoise.js";
import { HighBand } from "./high-band.js";
import { RunningLevel } from "./level.js";
import { tensor } from "./model.js";
import { RunningOffset } from "./offset.js";
import { Resampler, joined, reachSamples } from "./resample.js";

const STEP_HOPS = 2; // a call for two hops takes little longer than for one; the second U-Net begins after two
const STEP_SAMPLES = STEP_HOPS * HOP_SAMPLES;
const HORIZON_S = 20;
const START_S = 1; // audio that the means of typical noisy speech count for
const FRAMES_PER_S = MODEL_RATE_HZ / HOP_SAMPLES;

/** Runs a model step by step, with its state. */
class Steps {
  #session;
  #shapes;
  #states;
  #means; // names of the running means among the states
  #secondBegins; // frame at which the second U-Net begins, and the names of its states
  #frames = 0;

  constructor(session, facts) {
    this.#session = session;
    const [, , ...states] = session.inputMetadata;
    this.#shapes = states.map(({ name, shape }) => [name, [1, ...shape.slice(1)]]);
    this.lag = session.inputMetadata[1].shape[1] - 1;
    const isMean = (name) => name.includes("se_layers");
    this.#means = this.#shapes.filter(([name]) => isMean(name)).map(([name]) => name);
    const unet = (name) => name.split("/")[1].split(".")[0];
    const first = this.#shapes.find(([name]) => unet(name).startsWith("unet"))[0];
    const later = this.#shapes.filter(([name]) => unet(name).startsWith("unet") && unet(name) !== unet(first));
    this.#secondBegins = {
      frame: this.lag / facts.unets,
      names: later.map(([name]) => name).filter((name) => !isMean(name)),
    };
    const means = new Float32Array(Uint8Array.from(atob(facts.start_means), (text) => text.charCodeAt(0)).buffer);
    let at = 0;
    this.#states = new Map(
      this.#shapes.map(([name, shape]) => {
        const size = sizeOf(shape);
        const values = isMean(name) ? means.slice(at, at + size) : new Float32Array(size);
        if (isMean(name)) at += size;
        return [name, tensor(values, shape)];
      }),
    );
  }

  /** Run the next step. @returns {Promise<Float32Array>} The denoised audio, late by the lag and by a hop. */
  async run(audio) {
    const lags = this.lag + 1;
    const feeds = {
      audio: tensor(audio, [1, audio.length]),
      averaging: tensor(sharesOf(this.#frames, lags), [1, lags, STEP_HOPS, STEP_HOPS + 1]),
      ...Object.fromEntries(this.#states),
    };
    const results = await this.#session.run(feeds);
    const [denoised, ...after] = this.#session.outputNames;
    this.#shapes.forEach(([name], index) => this.#states.set(name, results[after[index]]));
    this.#frames += STEP_HOPS;
    if (this.#frames === this.#secondBegins.frame) {
      for (const name of this.#secondBegins.names) {
        const { dims } = this.#states.get(name);
        this.#states.set(name, tensor(new Float32Array(sizeOf(dims)), dims));
      }
    }
    return results[denoised].data;
  }
}

/**
 * Return the weights that update the running means by a step: for each lag and each of its frames the weight of the
 * mean before the step, then those of the frames of the step. See `frcrn_accel/streaming/averaging.py`.
 */
function sharesOf(firstFrame, lags) {
  const width = STEP_HOPS + 1;
  const shares = new Float32Array(lags * STEP_HOPS * width);
  for (let lag = 0; lag < lags; lag++) {
    const row = new Float64Array(width);
    row[0] = 1;
    for (let frame = 0; frame < STEP_HOPS; frame++) {
      const number = firstFrame + frame - lag;
      const count = Math.min(HORIZON_S * FRAMES_PER_S, number + 1 + START_S * FRAMES_PER_S);
      const entering = number < 0 ? 0 : 1 / count;
      for (let index = 0; index < width; index++) row[index] *= 1 - entering;
      row[frame + 1] = entering;
      shares.set(row, (lag * STEP_HOPS + frame) * width);
    }
  }
  return shares;
}

const sizeOf = (shape) => shape.reduce((product, length) => product * length, 1);

/** Denoises one live channel: as many samples come out as go in, late by `latencySamples`. */
export class Stream {
  #steps;
  #offset = new RunningOffset();
  #level = new RunningLevel();
  #toModel;
  #fromModel;
  #heldBack;
  #dry; // the input of the hops that are still inside the model, and their gains
  #gains;
  #skip;
  #out;
  #share = null; // of the input in the last step
  #high = null; // the band above the model's, at higher rates
  /** Share of the input in the result, as amplitude; a change fades in over a hop. */
  dryShare = 0;

  /**
   * @param {import("onnxruntime-web").InferenceSession} session The step of a model.
   * @param {{start_means: string, unets: number}} facts What the build wrote about the model.
   * @param {number} rateHz Rate of the signal.
   * @param {"follow"|"drop"} highBand What becomes of the band above the model's.
   */
  constructor(session, facts, rateHz, highBand = "follow") {
    this.#steps = new Steps(session, facts);
    this.#toModel = new Resampler(rateHz, MODEL_RATE_HZ);
    if (rateHz > MODEL_RATE_HZ && highBand === "follow") this.#high = new LiveHighBand(rateHz);
    this.#fromModel = new Resampler(MODEL_RATE_HZ, rateHz);
    this.#heldBack = (this.#steps.lag + 1) * HOP_SAMPLES;
    const late = reachSamples(MODEL_RATE_HZ, rateHz) + this.#heldBack + STEP_SAMPLES - 1;
    this.latencySamples = reachSamples(rateHz, MODEL_RATE_HZ) + Math.ceil((late * rateHz) / MODEL_RATE_HZ);
    this.#dry = new Float32Array(this.#heldBack);
    this.#gains = new Array(this.#heldBack / HOP_SAMPLES).fill(1);
    this.#skip = this.#heldBack;
    this.#out = new Float32Array(this.latencySamples);
  }

  /** Process the next samples, and return as many. @param {Float32Array} chunk */
  async process(chunk) {
    this.#toModel.write(chunk);
    this.#high?.write(chunk);
    while (this.#toModel.ready >= STEP_SAMPLES) await this.#step(this.#toModel.read(STEP_SAMPLES));
    const out = this.#out.slice(0, chunk.length);
    this.#out = this.#out.subarray(chunk.length);
    return out;
  }

  async #step(audio) {
    const scaled = new Float32Array(STEP_SAMPLES);
    for (let at = 0; at < STEP_SAMPLES; at += HOP_SAMPLES) {
      const hop = this.#offset.takenOut(audio.subarray(at, at + HOP_SAMPLES));
      const gain = this.#level.update(hop);
      this.#gains.push(gain);
      scaled.set(hop.map((value) => value * gain), at);
    }
    this.#dry = joined(this.#dry, audio);
    this.#high?.writeLow(audio);
    const denoised = await this.#steps.run(scaled);
    const gainsOfOutput = this.#gains.splice(0, STEP_HOPS);
    const dry = this.#dry.subarray(0, STEP_SAMPLES);
    this.#dry = this.#dry.subarray(STEP_SAMPLES);
    const share = this.dryShare;
    const before = this.#share ?? share;
    this.#share = share;
    const undiluted = denoised.map((value, at) => value / gainsOfOutput[Math.floor(at / HOP_SAMPLES)]);
    const shares = dry.map((_, at) => before + (share - before) * Math.min(1, at / HOP_SAMPLES));
    const wet = undiluted.map((value, at) => value * (1 - shares[at]) + dry[at] * shares[at]);
    const skipped = Math.min(this.#skip, STEP_SAMPLES);
    this.#skip -= skipped;
    this.#high?.writeModel(dry.subarray(skipped), undiluted.subarray(skipped), shares.subarray(skipped));
    if (skipped === STEP_SAMPLES) return;
    this.#fromModel.write(wet.subarray(skipped));
    const ready = this.#fromModel.read();
    const high = this.#high?.read(ready.length);
    this.#out = joined(this.#out, high ? ready.map((value, at) => value + high[at]) : ready);
  }
}

/** The band above the model's, of a stream; see `_StreamHighBand` in `frcrn_accel/streaming/stream.py`. */
class LiveHighBand {
  #highBand;
  #low;
  #signal = new Float32Array(0);
  #out = new Float32Array(0);

  constructor(rateHz) {
    this.#highBand = new HighBand(rateHz);
    this.#low = new Resampler(MODEL_RATE_HZ, rateHz);
  }

  /** Append to the signal. */
  write(signal) {
    this.#signal = joined(this.#signal, signal);
  }

  /** Append to the signal at the model's rate. */
  writeLow(audio) {
    this.#low.write(audio);
    const low = this.#low.read();
    this.#highBand.write(low.map((value, at) => this.#signal[at] - value));
    this.#signal = this.#signal.subarray(low.length);
  }

  /** Append to the input and the output of the model, and to the share of the band that is kept. */
  writeModel(dry, wet, dryShares) {
    this.#highBand.writeModel(dry, wet, dryShares);
  }

  /** Return the next samples. */
  read(samples) {
    this.#out = joined(this.#out, this.#highBand.read());
    const out = this.#out.subarray(0, samples);
    this.#out = this.#out.subarray(samples);
    return out;
  }
}
