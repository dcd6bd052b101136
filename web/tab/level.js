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
const HEADROOM = 20;
const GAP = 4;
const EDGE_FRAMES = 2;
const BROKEN_FRAMES = 3;
const NO_BURST = 2;
const EVENT_ONLY = 10;
const FAINT_POWER = 10 ** (-66 / 10);
const TINY = 1e-30;

const gainOf = (level) => (level > SILENCE_LEVEL ? TARGET_LEVEL / level : 1);
const isEventOnly = (plain, robust) => robust < FAINT_POWER && plain > EVENT_ONLY * robust;
const sumOf = (values) => values.reduce((sum, value) => sum + value, 0);
const weightOf = (power, ceiling) => (power <= ceiling ? 1 : (ceiling / power) ** STEEPNESS);

/**
 * Measure the gain that brings a channel to the level that the model was trained at.
 *
 * @param {() => AsyncIterable<Float32Array>} openBlocks Returns the signal from its start; it is read twice.
 * @returns {Promise<{samples: number, gain: number, offset: number}>} Its length, and a constant offset to take away.
 */
export async function measureLevel(openBlocks) {
  const means = [];
  const own = []; // the energy of each frame without its own mean
  let [samples, last] = [0, FRAME_SAMPLES];
  for await (const frame of frames(openBlocks())) {
    let [sum, energy] = [0, 0];
    for (const value of frame) {
      sum += value;
      energy += value * value;
    }
    means.push(sum / frame.length);
    own.push(Math.max(0, energy - sum ** 2 / frame.length));
    samples += frame.length;
    last = frame.length;
  }
  if (samples === 0) return { samples, gain: 1, offset: 0 };
  const countOf = (index) => (index === own.length - 1 ? last : FRAME_SAMPLES);
  const energiesAround = (offset) => own.map((energy, index) => energy + (means[index] - offset) ** 2 * countOf(index));
  // The mean would move with a bang that has an offset of its own; the median does not, and the bang stands out.
  const powers = energiesAround(medianOf(means)).map((energy, index) => energy / countOf(index));
  const ceiling = highestCeiling(powers);
  const robustWeight = (index) => weightOf(powers[index], ceiling);
  const counted = means.map((_, index) => robustWeight(index) * countOf(index));
  const offset = sumOf(means.map((mean, index) => counted[index] * mean)) / sumOf(counted);
  const energies = energiesAround(offset);
  const rules = [() => 1, robustWeight].map((weight) => {
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
  const eventOnly = isEventOnly(plain, robust);
  const matters = offsetMatters(offset, rules[eventOnly ? 0 : 1].mean) && samples >= OFFSET_SAMPLES;
  return { samples, gain: gainOf(Math.sqrt(eventOnly ? plain : robust)), offset: matters ? offset : 0 };
}

/**
 * Return whether a constant offset is large enough to change what the model does.
 *
 * @param {number} offset
 * @param {number} rest Power of the signal without it.
 * @param {number} evidence Factor of the power of the offset, below 1 if there is little audio to know it from.
 */
export const offsetMatters = (offset, rest, evidence = 1) => evidence * offset ** 2 > OFFSET_SHARE * rest;

/** Return the median; of an even number the mean of the two in the middle. */
function medianOf(values) {
  const sorted = Float64Array.from(values).sort();
  return (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
}

/** Return the highest power above which a frame counts less, over all spans of two seconds. */
function highestCeiling(powers) {
  let highest = 0;
  const lastStart = Math.max(powers.length - CEILING_FRAMES, 0);
  const starts = new Set();
  for (let start = 0; start < powers.length; start += CEILING_STEP) starts.add(Math.min(start, lastStart));
  for (const start of starts) highest = Math.max(highest, ceilingOf(powers.slice(start, start + CEILING_FRAMES)));
  return highest;
}

/** Return the power above which a frame counts less, from the frames of up to two seconds. */
function ceilingOf(powers) {
  const sorted = Float64Array.from(powers).sort();
  const rank = powers.length - 1 - Math.min(EVENT_FRAMES, Math.floor(powers.length / 2));
  return Math.min(HEADROOM * sorted[rank], burstCeilingOf(powers));
}

/** Return the power between a burst and all else, or 3 dB above the loudest frame if there is no burst. */
function burstCeilingOf(powers) {
  const order = [...powers.keys()].sort((first, second) => powers[second] - powers[first] || second - first);
  const powerAt = (rank) => powers[order[Math.min(rank, powers.length - 1)]];
  let ceiling = NO_BURST * powerAt(0);
  let [first, last] = [Infinity, -Infinity];
  const longest = Math.min(EVENT_FRAMES, Math.floor(powers.length / 2));
  for (let frames = 1; frames <= longest; frames++) {
    first = Math.min(first, order[frames - 1]);
    last = Math.max(last, order[frames - 1]);
    const [quietest, other] = [powerAt(frames - 1), powerAt(frames + EDGE_FRAMES)];
    const isBurst = quietest > GAP * other && last - first < frames + BROKEN_FRAMES;
    if (isBurst) ceiling = Math.sqrt(quietest) * Math.max(Math.sqrt(other), TINY); // of the longest
  }
  return ceiling;
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

const ONSET_HOPS = 25;
const ONSET_LOUDEST = 5;
const ONSET_SHARE = 0.25;
const HORIZON_HOPS = 1000; // 20 s
const GROWTH = 5;
const LINE_DB = 2;
const LOWEST_DB = -130;
const LINES = 76;
const LINE_POWERS = Float64Array.from({ length: LINES + 1 }, (_, line) =>
  line < LINES ? 10 ** ((LOWEST_DB + LINE_DB * line) / 10) : Infinity,
);
const LITTLE_DB = 0.5;
const MUCH_DB = 1.5;
const CEILING_PACE = 13;
const TINY_POWER = 1e-15;
const NO_CEILING = 1e30;
const RISE_DB = 5;
const RISE_HOPS = 30;
const BURST_HOPS = 25;

const clipped = (value, low, high) => Math.min(high, Math.max(low, value));

/** The level of a live channel so far, hop by hop. */
export class RunningLevel {
  #keep = 1 - 1 / HORIZON_HOPS;
  #recent = []; // powers of the last hops, at most two seconds
  #ceiling = 0; // the highest of two seconds so far, fading
  // For each ceiling on a grid the sums over the hops up to it, and over their samples above the mean power.
  #energy = new Float64Array(LINES + 1);
  #samples = new Float64Array(LINES + 1);
  #soundSamples = new Float64Array(LINES + 1); // in hops that are not silent
  #activeEnergy = new Float64Array(LINES + 1);
  #activeSamples = new Float64Array(LINES + 1);

  /** Add a hop. @returns {number} The gain that brings it to the level that the model was trained at. */
  update(hop) {
    const squares = Float64Array.from(hop, (value) => value ** 2).sort();
    const energies = new Float64Array(hop.length + 1); // of the quietest samples
    squares.forEach((square, at) => (energies[at + 1] = energies[at] + square));
    const energy = energies[hop.length];
    const power = energy / hop.length;
    this.#recent.push(power);
    if (this.#recent.length > CEILING_FRAMES) this.#recent.shift();
    const isKnown = this.#recent.length === CEILING_FRAMES; // before, an event that is not over may raise it
    this.#ceiling *= this.#keep ** (1 / CEILING_PACE);
    if (isKnown) this.#ceiling = Math.max(this.#ceiling, ceilingOf(this.#recent));
    for (let line = countUpTo(LINE_POWERS, power, false); line <= LINES; line++) {
      this.#energy[line] = this.#keep * this.#energy[line] + energy;
      this.#samples[line] = this.#keep * this.#samples[line] + hop.length;
      this.#soundSamples[line] = this.#keep * this.#soundSamples[line] + (power > SILENCE_LEVEL ** 2 ? hop.length : 0);
      const quiet = countUpTo(squares, this.#energy[line] / this.#samples[line], true);
      this.#activeEnergy[line] = this.#keep * this.#activeEnergy[line] + energy - energies[quiet];
      this.#activeSamples[line] = this.#keep * this.#activeSamples[line] + hop.length - quiet;
    }
    const loudest = Float64Array.from(this.#recent.slice(-ONSET_HOPS)).sort().slice(-ONSET_LOUDEST);
    const share = (ONSET_SHARE / ONSET_LOUDEST) * this.#riseOf(LINES);
    const onset = share * loudest.reduce((sum, some) => sum + some, 0);
    let ceiling = NO_CEILING; // a first word looks like a burst
    if (isKnown) ceiling = this.#ceiling;
    else if (this.#recent.length >= BURST_HOPS) ceiling = burstCeilingOf(this.#recent);
    const level = this.#levelBelow(ceiling, onset);
    return gainOf(Math.sqrt(Math.max(level, onset)));
  }

  /** Return the level of what is below a ceiling; of all if that is nearly the same, or all else is too quiet. */
  #levelBelow(ceiling, onset) {
    const all = this.#levelOf(LINES);
    const position = (10 * Math.log10(Math.max(ceiling, TINY_POWER)) - LOWEST_DB) / LINE_DB;
    const line = clipped(Math.trunc(position), 0, LINES - 1);
    const below = between(this.#levelOf(line), this.#levelOf(line + 1), clipped(position - line, 0, 1));
    if (isEventOnly(all, GROWTH * Math.max(below, onset))) return all;
    const changeDb = 10 * Math.log10(Math.max(all, TINY_POWER) / Math.max(below, TINY_POWER));
    return between(all, below, clipped((changeDb - LITTLE_DB) / (MUCH_DB - LITTLE_DB), 0, 1));
  }

  /** Return the level below a line. */
  #levelOf(line) {
    // No sample is above the mean power in a square wave: its active energy is 0, and the mean is the level.
    const mean = this.#energy[line] / Math.max(this.#samples[line], 1);
    const level = Math.max(this.#activeEnergy[line] / Math.max(this.#activeSamples[line], 1), mean);
    return level * this.#riseOf(line);
  }

  /** Return by how much a level is raised at the start of a signal: its loudest part is yet to come. */
  #riseOf(line) {
    return 10 ** ((RISE_DB / 10) * Math.exp(-this.#soundSamples[line] / FRAME_SAMPLES / RISE_HOPS));
  }
}

/** Return how many of the sorted values are below a limit, or up to it. */
function countUpTo(sorted, limit, isIncluded) {
  let [low, high] = [0, sorted.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < limit || (isIncluded && sorted[middle] === limit)) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Return a power between two, in dB; that of the louder if the other is zero. */
function between(first, second, share) {
  if (Math.min(first, second) <= 0 || share === 0 || share === 1) {
    return share === 1 || (share > 0 && second > first) ? second : first;
  }
  return first ** (1 - share) * second ** share;
}
