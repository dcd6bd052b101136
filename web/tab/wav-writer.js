// Write a WAV file block by block; what is written is handed to the browser, which may keep it on disk.

const MAX_BYTES = 0xffffffff - 64;
const PART_BYTES = 1 << 20;

/** Writes samples of 16 or 24 bits, or 32-bit floats. */
export class WavWriter {
  #channels;
  #rateHz;
  #bits;
  #parts = [];
  #part = new Uint8Array(PART_BYTES);
  #filled = 0;
  #bytes = 0;
  /** Number of samples that were beyond full scale. */
  clipped = 0;

  constructor(channels, rateHz, bits) {
    this.#channels = channels;
    this.#rateHz = rateHz;
    this.#bits = bits;
  }

  /** Append samples. @param {Float32Array[]} channels Blocks of one length. */
  write(channels) {
    const width = this.#bits / 8;
    let view = new DataView(this.#part.buffer);
    for (let index = 0; index < channels[0].length; index++) {
      for (const channel of channels) {
        if (this.#filled + width > PART_BYTES) {
          this.#flush();
          view = new DataView(this.#part.buffer);
        }
        this.#put(view, channel[index]);
        this.#filled += width;
      }
    }
    if (this.#bytes + this.#filled > MAX_BYTES) throw new RangeError("a WAV file holds 4 GiB at most");
  }

  /** @returns {Blob} */
  finish() {
    this.#flush();
    const float = this.#bits === 32;
    const frame = (this.#channels * this.#bits) / 8;
    const header = new DataView(new ArrayBuffer(44));
    header.setUint32(0, 0x52494646);
    header.setUint32(4, 36 + this.#bytes + (this.#bytes % 2), true);
    header.setUint32(8, 0x57415645);
    header.setUint32(12, 0x666d7420);
    header.setUint32(16, 16, true);
    header.setUint16(20, float ? 3 : 1, true);
    header.setUint16(22, this.#channels, true);
    header.setUint32(24, this.#rateHz, true);
    header.setUint32(28, frame * this.#rateHz, true);
    header.setUint16(32, frame, true);
    header.setUint16(34, this.#bits, true);
    header.setUint32(36, 0x64617461);
    header.setUint32(40, this.#bytes, true);
    const padding = new Uint8Array(this.#bytes % 2);
    return new Blob([header, ...this.#parts, padding], { type: "audio/wav" });
  }

  #put(view, value) {
    if (this.#bits === 32) return view.setFloat32(this.#filled, value, true);
    const full = 2 ** (this.#bits - 1);
    const scaled = Math.round(full * value);
    const kept = Math.max(-full, Math.min(full - 1, scaled));
    if (kept !== scaled) this.clipped++;
    view.setInt8(this.#filled + this.#bits / 8 - 1, kept >> (this.#bits - 8));
    view.setUint8(this.#filled, kept & 255);
    if (this.#bits === 24) view.setUint8(this.#filled + 1, (kept >> 8) & 255);
  }

  #flush() {
    this.#parts.push(new Blob([this.#part.slice(0, this.#filled)]));
    this.#bytes += this.#filled;
    this.#filled = 0;
  }
}
