// Read the header of a WAV file, and write 16-bit WAV files.

/**
 * Read the header of a WAV file.
 *
 * @param {Blob} blob
 * @returns {Promise<{rateHz: number, channels: number}>}
 */
export async function wavFormat(blob) {
  const view = new DataView(await blob.slice(0, 4096).arrayBuffer());
  let at = 12; // after "RIFF", the size, and "WAVE"
  while (at + 16 <= view.byteLength) {
    if (view.getUint32(at) === 0x666d7420) return { channels: view.getUint16(at + 10, true), rateHz: view.getUint32(at + 12, true) };
    const size = view.getUint32(at + 4, true);
    at += 8 + size + (size % 2);
  }
  throw new Error("WAV file without a format chunk");
}

/**
 * Make a WAV file of one channel.
 *
 * @param {Int16Array[]} chunks Its samples.
 * @param {number} rateHz Sample rate.
 * @param {string} name File name.
 */
export function wavFile(chunks, rateHz, name) {
  const bytes = chunks.reduce((sum, chunk) => sum + chunk.byteLength, 0);
  const header = new DataView(new ArrayBuffer(44));
  const text = (at, characters) => [...characters].forEach((character, index) => header.setUint8(at + index, character.charCodeAt(0)));
  text(0, "RIFF");
  header.setUint32(4, 36 + bytes, true);
  text(8, "WAVEfmt ");
  header.setUint32(16, 16, true);
  header.setUint16(20, 1, true); // PCM
  header.setUint16(22, 1, true);
  header.setUint32(24, rateHz, true);
  header.setUint32(28, 2 * rateHz, true);
  header.setUint16(32, 2, true);
  header.setUint16(34, 16, true);
  text(36, "data");
  header.setUint32(40, bytes, true);
  return new File([header, ...chunks], name, { type: "audio/wav" });
}
