// Cut a long signal into windows, by the rule of `frcrn_accel/windows.py`.

const [WINDOW_S, PAST_S, FUTURE_S, FADE_S] = [20, 2, 0.3, 0.5];

/**
 * Cut a signal into windows of one length. At every sample their weights add up to one.
 *
 * @param {number} samples Length, a multiple of the hop.
 * @param {number} rateHz Its rate.
 * @param {number} hop Hop of the STFT in samples.
 * @returns {{start: number, stop: number, fadeIn: number[], fadeOut: number[]}[]} First and last sample of each
 *   window, and of the spans over which its weight rises and falls.
 */
export function planWindows(samples, rateHz, hop) {
  const [longest, past, future, fade] = [WINDOW_S, PAST_S, FUTURE_S, FADE_S].map(
    (seconds) => Math.round((seconds * rateHz) / hop) * hop,
  );
  const overlap = past + future + fade;
  if (samples <= longest) return [{ start: 0, stop: samples, fadeIn: [0, 0], fadeOut: [samples, samples] }];
  const steps = Math.ceil((samples - longest) / (longest - overlap));
  const size = Math.ceil((samples + steps * overlap) / ((steps + 1) * hop)) * hop;
  const starts = Array.from(
    { length: steps + 1 },
    (_, index) => Math.floor(((samples - size) * index) / (steps * hop)) * hop,
  );
  const joins = starts.slice(0, -1).map((start) => [start + size - future - fade, start + size - future]);
  return starts.map((start, index) => ({
    start,
    stop: start + size,
    fadeIn: index ? joins[index - 1] : [0, 0],
    fadeOut: index < steps ? joins[index] : [samples, samples],
  }));
}

/** Return the weight of each sample of a window in the joined signal. @returns {Float32Array} */
export function weightsOf({ start, stop, fadeIn, fadeOut }) {
  const weights = new Float32Array(stop - start);
  for (let at = fadeIn[0]; at < fadeOut[1]; at++) {
    const rise = at < fadeIn[1] ? (at - fadeIn[0] + 0.5) / (fadeIn[1] - fadeIn[0]) : 1;
    const fall = at >= fadeOut[0] ? 1 - (at - fadeOut[0] + 0.5) / (fadeOut[1] - fadeOut[0]) : 1;
    weights[at - start] = Math.min(rise, fall);
  }
  return weights;
}
