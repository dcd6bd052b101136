// The level of speech, by the rules of `frcrn_accel/audio.py` (files) and `frcrn_accel/streaming/level.py` (live).

const TARGET_LEVEL = 10 ** (-25 / 20);
const SILENCE_LEVEL = 10 ** (-140 / 20);
const OFFSET_SAMPLES = 16_000;
const OFFSET_SHARE = 0.03;
const FRAME_SAMPLES = 320;
const EVENT_FRAMES = 28;
const CEILING_FRAMES = 100;
const CEILING_STEP = 10;
const STEEPNESS = 6;
const HEADROOM = 10;
const FAINT_POWER = 10 ** (-55 / 10);

const gainOf = (level) => (level > SILENCE_LEVEL ? TARGET_LEVEL / level : 1);
const weightOf = (power, ceiling) => (power <= ceiling ? 1 : (ceiling / power) ** STEEPNESS);

/**
 * Measure the gain that brings a channel to the level that the model was trained at.
 *
 * @param {() => AsyncIterable<Float32Array>} openBlocks Returns the signal from its start; it is read twice.
 * @returns {Promise<{samples: number, gain: number, offset: number}>} Its length, and a constant offset to take away.
 */
export async function measureLevel(openBlocks) {
  const sums = [];
  const energies = [];
  let [samples, total, last] = [0, 0, FRAME_SAMPLES];
  for await (const frame of frames(openBlocks())) {
    let [sum, energy] = [0, 0];
    for (const value of frame) {
      sum += value;
      energy += value * value;
    }
    sums.push(sum);
    energies.push(energy);
    samples += frame.length;
    total += sum;
    last = frame.length;
  }
  if (samples === 0) return { samples, gain: 1, offset: 0 };
  const offset = total / samples;
  const countOf = (index) => (index === energies.length - 1 ? last : FRAME_SAMPLES);
  energies.forEach((energy, index) => {
    energies[index] = Math.max(0, energy - 2 * offset * sums[index] + offset ** 2 * countOf(index));
  });
  const powers = energies.map((energy, index) => energy / countOf(index));
  const ceiling = highestCeiling(powers);
  const rules = [() => 1, (index) => weightOf(powers[index], ceiling)].map((weight) => {
    let [energy, count] = [0, 0];
    energies.forEach((value, index) => {
      energy += weight(index) * value;
      count += weight(index) * countOf(index);
    });
    return { weight, mean: energy / count, activeEnergy: 0, activeSamples: 0 };
  });
  let index = 0;
  for await (const frame of frames(openBlocks())) {
    for (const rule of rules) {
      const weight = rule.weight(index);
      let [energy, count] = [0, 0];
      for (const value of frame) {
        const square = (value - offset) ** 2;
        if (square > rule.mean) {
          energy += square;
          count++;
        }
      }
      rule.activeEnergy += weight * energy;
      rule.activeSamples += weight * count;
    }
    index++;
  }
  const [plain, robust] = rules.map(({ activeEnergy, activeSamples, mean }) =>
    activeSamples > 0 ? activeEnergy / activeSamples : mean,
  );
  const isEventOnly = robust < FAINT_POWER && plain > HEADROOM * robust;
  const rest = energies.reduce((sum, energy) => sum + energy, 0) / samples;
  const matters = offset ** 2 > OFFSET_SHARE * rest && samples >= OFFSET_SAMPLES;
  return { samples, gain: gainOf(Math.sqrt(isEventOnly ? plain : robust)), offset: matters ? offset : 0 };
}

/** Return the highest power above which a frame counts less, over all spans of two seconds. */
function highestCeiling(powers) {
  const span = Math.min(CEILING_FRAMES, powers.length);
  const rank = span - 1 - Math.min(EVENT_FRAMES, Math.floor(span / 2));
  let highest = 0;
  const lastStart = Math.max(powers.length - CEILING_FRAMES, 0);
  const starts = new Set();
  for (let start = 0; start < powers.length; start += CEILING_STEP) starts.add(Math.min(start, lastStart));
  for (const start of starts) {
    const sorted = Float64Array.from(powers.slice(start, start + span)).sort();
    highest = Math.max(highest, HEADROOM * sorted[rank]);
  }
  return highest;
}

