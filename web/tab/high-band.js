// The band above the model's: scaled frame by frame, by the rule of `frcrn_accel/high_band.py`.

import { Fft } from "./fft.js";
import { joined } from "./resample.js";

const HOP_S = 0.004;
const MODEL_RATE_HZ = 16_000;
const MODEL_HOP = 64;
const EDGES_HZ = [1200, 2000, 3400, 4800, 6200, 7600];
const SMOOTHED_FRAMES = 3;
const LOWEST_HZ = 7000;
const QUIET = 0.3;
const OPEN = 0.1;
const OPEN_LATELY = 0.3;
const RELEASE_S = 0.05;
const LATE_RELEASE_S = 0.4;
const FLOOR_S = 0.5;
const LOWEST_BLOCKS = 10;
const LOWEST_PARTS = 5;
const LOWEST_PARTS_AT_LEAST = 2;
const LOWEST_BIAS = 2;
const BLOCK_FRAMES = 5;
const SMOOTHED_SIDE = 4; // bins to each side
const SILENT_ENERGY = 2e-6;
const TINY_POWER = 1e-20;

/** Attenuates noise in the band above the model's, of one channel. */
export class HighBand {
  #rateHz;
  #hop;
  #window;
  #fft;
  #firstBin;
  #band; // from the first sample of the next frame
  #tail; // of the last frame, to be added to the next
  #frame = 0;
  #model = new ModelGains();
  #floor;
  #ready = [];

  constructor(rateHz) {
    this.#rateHz = rateHz;
    this.#hop = Math.floor(HOP_S * rateHz);
    this.#window = sineWindow(this.#hop);
    this.#fft = new Fft(2 * this.#hop);
    this.#firstBin = Math.floor((2 * this.#hop * LOWEST_HZ) / rateHz);
    this.#band = new Float32Array(this.#hop); // frame `k` is centred at sample `k * hop`
    this.#tail = new Float32Array(this.#hop);
    this.#floor = new Floor(this.#hop + 1 - this.#firstBin, this.#hop / rateHz);
  }

  /** Append to the band, at the rate of the signal. @param {Float32Array} band */
  write(band) {
    this.#band = joined(this.#band, band);
  }

  /**
   * Append to what the model had and made of it, at its rate.
   *
   * @param {Float32Array} dry
   * @param {Float32Array} wet
   * @param {Float32Array} dryShares Share of the band, as amplitude, that is always kept, for each sample.
   */
  writeModel(dry, wet, dryShares = new Float32Array(dry.length)) {
    this.#model.write(dry, wet, dryShares);
  }

  /** Return the samples that are ready. @returns {Float32Array} */
  read() {
    while (this.#band.length >= 2 * this.#hop) {
      const found = this.#model.at(this.#modelFrame());
      if (found === null) break;
      this.#compute(found);
    }
    const out = this.#ready.reduce(joined, new Float32Array(0));
    this.#ready = [];
    return out;
  }

