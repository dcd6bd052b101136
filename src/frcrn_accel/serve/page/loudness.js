// Gated loudness as in ITU-R BS.1770-4.

const HOP_S = 0.1;
const HOPS = 4; // in a block: blocks of 0.4 s overlap by three quarters
const ABSOLUTE_GATE_LUFS = -70;
const RELATIVE_GATE_LU = -10;

/**
 * Measure the gated loudness of a signal.
 *
 * @param {Float32Array[]} channels All have the same weight.
 * @param {number} rateHz Sample rate.
 * @param {import("./turns.js").Turns} turns
 * @returns {Promise<number>} LUFS; -Infinity for silence. A signal shorter than a block is one block.
 */
export async function gatedLoudness(channels, rateHz, turns) {
  const samples = channels[0].length;
  const hop = Math.max(1, Math.min(Math.round(HOP_S * rateHz), Math.ceil(samples / HOPS)));
  const hops = Math.max(1, Math.floor(samples / hop));
  const energy = new Float64Array(hops);
  for (const channel of channels) {
    const filter = kWeighting(rateHz);
    for (let index = 0; index < hops; index++) {
      energy[index] += filter(channel, index * hop, Math.min(samples, (index + 1) * hop));
      if (index % 16 === 0) await turns.next();
    }
  }
  const powers = [];
  for (let end = HOPS; end <= Math.max(hops, HOPS); end++) {
    let sum = 0;
    for (let index = end - HOPS; index < Math.min(end, hops); index++) sum += energy[index];
    powers.push(sum / (Math.min(HOPS, hops) * hop));
  }
  const audible = powers.filter((power) => toLufs(power) > ABSOLUTE_GATE_LUFS);
  if (audible.length === 0) return -Infinity;
  const gate = toLufs(mean(audible)) + RELATIVE_GATE_LU;
  return toLufs(mean(audible.filter((power) => toLufs(power) > gate)));
}

const toLufs = (power) => (power > 0 ? -0.691 + 10 * Math.log10(power) : -Infinity);
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

/** Make the two filters of BS.1770 for any sample rate; the result returns the energy of a filtered part. */
function kWeighting(rateHz) {
  // The standard lists coefficients for 48 kHz; these are the analogue filters that they come from.
  const shelf = highShelf(Math.tan((Math.PI * 1681.974450955533) / rateHz), 0.7071752369554196, 3.999843853973347);
  const pass = highPass(Math.tan((Math.PI * 38.13547087602444) / rateHz), 0.5003270373238773);
  let [s1, s2, p1, p2] = [0, 0, 0, 0];
  return (samples, start, end) => {
    let energy = 0;
    for (let index = start; index < end; index++) {
      const x = samples[index];
      const y = shelf.b0 * x + s1;
      s1 = shelf.b1 * x - shelf.a1 * y + s2;
      s2 = shelf.b2 * x - shelf.a2 * y;
      const z = pass.b0 * y + p1;
      p1 = pass.b1 * y - pass.a1 * z + p2;
      p2 = pass.b2 * y - pass.a2 * z;
      energy += z * z;
    }
    return energy;
  };
}

function highShelf(k, q, gainDb) {
  const high = 10 ** (gainDb / 20);
  const band = high ** 0.4996667741545416;
  const a0 = 1 + k / q + k * k;
  return {
    b0: (high + (band * k) / q + k * k) / a0,
    b1: (2 * (k * k - high)) / a0,
    b2: (high - (band * k) / q + k * k) / a0,
    a1: (2 * (k * k - 1)) / a0,
    a2: (1 - k / q + k * k) / a0,
  };
}

function highPass(k, q) {
  const a0 = 1 + k / q + k * k;
  return { b0: 1, b1: -2, b2: 1, a1: (2 * (k * k - 1)) / a0, a2: (1 - k / q + k * k) / a0 };
}
