// Describe in words what happened to a recording.

const FRAME_S = 0.02;
const SPEECH_DB = 25; // frames less than this below the loudest of the result are speech
const SILENT_POWER = 1e-9; // -90 dBFS
const UNCHANGED_DB = 0.5;

/**
 * Compare two signals.
 *
 * @param {Float32Array[]} before Channels.
 * @param {Float32Array[]} after Channels of the same length.
 * @param {number} rateHz
 * @param {import("./turns.js").Turns} turns
 * @returns {Promise<{noiseDb: number, speechDb: number, speechS: number, totalS: number}>} Change of the noise, in
 *   frames without speech, and of the level of the speech; NaN where there is none to measure.
 */
export async function compare(before, after, rateHz, turns) {
  const size = Math.max(1, Math.round(FRAME_S * rateHz));
  const frames = [];
  for (let first = 0; first < after[0].length; first += size) {
    const frame = { before: 0, after: 0, both: 0 };
    after.forEach((channel, index) => {
      const end = Math.min(first + size, channel.length);
      for (let at = first; at < end; at++) {
        frame.before += before[index][at] ** 2;
        frame.after += channel[at] ** 2;
        frame.both += before[index][at] * channel[at];
      }
    });
    frames.push(frame);
    await turns.next();
  }
  const sorted = frames.map((frame) => frame.after).sort((first, second) => second - first);
  const loudest = sorted[Math.floor(0.02 * sorted.length)];
  const least = Math.max(loudest * 10 ** (-SPEECH_DB / 10), SILENT_POWER * size * after.length);
  const speech = sumOf(frames.filter((frame) => frame.after >= least));
  const noise = sumOf(frames.filter((frame) => frame.after < least));
  return {
    noiseDb: noise.before > noise.count * SILENT_POWER * size * after.length ? decibel(Math.max(noise.after, 1e-12) / noise.before) : NaN,
    // If the result is speech alone, its product with the input is that of the speech with the speech in the input.
    speechDb: speech.both > 0 ? decibel(speech.after / speech.both) * 2 : NaN,
    speechS: speech.count * FRAME_S,
    totalS: after[0].length / rateHz,
  };
}

/** Write a comparison as one or two sentences. */
export function inWords({ noiseDb, speechDb, speechS, totalS }) {
  const length = `${speechS.toFixed(1)} s of speech in ${totalS.toFixed(1)} s.`;
  if (speechS < 0.1) return Number.isNaN(noiseDb) ? "The recording is silent." : `No speech was found. ${noise(noiseDb)}.`;
  const level = Math.abs(speechDb) < UNCHANGED_DB ? "the level of the speech is unchanged" : `the speech is ${louder(speechDb)}`;
  if (Number.isNaN(noiseDb)) return `There is no pause to measure the noise in; ${level}. ${length}`;
  return `${noise(noiseDb)}; ${level}. ${length}`;
}

const noise = (changeDb) =>
  changeDb > -UNCHANGED_DB ? "The noise is unchanged" : `The noise in pauses is down by ${Math.min(60, -changeDb).toFixed(0)} dB${changeDb < -60 ? " or more" : ""}`;
const louder = (changeDb) => `${Math.abs(changeDb).toFixed(1)} dB ${changeDb > 0 ? "louder" : "softer"}`;
const decibel = (ratio) => 10 * Math.log10(ratio);

function sumOf(frames) {
  const sum = { before: 0, after: 0, both: 0, count: frames.length };
  for (const frame of frames) {
    sum.before += frame.before;
    sum.after += frame.after;
    sum.both += frame.both;
  }
  return sum;
}
