// A Fourier transform of any size, quick where the size has small factors.

/** Transforms complex signals of one size. */
export class Fft {
  #size;
  #factors = [];
  #cos;
  #sin;
  #part;

  constructor(size) {
    this.#size = size;
    for (let rest = size, factor = 2; rest > 1; ) {
      if (rest % factor === 0) {
        this.#factors.push(factor);
        rest /= factor;
      } else factor++;
    }
    this.#cos = Float64Array.from({ length: size }, (_, index) => Math.cos((2 * Math.PI * index) / size));
    this.#sin = Float64Array.from({ length: size }, (_, index) => -Math.sin((2 * Math.PI * index) / size));
    this.#part = new Float64Array(2 * Math.max(1, ...this.#factors));
  }

  /** Transform a signal, `re` and `im`, into `outRe` and `outIm`. */
  transform(re, im, outRe, outIm) {
    this.#run(re, im, 0, 1, outRe, outIm, 0, this.#size, 0);
  }

  #run(re, im, from, stride, outRe, outIm, to, size, depth) {
    if (size === 1) {
      outRe[to] = re[from];
      outIm[to] = im[from];
      return;
    }
    const parts = this.#factors[depth];
    const length = size / parts;
    for (let part = 0; part < parts; part++) {
      this.#run(re, im, from + part * stride, stride * parts, outRe, outIm, to + part * length, length, depth + 1);
    }
    const [step, sums] = [this.#size / size, this.#part];
    for (let bin = 0; bin < length; bin++) {
      for (let turn = 0; turn < parts; turn++) {
        let [real, imaginary] = [0, 0];
        for (let part = 0; part < parts; part++) {
          const at = to + part * length + bin;
          const angle = (part * (bin + turn * length) * step) % this.#size;
          real += outRe[at] * this.#cos[angle] - outIm[at] * this.#sin[angle];
          imaginary += outRe[at] * this.#sin[angle] + outIm[at] * this.#cos[angle];
        }
        sums[2 * turn] = real;
        sums[2 * turn + 1] = imaginary;
      }
      for (let turn = 0; turn < parts; turn++) {
        outRe[to + turn * length + bin] = sums[2 * turn];
        outIm[to + turn * length + bin] = sums[2 * turn + 1];
      }
    }
  }
}
