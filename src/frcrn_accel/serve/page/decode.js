// Decode the original and the result, so that the browser can play both in sync.

const MAX_DECODED_BYTES = 1 << 30; // of both signals, in the browser's memory

/** The reason why the browser cannot play a result, which can still be downloaded. */
export class NotPlayable extends Error {}

/**
 * Decode both signals to buffers of one length and sample rate.
 *
 * @param {File} file The original.
 * @param {Blob} result The denoised file, a WAV.
 * @param {object} options
 * @param {number} options.durationS Its length.
 * @param {number} options.rateHz Its sample rate.
 * @param {number} options.channels Its channels.
 * @param {() => Promise<Blob>} options.decodeAsWav Gets the original as a WAV from the engine.
 * @returns {Promise<{before: AudioBuffer, after: AudioBuffer}>}
 * @throws {NotPlayable}
 */
export async function decodeBoth(file, result, { durationS, rateHz, channels, decodeAsWav }) {
  if (!durationS) throw new NotPlayable("This file contains no audio.");
  if (2 * durationS * rateHz * channels * Float32Array.BYTES_PER_ELEMENT > MAX_DECODED_BYTES) {
    throw new NotPlayable("This file is too long to play in the browser. Download it instead.");
  }
  let decoder, after;
  try {
    decoder = new OfflineAudioContext(1, 1, rateHz); // decodes to its own rate, so nothing is resampled
    after = await decoder.decodeAudioData(await result.arrayBuffer());
  } catch {
    const format = `${rateHz / 1000} kHz, ${channels} channels`;
    throw new NotPlayable(`This browser cannot play WAV files like this one (${format}). Download it instead.`);
  }
  return { before: await decodeOriginal(decoder, file, after, decodeAsWav), after };
}

async function decodeOriginal(decoder, file, after, decodeAsWav) {
  try {
    const before = await decoder.decodeAudioData(await file.arrayBuffer());
    if (before.length === after.length && before.numberOfChannels === after.numberOfChannels) return before;
  } catch {
    // The browser does not know the format.
  }
  // The browser's decoder may also trim a lossy file differently, which would put the two signals out of sync.
  const decoded = await decodeAsWav();
  return decoder.decodeAudioData(await decoded.arrayBuffer());
}