  /** Return the rest, after the end of the signal; it may be longer than the signal. */
  finish() {
    this.write(new Float32Array(3 * this.#hop));
    this.writeModel(new Float32Array(4 * MODEL_HOP), new Float32Array(4 * MODEL_HOP));
    return this.read();
  }

  /** The last frame of the model's signals that ends at or before the centre of the next frame, or the first. */
  #modelFrame() {
    return Math.max(Math.floor((this.#frame * this.#hop * MODEL_RATE_HZ) / (this.#rateHz * MODEL_HOP)) - 1, 0);
  }

  #compute({ gain: modelGain, dryShare }) {
    const [hop, first] = [this.#hop, this.#firstBin];
    const size = 2 * hop;
    const signal = Float64Array.from(this.#window, (weight, index) => weight * this.#band[index]);
    const [re, im] = [new Float64Array(size), new Float64Array(size)];
    this.#fft.transform(signal, new Float64Array(size), re, im);
    const power = Float64Array.from({ length: hop + 1 - first }, (_, bin) => re[first + bin] ** 2 + im[first + bin] ** 2);
    let gains = this.#floor.gains(smoothed(power), modelGain);
    if (dryShare > 0) gains = gains.map((gain) => dryShare + (1 - dryShare) * gain);
    for (let bin = 0; bin <= hop; bin++) {
      const gain = gains[Math.max(0, bin - first)]; // below is what the window smears of the lowest bins
      re[bin] *= gain;
      im[bin] *= -gain; // the inverse transform is the transform of the conjugate
      if (bin > 0 && bin < hop) {
        re[size - bin] = re[bin];
        im[size - bin] = -im[bin];
      }
    }
    const [out, unused] = [new Float64Array(size), new Float64Array(size)];
    this.#fft.transform(re, im, out, unused);
    const scaled = Float32Array.from(out, (value, index) => (value / size) * this.#window[index]);
    if (this.#frame > 0) this.#ready.push(this.#tail.map((value, index) => value + scaled[index])); // the first hop is before the signal
    this.#tail = scaled.subarray(hop);
    this.#band = this.#band.subarray(hop);
    this.#frame++;
  }
}

/** The gain of the model in each frame, the largest over bands of its output, and the share of the band that is kept. */
class ModelGains {
  #dry = new Float32Array(MODEL_HOP);
  #wet = new Float32Array(MODEL_HOP);
  #dryShares = new Float32Array(MODEL_HOP);
  #fft = new Fft(2 * MODEL_HOP);
  #window = sineWindow(MODEL_HOP);
  #edges = EDGES_HZ.map((edge) => Math.round((edge * 2 * MODEL_HOP) / MODEL_RATE_HZ));
  #energies = new Array(SMOOTHED_FRAMES - 1).fill(EDGES_HZ.slice(1).map(() => [0, 0]));
  #first = 0; // frame of the first of the gains
  #gains = [];

  write(dry, wet, dryShares) {
    this.#dry = joined(this.#dry, dry);
    this.#wet = joined(this.#wet, wet);
    this.#dryShares = joined(this.#dryShares, dryShares);
    let at = 0;
    for (; at + 2 * MODEL_HOP <= this.#dry.length; at += MODEL_HOP) this.#add(at);
    this.#dry = this.#dry.subarray(at);
    this.#wet = this.#wet.subarray(at);
    this.#dryShares = this.#dryShares.subarray(at);
  }

  /** Return the gain and the share of a frame; null if they are not known yet. Frames must not decrease. */
  at(frame) {
    if (frame >= this.#first + this.#gains.length) return null;
    this.#gains.splice(0, frame - this.#first);
    this.#first = frame;
    return this.#gains[0];
  }

  #add(at) {
    const size = 2 * MODEL_HOP;
    // One transform of both: the input is its even part, the output its odd part.
    const re = Float64Array.from(this.#window, (weight, index) => weight * this.#dry[at + index]);
    const im = Float64Array.from(this.#window, (weight, index) => weight * this.#wet[at + index]);
    const [real, imaginary] = [new Float64Array(size), new Float64Array(size)];
    this.#fft.transform(re, im, real, imaginary);
    const energies = this.#edges.slice(1).map((end, band) => {
      const sums = [0, 0];
      for (let bin = this.#edges[band]; bin < end; bin++) {
        const [re1, im1, re2, im2] = [real[bin], imaginary[bin], real[size - bin], imaginary[size - bin]];
        sums[0] += ((re1 + re2) ** 2 + (im1 - im2) ** 2) / 4;
        sums[1] += ((im1 + im2) ** 2 + (re2 - re1) ** 2) / 4;
      }
      return sums;
    });
    this.#energies.push(energies);
    let largest = 0;
    for (let band = 0; band < energies.length; band++) {
      const [dry, wet] = [0, 1].map((signal) => this.#energies.reduce((sum, each) => sum + each[band][signal], 0));
      largest = Math.max(largest, wet / (dry + SILENT_ENERGY));
    }
    this.#energies.shift();
    this.#gains.push({ gain: Math.sqrt(Math.min(largest, 1)), dryShare: this.#dryShares[at + size - 1] });
  }
}

/** The floor and the gate. */
class Floor {
  #keep;
  #release;
  #lateRelease;
  #held = 0;
  #late = 0;
  #floor;
  #weight = 0; // of the frames in the floor; 1 once it is as old as its time constant
  #sum; // over the quiet frames of this block
  #quiet = 0;
  #position = 0;
  #block; // the power of all frames of this block
  #lowest = []; // of the last parts: the smallest gain of the model, and the lowest power
  #least = 1;
  #part;
  #partBlocks = 0;
  #used;

  constructor(bins, hopS) {
    this.#keep = Math.exp(-hopS / FLOOR_S);
    this.#release = Math.exp(-hopS / RELEASE_S);
    this.#lateRelease = Math.exp(-hopS / LATE_RELEASE_S);
    this.#floor = this.#used = new Float64Array(bins);
    this.#sum = new Float64Array(bins);
    this.#block = new Float64Array(bins);
    this.#part = new Float64Array(bins).fill(Infinity);
  }

  /** Return the gains of the next frame from its smoothed power and the gain of the model. */
  gains(power, gain) {
    this.#held = Math.max(gain, this.#release * this.#held);
    this.#late = Math.max(gain, this.#lateRelease * this.#late);
    const gate = Math.min(1, this.#held / OPEN) * Math.min(1, this.#late / OPEN_LATELY) ** 2;
    const gains = power.map((value, bin) => gate * Math.sqrt(Math.max(0, 1 - this.#used[bin] / (value + TINY_POWER))));
    for (let bin = 0; bin < power.length; bin++) {
      if (gain < QUIET) this.#sum[bin] += power[bin];
      this.#block[bin] += power[bin];
    }
    if (gain < QUIET) this.#quiet++;
    this.#least = Math.min(gain, this.#least);
    this.#position++;
    if (this.#position === BLOCK_FRAMES) this.#endBlock();
    return gains;
  }

  #endBlock() {
    if (this.#quiet) {
      const kept = this.#keep ** this.#quiet;
      const weight = this.#weight * kept;
      this.#weight = weight + 1 - kept;
      const share = (1 - kept) / this.#quiet / this.#weight;
      this.#floor = this.#floor.map((value, bin) => (value * weight) / this.#weight + this.#sum[bin] * share);
      this.#sum.fill(0);
    }
    this.#quiet = this.#position = 0;
    this.#part = this.#part.map((value, bin) => Math.min(value, this.#block[bin]));
    this.#block.fill(0);
    this.#partBlocks++;
    if (this.#partBlocks === LOWEST_BLOCKS) {
      this.#lowest.push([this.#least, this.#part.map((value) => (value * LOWEST_BIAS) / BLOCK_FRAMES)]);
      if (this.#lowest.length > LOWEST_PARTS) this.#lowest.shift();
      this.#part.fill(Infinity);
      this.#partBlocks = 0;
      this.#least = 1;
    }
    this.#used = this.#floor;
    if (this.#lowest.length >= LOWEST_PARTS_AT_LEAST) {
      // Where the model never takes anything away, what stays the same is no noise.
      const share = 1 - Math.min(...this.#lowest.map(([least]) => least)) ** 2;
      this.#used = this.#floor.map((value, bin) =>
        Math.max(value, share * Math.min(...this.#lowest.map(([, power]) => power[bin]))),
      );
    }
  }
}

const sineWindow = (hop) => Float64Array.from({ length: 2 * hop }, (_, at) => Math.sin((Math.PI * (at + 0.5)) / (2 * hop)));

/** Average over neighbouring bins; the first and the last bin are repeated at the edges. */
function smoothed(power) {
  const last = power.length - 1;
  let sum = 0;
  for (let bin = -SMOOTHED_SIDE - 1; bin < SMOOTHED_SIDE; bin++) sum += power[Math.min(last, Math.max(0, bin))];
  return power.map((_, bin) => {
    sum += power[Math.min(last, bin + SMOOTHED_SIDE)] - power[Math.max(0, bin - SMOOTHED_SIDE - 1)];
    return Math.max(0, sum) / (2 * SMOOTHED_SIDE + 1);
  });
}
