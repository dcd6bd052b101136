// Draw waveforms and spectrograms.

import { FLOOR_DB, Rows, fftFor, spectrogram } from "./spectrum.js";

const COLUMNS = 1600;
const ROWS = 160;
const RANGE_DB = 75;
const MARK_PX = 15; // height of a mark
const MARKS_HZ = [500, 1000, 2000, 4000, 8000, 16000, 32000];
const COLOURS = ["#0a0a12", "#1d1440", "#4f1d68", "#8d2f6b", "#c94a58", "#ee8147", "#fbc268", "#fdf4d5"];

const palette = makePalette();

/**
 * Compute the pictures of a signal.
 *
 * @returns {Promise<Picture>}
 */
export async function depict(channels, rateHz, turns) {
  const columns = Math.max(1, Math.min(COLUMNS, channels[0].length));
  return new Picture(
    await extremes(channels, columns, turns),
    await spectrogram(channels, rateHz, columns, ROWS, turns),
  );
}

/** Waveform and spectrogram of a signal, which can be painted in any size. */
class Picture {
  #extremes;
  #spectrogram;
  #image = null;

  constructor(extremes, levels) {
    this.#extremes = extremes;
    this.#spectrogram = levels;
    this.topDb = levels.levels.reduce((most, level) => Math.max(most, level), FLOOR_DB);
    this.peak = extremes.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  }