/** Cut a signal into frames; the last may be shorter. */
async function* frames(blocks) {
  const frame = new Float32Array(FRAME_SAMPLES);
  let filled = 0;
  for await (const block of blocks) {
    for (let at = 0; at < block.length; ) {
      const part = block.subarray(at, at + FRAME_SAMPLES - filled);
      frame.set(part, filled);
      filled += part.length;
      at += part.length;
      if (filled === FRAME_SAMPLES) {
        yield frame;
        filled = 0;
      }
    }
  }
  if (filled) yield frame.subarray(0, filled);
}

const OFFSET_HOPS = 50;
const ONSET_HOPS = 25;
const ONSET_LOUDEST = 5;
const ONSET_SHARE = 0.25;
const HORIZON_HOPS = 1000; // 20 s

/** The level of a live channel so far, hop by hop. */
export class RunningLevel {
  #keep = 1 - 1 / HORIZON_HOPS;
  #offset = [0, 0]; // running mean of the samples: its sum and weight
  #recent = []; // the last hops, at most two seconds, whose weights are not final yet
  #past = { energy: 0, samples: 0, activeEnergy: 0, activeSamples: 0 };
  #ceiling = 0; // the highest of two seconds so far, fading

  /** Add a hop. @returns {number} The gain that brings it to the level that the model was trained at. */
  update(hop) {
    const samples = hop.length;
    const keep = 1 - 1 / OFFSET_HOPS;
    this.#offset = [keep * this.#offset[0] + hop.reduce((sum, value) => sum + value, 0) / samples, keep * this.#offset[1] + 1];
    const shift = this.#offset[0] / this.#offset[1];
    const squares = Float64Array.from(hop, (value) => (value - shift) ** 2);
    const energy = squares.reduce((sum, square) => sum + square, 0);
    const power = energy / samples;
    if (this.#recent.length === CEILING_FRAMES) {
      this.#past = sumOf([this.#recent.shift()], this.#ceiling, this.#past, this.#keep);
    }
    const before = this.#recent;
    const latest = [power, ...before.map((some) => some.power)];
    const loudest = Float64Array.from(latest).sort().reverse();
    const highest = Math.max(this.#keep * this.#ceiling, HEADROOM * loudest[Math.min(EVENT_FRAMES, Math.floor(loudest.length / 2))]);
    const added = { power, energy, samples, activeEnergy: 0, activeSamples: 0 };
    const known = sumOf([...before, added], highest, this.#past, 1);
    const mean = known.energy / known.samples;
    for (const square of squares) {
      if (square > mean) {
        added.activeEnergy += square;
        added.activeSamples++;
      }
    }
    const weight = weightOf(power, highest);
    const activeSamples = known.activeSamples + weight * added.activeSamples;
    const active = activeSamples ? (known.activeEnergy + weight * added.activeEnergy) / activeSamples : 0;
    // No sample is above the mean power in a square wave: its active energy is 0, and the mean is the level.
    const level = Math.max(active, mean);
    const lately = [power, ...latest.slice(1).slice(1 - ONSET_HOPS)].sort((first, second) => second - first);
    const onset = ONSET_SHARE * lately.slice(0, ONSET_LOUDEST).reduce((sum, some) => sum + some, 0);
    before.push(added);
    this.#ceiling = before.length === CEILING_FRAMES ? highest : 0; // of fewer hops, it may be that of an event
    return gainOf(Math.sqrt(Math.max(level, onset / ONSET_LOUDEST)));
  }
}

function sumOf(hops, ceiling, start, keep) {
  const sum = {
    energy: keep * start.energy,
    samples: keep * start.samples,
    activeEnergy: keep * start.activeEnergy,
    activeSamples: keep * start.activeSamples,
  };
  for (const hop of hops) {
    const weight = weightOf(hop.power, ceiling);
    sum.energy += weight * hop.energy;
    sum.samples += weight * hop.samples;
    sum.activeEnergy += weight * hop.activeEnergy;
    sum.activeSamples += weight * hop.activeSamples;
  }
  return sum;
}
