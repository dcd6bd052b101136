// Find the sample rate in the header of a file, so that the browser decodes it to its own rate and resamples nothing.

const HEAD_BYTES = 1 << 16;
const FALLBACK_HZ = 48_000; // Opus and most films have it
const MPEG_RATES_HZ = { 3: [44_100, 48_000, 32_000], 2: [22_050, 24_000, 16_000], 0: [11_025, 12_000, 8_000] };

/** @param {Blob} file @returns {Promise<number>} Hz; 48 kHz where the header does not say. */
export async function sampleRateOf(file) {
  const head = new Uint8Array(await file.slice(0, HEAD_BYTES).arrayBuffer());
  const view = new DataView(head.buffer);
  const rateHz = riff(head, view) ?? flac(head, view) ?? ogg(head, view) ?? (await mp4(file, head)) ?? mpeg(head, view);
  return rateHz >= 3_000 && rateHz <= 192_000 ? rateHz : FALLBACK_HZ;
}

function riff(head, view) {
  return isAt(head, 0, "RIFF") && isAt(head, 12, "fmt ") ? view.getUint32(24, true) : null;
}

function flac(head, view) {
  return isAt(head, 0, "fLaC") && head.length > 21 ? view.getUint32(18) >>> 12 : null;
}

function ogg(head, view) {
  if (!isAt(head, 0, "OggS") || head.length < 64) return null;
  const packet = 27 + head[26];
  if (isAt(head, packet, "\x01vorbis")) return view.getUint32(packet + 12, true);
  return isAt(head, packet, "\x7fFLAC") ? view.getUint32(packet + 27) >>> 12 : FALLBACK_HZ;
}

/** Find the sample entry of the sound; the table is at the start or at the end of the file. */
async function mp4(file, head) {
  if (!isAt(head, 4, "ftyp")) return null;
  const tail = new Uint8Array(await file.slice(-Math.min(file.size, 1 << 22)).arrayBuffer());
  for (const bytes of [head, tail]) {
    for (let at = 4; at + 34 < bytes.length; at++) {
      if (bytes[at] !== 0x6d && bytes[at] !== 0x4f && bytes[at] !== 0x61) continue;
      if (!["mp4a", "Opus", "alac"].some((name) => isAt(bytes, at, name))) continue;
      const rateHz = (bytes[at + 28] << 8) | bytes[at + 29];
      if (rateHz >= 8_000) return rateHz;
    }
  }
  return null;
}

function mpeg(head, view) {
  let at = 0;
  if (isAt(head, 0, "ID3")) {
    at = 10 + [6, 7, 8, 9].reduce((size, index) => (size << 7) | (head[index] & 127), 0);
    if (at >= head.length) return null;
  }
  for (; at + 4 <= head.length; at++) {
    if (head[at] !== 0xff || (view.getUint8(at + 1) & 0xe0) !== 0xe0) continue;
    const [version, rate] = [(head[at + 1] >> 3) & 3, (head[at + 2] >> 2) & 3];
    if (MPEG_RATES_HZ[version]?.[rate]) return MPEG_RATES_HZ[version][rate];
  }
  return null;
}

function isAt(bytes, at, text) {
  return [...text].every((character, index) => bytes[at + index] === character.charCodeAt(0));
}