  /** @param {number} peak Amplitude that fills the height, the same for both signals. */
  paintWave(canvas, colour, peak) {
    const { context, width, height } = prepare(canvas);
    const columns = this.#extremes.length / 2;
    const y = (value) => (height / 2) * (1 - (0.94 * value) / (peak || 1));
    context.clearRect(0, 0, width, height);
    context.fillStyle = colour;
    for (let x = 0; x < width; x++) {
      let [low, high] = [Infinity, -Infinity];
      const first = Math.floor((x * columns) / width);
      const end = Math.max(first + 1, Math.floor(((x + 1) * columns) / width));
      for (let column = first; column < end; column++) {
        low = Math.min(low, this.#extremes[2 * column]);
        high = Math.max(high, this.#extremes[2 * column + 1]);
      }
      context.fillRect(x, y(high), 1, Math.max(1, y(low) - y(high)));
    }
  }

  /** @param {number} topDb Level of the brightest colour, the same for both signals. */
  paintSpectrogram(canvas, topDb) {
    const { levels, rows, columns } = this.#spectrogram;
    if (this.#image === null) {
      const pixels = new ImageData(columns, rows.count);
      for (let column = 0; column < columns; column++) {
        for (let row = 0; row < rows.count; row++) {
          const at = 4 * ((rows.count - 1 - row) * columns + column);
          pixels.data.set(colourOf(levels[column * rows.count + row], topDb), at);
        }
      }
      this.#image = document.createElement("canvas");
      this.#image.width = columns;
      this.#image.height = rows.count;
      this.#image.getContext("2d").putImageData(pixels, 0, 0);
    }
    const { context, width, height } = prepare(canvas);
    context.drawImage(this.#image, 0, 0, width, height);
    paintMarks(context, rows, height);
  }
}

/**
 * Paint the time axis.
 *
 * @param {[number, number]} span What it shows, s.
 * @param {number} leftPx Where time begins.
 */
export function paintAxis(canvas, [fromS, toS], leftPx) {
  const durationS = toS - fromS;
  const { context, width, height } = prepare(canvas);
  const scale = devicePixelRatio;
  const style = getComputedStyle(canvas);
  const left = leftPx * scale;
  context.clearRect(0, 0, width, height);
  context.fillStyle = style.color;
  context.font = `${12 * scale}px ${style.fontFamily}`;
  context.textBaseline = "top";
  const most = Math.max(2, width / (85 * scale));
  const step = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1200, 3600].find(
    (candidate) => durationS / candidate <= most,
  );
  if (!step) return;
  for (let index = Math.ceil(fromS / step); index * step <= toS; index++) {
    const seconds = index * step;
    const x = left + ((width - left) * (seconds - fromS)) / durationS;
    const text = step < 1 ? `${seconds.toFixed(step < 0.1 ? 2 : 1)} s` : clock(seconds, toS);
    const size = context.measureText(text).width;
    context.fillRect(x, 0, scale, 4 * scale);
    context.fillText(text, Math.max(0, Math.min(width - size, x - (index ? size / 2 : 0))), 6 * scale);
  }
}

const clock = (seconds, longestS) =>
  longestS < 60 ? `${seconds} s` : `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;

/** A spectrogram that scrolls to the left as audio arrives. */
export class RollingPicture {
  #canvas;
  #fft;
  #rows;
  #history;
  #powers;
  #column;
  #levels;

  constructor(canvas, rateHz) {
    this.#canvas = canvas;
    this.#fft = fftFor(rateHz);
    this.#rows = new Rows(ROWS, rateHz, this.#fft.size);
    this.#history = new Float32Array(this.#fft.size);
    this.#powers = new Float64Array(this.#fft.size / 2 + 1);
    this.#levels = new Float32Array(ROWS);
    this.#column = new ImageData(1, ROWS);
    canvas.width = 400;
    canvas.height = ROWS;
  }

  /** Add a column. @param {Float32Array} samples The next samples. */
  add(samples) {
    const kept = Math.max(0, this.#history.length - samples.length);
    this.#history.copyWithin(0, this.#history.length - kept);
    this.#history.set(samples.subarray(Math.max(0, samples.length - this.#history.length)), kept);
    this.#powers.fill(0);
    this.#fft.addPowers(this.#history, this.#powers);
    this.#rows.write(this.#powers, this.#levels, 0);
    for (let row = 0; row < ROWS; row++) {
      this.#column.data.set(colourOf(this.#levels[row], -20), 4 * (ROWS - 1 - row));
    }
    const context = this.#canvas.getContext("2d");
    const { width, height } = this.#canvas;
    context.drawImage(this.#canvas, -1, 0, width, height);
    context.putImageData(this.#column, width - 1, 0);
  }
}

/** Find the minimum and maximum of each column. */
async function extremes(channels, columns, turns) {
  const found = new Float32Array(2 * columns);
  const samples = channels[0].length;
  for (let column = 0; column < columns; column++) {
    const first = Math.floor((column * samples) / columns);
    const end = Math.floor(((column + 1) * samples) / columns);
    let [low, high] = [Infinity, -Infinity];
    for (const channel of channels) {
      for (let index = first; index < end; index++) {
        const value = channel[index];
        if (value < low) low = value;
        if (value > high) high = value;
      }
    }
    found[2 * column] = low;
    found[2 * column + 1] = high;
    await turns.next();
  }
  return found;
}

function paintMarks(context, rows, height) {
  const scale = devicePixelRatio;
  context.font = `${11 * scale}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  let below = Infinity; // where the mark below is
  for (const frequencyHz of MARKS_HZ) {
    const y = height * (1 - rows.place(frequencyHz));
    if (frequencyHz >= rows.topHz || y < 8 * scale || below - y < MARK_PX * scale) continue;
    below = y;
    context.fillStyle = "rgb(255 255 255 / 20%)";
    context.fillRect(0, y, context.canvas.width, 1);
    const text = frequencyHz < 1000 ? `${frequencyHz} Hz` : `${frequencyHz / 1000} kHz`;
    context.fillStyle = "rgb(0 0 0 / 55%)";
    context.fillRect(2 * scale, y - 7 * scale, context.measureText(text).width + 6 * scale, 14 * scale);
    context.fillStyle = "#fff";
    context.fillText(text, 5 * scale, y);
  }
}

/** Size a canvas to the pixels of the screen. */
function prepare(canvas) {
  const width = Math.max(1, Math.round(canvas.clientWidth * devicePixelRatio));
  const height = Math.max(1, Math.round(canvas.clientHeight * devicePixelRatio));
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== height) canvas.height = height;
  return { context: canvas.getContext("2d"), width, height };
}

function colourOf(levelDb, topDb) {
  const share = Math.max(0, Math.min(1, (levelDb - topDb + RANGE_DB) / RANGE_DB));
  return palette.subarray(4 * Math.round(255 * share), 4 * Math.round(255 * share) + 4);
}

function makePalette() {
  const stops = COLOURS.map((colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)));
  const colours = new Uint8ClampedArray(4 * 256);
  for (let index = 0; index < 256; index++) {
    const place = (index / 255) * (stops.length - 1);
    const below = Math.min(Math.floor(place), stops.length - 2);
    for (let part = 0; part < 3; part++) {
      colours[4 * index + part] = stops[below][part] + (place - below) * (stops[below + 1][part] - stops[below][part]);
    }
    colours[4 * index + 3] = 255;
  }
  return colours;
}
