// Resample a signal in blocks, by the filter of `frcrn_accel/streaming/resampling.py`.
//
// Browsers resample, too, but Chromium interpolates linearly when a buffer plays at another rate, and the filters of
// `decodeAudioData` differ from browser to browser. A stream has to know the delay of its filter, besides.

const HALF_WIDTH = 64; // of the filter, in samples of the lower rate: 4 ms at 16 kHz
const BAND = 0.9625; // where the filter has -6 dB, as a share of half the lower rate
const KAISER_BETA = 8.96; // 90 dB
const TABLE_PHASES = 512; // for rates with more phases, the filter is interpolated linearly: an error of -110 dB

/** How far a filter reaches to each side of an output sample, in samples of its input. */
export function reachSamples(fromHz, toHz) {
  return fromHz === toHz ? 0 : Math.ceil(HALF_WIDTH * Math.max(1, fromHz / toHz));
}

/**
 * Resamples one channel. Output sample `n` is the signal at the time `n / toHz`; it can be read once the input sample
 * `reachSamples` after that time was written. Before its start, the signal is zero.
 */
export class Resampler {
  #to;
  #from;
  #taps;
  #reach;
  #table = null;
  #phases;
  #held; // from the first sample that the next output sample needs
  #phase = 0; // of the next output sample after an input sample, in units of 1 / `#to`

  constructor(fromHz, toHz) {
    const common = greatestCommonDivisor(fromHz, toHz);
    this.#to = toHz / common;
    this.#from = fromHz / common;
    this.#reach = reachSamples(fromHz, toHz);
    this.#taps = Math.max(2 * this.#reach, 1);
    this.#phases = Math.min(this.#to, TABLE_PHASES);
    if (this.#reach) this.#table = filterTable(this.#from, this.#to, this.#phases, this.#reach);
    this.#held = new Float32Array(Math.max(this.#reach - 1, 0));
  }

  /** Append samples. @param {Float32Array} block */
  write(block) {
    this.#held = joined(this.#held, block);
  }

  /** Append the silence after the end of the signal, so that its last samples can be read. */
  finish() {
    this.write(new Float32Array(this.#reach + Math.ceil(this.#from / this.#to)));
  }

  /** The number of samples that can be read. */
  get ready() {
    const positions = this.#held.length - this.#taps + 1;
    return Math.max(Math.ceil((positions * this.#to - this.#phase) / this.#from), 0);
  }

  /** Return the next `count` samples, at most `ready`. @returns {Float32Array} */
  read(count = this.ready) {
    const out = new Float32Array(count);
    if (this.#reach === 0) out.set(this.#held.subarray(0, count));
    else for (let index = 0; index < count; index++) out[index] = this.#filtered(this.#phase + index * this.#from);
    const ahead = this.#phase + count * this.#from;
    this.#phase = ahead % this.#to;
    this.#held = this.#held.subarray(Math.floor(ahead / this.#to));
    return out;
  }

  #filtered(position) {
    const [held, table, taps] = [this.#held, this.#table, this.#taps];
    const start = Math.floor(position / this.#to);
    const place = ((position % this.#to) * this.#phases) / this.#to;
    const row = Math.floor(place);
    const share = place - row;
    const at = row * taps;
    let sum = 0;
    if (share === 0) {
      for (let tap = 0; tap < taps; tap++) sum += held[start + tap] * table[at + tap];
    } else {
      for (let tap = 0; tap < taps; tap++) {
        const low = table[at + tap];
        sum += held[start + tap] * (low + share * (table[at + taps + tap] - low));
      }
    }
    return sum;
  }
}

/** Join two arrays of samples. @returns {Float32Array} */
export function joined(first, second) {
  if (first.length === 0) return second;
  const both = new Float32Array(first.length + second.length);
  both.set(first);
  both.set(second, first.length);
  return both;
}

/** Make filters for equally spaced phases, and for the first phase of the next sample. */
function filterTable(from, to, phases, reach) {
  const taps = 2 * reach;
  const table = new Float32Array((phases + 1) * taps);
  const lower = Math.min(1, to / from);
  for (let phase = 0; phase <= phases; phase++) {
    const row = new Float64Array(taps);
    let sum = 0;
    for (let tap = 0; tap < taps; tap++) {
      const distance = (tap + 1 - reach - phase / phases) * lower; // in samples of the lower rate
      if (Math.abs(distance) > HALF_WIDTH) continue;
      const inside = Math.max(0, 1 - (distance / HALF_WIDTH) ** 2);
      row[tap] = sinc(BAND * distance) * besselI0(KAISER_BETA * Math.sqrt(inside));
      sum += row[tap];
    }
    for (let tap = 0; tap < taps; tap++) table[phase * taps + tap] = row[tap] / sum; // a constant stays one
  }
  return table;
}

const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));

function besselI0(x) {
  let [sum, term] = [1, 1];
  for (let order = 1; term > 1e-12 * sum; order++) {
    term *= (x / (2 * order)) ** 2;
    sum += term;
  }
  return sum;
}

function greatestCommonDivisor(first, second) {
  return second === 0 ? first : greatestCommonDivisor(second, first % second);
}
