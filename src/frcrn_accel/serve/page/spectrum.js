// Spectra for the pictures: an FFT, and its powers in rows on the mel scale.

export const FLOOR_DB = -140;

/** Computes the powers of real frames. @param size A power of two. */
export class Fft {
  #size;
  #cos;
  #sin;
  #reversed;
  #window;
  #re;
  #im;

  constructor(size) {
    this.#size = size;
    this.#cos = new Float64Array(size / 2);
    this.#sin = new Float64Array(size / 2);
    this.#reversed = new Uint32Array(size);
    this.#window = new Float64Array(size);
    this.#re = new Float64Array(size);
    this.#im = new Float64Array(size);
    for (let index = 0; index < size / 2; index++) {
      this.#cos[index] = Math.cos((2 * Math.PI * index) / size);
      this.#sin[index] = -Math.sin((2 * Math.PI * index) / size);
    }
    for (let index = 0; index < size; index++) {
      this.#reversed[index] = (this.#reversed[index >> 1] >> 1) | (index & 1 ? size >> 1 : 0);
      this.#window[index] = 0.5 - 0.5 * Math.cos((2 * Math.PI * index) / size);
    }
  }

  get size() {
    return this.#size;
  }

  /**
   * Add the powers of a frame with a Hann window; a sine of amplitude 1 at the centre of a bin has power 1 there.
   *
   * @param {Float32Array|Float64Array} frame `size` samples.
   * @param {Float64Array} powers `size / 2 + 1` values.
   */
  addPowers(frame, powers) {
    const [size, re, im] = [this.#size, this.#re, this.#im];
    for (let index = 0; index < size; index++) {
      const to = this.#reversed[index];
      re[to] = frame[index] * this.#window[index];
      im[to] = 0;
    }
    for (let half = 1; half < size; half *= 2) {
      const step = size / (2 * half);
      for (let start = 0; start < size; start += 2 * half) {
        for (let index = 0; index < half; index++) {
          const [low, high] = [start + index, start + index + half];
          const [cos, sin] = [this.#cos[index * step], this.#sin[index * step]];
          const real = re[high] * cos - im[high] * sin;
          const imaginary = re[high] * sin + im[high] * cos;
          re[high] = re[low] - real;
          im[high] = im[low] - imaginary;
          re[low] += real;
          im[low] += imaginary;
        }
      }
    }
    const scale = (4 / size) ** 2; // the window has a mean of 1/2, and a sine has half of its power at negative frequencies
    for (let index = 0; index <= size / 2; index++) {
      powers[index] += scale * (re[index] ** 2 + im[index] ** 2);
    }
  }
}

/** Make an FFT of about 32 ms. */
export const fftFor = (rateHz) => new Fft(2 ** Math.round(Math.log2(0.032 * rateHz)));

/** Rows from 0 Hz (bottom) to half the sample rate (top), equally spaced on the mel scale. */
export class Rows {
  #edges;

  constructor(rows, rateHz, size) {
    this.count = rows;
    this.topHz = rateHz / 2;
    const top = mel(this.topHz);
    this.#edges = Float64Array.from({ length: rows + 1 }, (_, row) => (hertz((top * row) / rows) * size) / rateHz);
  }

  /** Position of a frequency, 0 (bottom) to 1. */
  place(frequencyHz) {
    return mel(frequencyHz) / mel(this.topHz);
  }

  /** Write the levels of one frame to `out`, dB: the strongest bin of a row, or interpolated if a row has no bin. */
  write(powers, out, offset) {
    for (let row = 0; row < this.count; row++) {
      const [low, high] = [this.#edges[row], this.#edges[row + 1]];
      const first = Math.ceil(low);
      const last = Math.min(Math.floor(high), powers.length - 1);
      let power = 0;
      if (last - first < 1) {
        const middle = Math.min((low + high) / 2, powers.length - 1.001);
        const below = Math.floor(middle);
        power = powers[below] + (middle - below) * (powers[below + 1] - powers[below]);
      } else {
        for (let bin = first; bin <= last; bin++) power = Math.max(power, powers[bin]);
      }
      out[offset + row] = power > 0 ? Math.max(FLOOR_DB, 10 * Math.log10(power)) : FLOOR_DB;
    }
  }
}

const mel = (frequencyHz) => Math.log1p(frequencyHz / 700);
const hertz = (value) => 700 * Math.expm1(value);

/**
 * Compute the spectrogram of a whole signal.
 *
 * @param {Float32Array[]} channels Averaged.
 * @param {number} rateHz Sample rate.
 * @param {number} columns Width.
 * @param {number} height Number of rows.
 * @param {import("./turns.js").Turns} turns
 * @returns {Promise<{levels: Float32Array, rows: Rows, columns: number}>} dB, column by column, from the bottom.
 */
export async function spectrogram(channels, rateHz, columns, height, turns) {
  const MAX_FRAMES = 4; // in a column of a long signal
  const fft = fftFor(rateHz);
  const rows = new Rows(height, rateHz, fft.size);
  const levels = new Float32Array(columns * height);
  const frame = new Float64Array(fft.size);
  const powers = new Float64Array(fft.size / 2 + 1);
  const width = channels[0].length / columns;
  const frames = Math.max(1, Math.min(MAX_FRAMES, Math.ceil((2 * width) / fft.size)));
  for (let column = 0; column < columns; column++) {
    powers.fill(0);
    for (let index = 0; index < frames; index++) {
      const middle = (column + (index + 0.5) / frames) * width;
      readFrame(channels, Math.round(middle - fft.size / 2), frame);
      fft.addPowers(frame, powers);
    }
    for (let bin = 0; bin < powers.length; bin++) powers[bin] /= frames;
    rows.write(powers, levels, column * height);
    await turns.next();
  }
  return { levels, rows, columns };
}

/** Read the mean of the channels, with zeros outside of the signal. */
function readFrame(channels, start, frame) {
  frame.fill(0);
  for (const channel of channels) {
    const from = Math.max(0, -start);
    const to = Math.min(frame.length, channel.length - start);
    for (let index = from; index < to; index++) frame[index] += channel[start + index] / channels.length;
  }
}
