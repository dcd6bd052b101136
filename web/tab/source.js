// Audio that can be read from its start repeatedly, in blocks: a WAV file by slices, or decoded samples.

const BLOCK_S = 2;
const [PCM, FLOAT, EXTENSIBLE] = [1, 3, 0xfffe];

/**
 * @typedef {object} Source
 * @property {number} rateHz
 * @property {number} channels
 * @property {number} samples Its length.
 * @property {number} bits Of the samples in a result: 16, 24 or 32; 32 is float.
 * @property {(channel: number) => AsyncIterable<Float32Array>} blocks Returns the blocks of a channel from the start.
 */

/** Return decoded channels as a source. @param {Float32Array[]} channels */
export function decodedSource(channels, rateHz) {
  return {
    rateHz,
    channels: channels.length,
    samples: channels[0].length,
    bits: 16,
    async *blocks(channel) {
      const size = BLOCK_S * rateHz;
      for (let at = 0; at < channels[channel].length; at += size) yield channels[channel].subarray(at, at + size);
    },
  };
}

/**
 * Open a WAV file; its samples are read when they are needed, so that its length does not matter.
 *
 * @param {Blob} blob
 * @returns {Promise<Source|null>} null if it is no WAV file, or one whose samples are coded.
 */
export async function wavSource(blob) {
  const head = new DataView(await blob.slice(0, 12).arrayBuffer());
  if (head.byteLength < 12 || head.getUint32(0) !== 0x52494646 || head.getUint32(8) !== 0x57415645) return null;
  let format = null;
  for (let at = 12; at + 8 <= blob.size; ) {
    const chunk = new DataView(await blob.slice(at, at + 48).arrayBuffer());
    const [name, size] = [chunk.getUint32(0), chunk.getUint32(4, true)];
    if (name === 0x666d7420 && chunk.byteLength >= 24) {
      const tag = chunk.getUint16(8, true);
      format = {
        tag: tag === EXTENSIBLE && chunk.byteLength >= 34 ? chunk.getUint16(32, true) : tag,
        channels: chunk.getUint16(10, true),
        rateHz: chunk.getUint32(12, true),
        bytes: chunk.getUint16(20, true),
        bits: chunk.getUint16(22, true),
      };
    } else if (name === 0x64617461) {
      return format && sourceOf(blob, format, at + 8, Math.min(size, blob.size - at - 8));
    }
    at += 8 + size + (size % 2);
  }
  return null;
}

function sourceOf(blob, { tag, channels, rateHz, bytes, bits }, start, size) {
  const read = READERS[`${tag}:${bits}`];
  if (!read || !channels || bytes !== (channels * bits) / 8) return null;
  const samples = Math.floor(size / bytes);
  return {
    rateHz,
    channels,
    samples,
    bits: tag === FLOAT ? 32 : bits > 16 ? 24 : 16,
    async *blocks(channel) {
      for (let first = 0; first < samples; first += BLOCK_S * rateHz) {
        const count = Math.min(samples - first, BLOCK_S * rateHz);
        const from = start + first * bytes;
        const view = new DataView(await blob.slice(from, from + count * bytes).arrayBuffer());
        const block = new Float32Array(count);
        const at = (channel * bits) / 8;
        for (let index = 0; index < count; index++) block[index] = read(view, index * bytes + at);
        yield block;
      }
    },
  };
}

const READERS = {
  [`${PCM}:8`]: (view, at) => (view.getUint8(at) - 128) / 128,
  [`${PCM}:16`]: (view, at) => view.getInt16(at, true) / 32768,
  [`${PCM}:24`]: (view, at) => ((view.getInt8(at + 2) << 16) | view.getUint16(at, true)) / 8388608,
  [`${PCM}:32`]: (view, at) => view.getInt32(at, true) / 2147483648,
  [`${FLOAT}:32`]: (view, at) => view.getFloat32(at, true),
  [`${FLOAT}:64`]: (view, at) => view.getFloat64(at, true),
};
