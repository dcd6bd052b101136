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
const HIGHEST_CEILING = 2;
const BURSTS = 2;
const PEAK_GAP = 5;
const CREST = 16;
const AUDIBLE = 0.25;
const CORE_RANGE = 30;
const FALL = 4;
const RISE = 1.5;
const SYLLABLES = 16;
const SYLLABLE_FRAMES = 8;
const WORD_FRAMES = 15;
const WORD_RANGE = 40;
const FAINT_FRAMES = 5e-8;
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
  const ranges = []; // the smallest and the largest sample of each frame
  let [samples, last] = [0, FRAME_SAMPLES];
  for await (const frame of frames(openBlocks())) {
    let [sum, energy, lowest, highest] = [0, 0, Infinity, -Infinity];
    for (const value of frame) {
      sum += value;
      energy += value * value;
      lowest = Math.min(lowest, value);
      highest = Math.max(highest, value);
    }
    ranges.push([lowest, highest]);
    means.push(sum / frame.length);
    own.push(Math.max(0, energy - sum ** 2 / frame.length));
    samples += frame.length;
    last = frame.length;
  }
  if (samples === 0) return { samples, gain: 1, offset: 0 };
  const countOf = (index) => (index === own.length - 1 ? last : FRAME_SAMPLES);
  const energiesAround = (offset) => own.map((energy, index) => energy + (means[index] - offset) ** 2 * countOf(index));
  // The mean would move with a bang that has an offset of its own; the median does not, and the bang stands out.
  const middle = medianOf(means);
  const powers = energiesAround(middle).map((energy, index) => energy / countOf(index));
  const peaks = ranges.map(([lowest, highest]) => Math.max(highest - middle, middle - lowest) ** 2);
  const kept = takeBurstsOut(powers, peaks);
  const ceiling = highestCeiling(powers);
  const robustWeight = (index) => kept[index] * weightOf(powers[index], ceiling);
  const counted = means.map((_, index) => robustWeight(index) * countOf(index));
  const offset = sumOf(means.map((mean, index) => counted[index] * mean)) / sumOf(counted);
  const energies = energiesAround(offset);
  const rules = [(index) => kept[index], robustWeight].map((weight) => {
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

/** Replace the powers and peaks of bursts; return 0 for each frame of them, and 1 for others. */
function takeBurstsOut(powers, peaks) {
  const kept = powers.map(() => 1);
  for (let number = 0; number < BURSTS; number++) {
    const burst = burstOf(powers, peaks);
    // Side by side, two make up a longer sound, which is no burst.
    if (burst === null || kept.slice(Math.max(burst[0] - EVENT_FRAMES, 0), burst[1] + EVENT_FRAMES).includes(0)) break;
    kept.fill(0, ...burst);
    for (const values of [powers, peaks]) takeOut(values, burst);
  }
  return kept;
}

/** Return the first frame of a loud event that is not part of speech and that after it; null without one. */
function burstOf(powers, peaks) {
  let found = outstanding(powers, GAP);
  if (found === null) {
    found = outstanding(peaks, PEAK_GAP);
    if (found === null) return null;
    const peak = found[0] + indexOfMax(peaks.slice(...found));
    if (peaks[peak] < CREST * powers[peak]) return null;
  }
  const rest = [...powers.slice(0, found[0]), ...powers.slice(found[1])].sort((first, second) => second - first);
  const largest = maxOf(powers);
  const isApart = (at) => at < found[0] - EVENT_FRAMES || at >= found[1] + EVENT_FRAMES;
  const near = powers.filter((power, at) => isApart(at) && power > rest[0] / SYLLABLES).length;
  if (near < WORD_FRAMES && largest < WORD_RANGE * rest[0]) return null;
  const left = rest[Math.min(SYLLABLE_FRAMES, rest.length) - 1];
  return left < FAINT_FRAMES && largest > EVENT_ONLY * left ? null : found;
}

/** Replace the powers of a burst by those between the frames around it, in dB. */
function takeOut(values, [start, stop]) {
  const around = [start - 1, stop].filter((at) => at >= 0 && at < values.length);
  const logs = around.map((at) => Math.log(Math.max(values[at], TINY)));
  for (let at = start; at < stop; at++) {
    const share = around.length === 2 ? (at - around[0]) / (around[1] - around[0]) : 0;
    values[at] = Math.exp(logs[0] + share * (logs[logs.length - 1] - logs[0]));
  }
}

/** Return where the largest values stand out from all others, with what falls towards the others beside them. */
function outstanding(values, gap) {
  const longest = Math.min(EVENT_FRAMES, values.length >> 1);
  if (longest === 0) return null;
  const loudest = indexOfMax(values);
  let [other, start] = [Infinity, 0];
  for (let from = Math.max(loudest - longest + 1, 0); from <= Math.min(loudest, values.length - longest); from++) {
    const outside = Math.max(maxOf(values.slice(0, from)), maxOf(values.slice(from + longest)));
    if (outside < other) [other, start] = [outside, from];
  }
  if (values[loudest] <= gap * other) return null;
  const core = Math.max(gap * other, values[loudest] / CORE_RANGE);
  let stop = start + longest;
  while (values[start] <= core) start++;
  while (values[stop - 1] <= core) stop--;
  const isAudible = (at) => at >= 0 && at < values.length && values[at] > AUDIBLE * other;
  const beside = (edge, at) => {
    const ratio = isAudible(at) ? values[at] / values[edge] : 0;
    return ratio >= 1 / FALL && ratio < RISE ? values[at] : 0;
  };
  while (stop - start < longest) {
    const [before, after] = [beside(start, start - 1), beside(stop - 1, stop)];
    if (before === 0 && after === 0) break;
    if (before > after) start--;
    else stop++;
  }
  if (stop - start < longest && isAudible(start - 1)) start--;
  if (stop - start < longest && isAudible(stop)) stop++;
  return [start, stop];
}

const maxOf = (values) => values.reduce((largest, value) => Math.max(largest, value), 0);
const indexOfMax = (values) => values.reduce((best, value, at) => (value > values[best] ? at : best), 0);

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
  let ceiling = HIGHEST_CEILING * powerAt(0);
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

const OVER_HOPS = 45;
const PAST_HOPS = 73;
const CUTS = 8;
const OUTSTANDING = 10;

/** The level of a live channel so far, hop by hop. */
export class RunningLevel {
  #keep = 1 - 1 / HORIZON_HOPS;
  // What is known before the next hop. Recent: powers and largest squares of at most two seconds. Ceiling: the highest
  // of two seconds so far, fading. Sums, for each ceiling on a grid, of the hops up to it: energy, samples, samples of
  // hops that are not silent, and energy and number of samples above the mean power. Highest: the largest of what was
  // before the past.
  #state = {
    recent: [[], []],
    ceiling: 0,
    sums: Array.from({ length: 5 }, () => new Float64Array(LINES + 1)),
    highest: [0, 0],
  };
  #past = []; // the last hops and the state before each, without bursts
  #cuts = []; // bursts that do not count, with what they have added to the sums

  /** Add a hop. @returns {number} The gain that brings it to the level that the model was trained at. */
  update(hop) {
    const sorted = sortedSquares(hop);
    for (let burst = this.#nextBurst(sorted); burst !== null; burst = this.#nextBurst(sorted)) this.#without(burst);
    return gainOf(Math.sqrt(this.#plus(hop.slice(), sorted)));
  }

  /** Add a hop at which no burst becomes clear, and return the power of active speech at it. */
  #plus(hop, { squares, energies, loudness }) {
    const { recent: before, ceiling: ceilingBefore, sums: sumsBefore, highest: highestBefore } = this.#state;
    this.#past.push({ hop, state: this.#state });
    const sums = sumsBefore.map((values) => values.slice());
    const [energy, samples] = [energies[hop.length], hop.length];
    const isSound = loudness[0] > SILENCE_LEVEL ** 2;
    const first = countUpTo(LINE_POWERS, loudness[0], false);
    for (let line = first; line <= LINES; line++) {
      for (const values of sums) values[line] *= this.#keep;
      sums[0][line] += energy;
      sums[1][line] += samples;
      sums[2][line] += isSound ? samples : 0;
      const quiet = countUpTo(squares, sums[0][line] / sums[1][line], true);
      sums[3][line] += energy - energies[quiet];
      sums[4][line] += samples - quiet;
    }
    const recent = before.map((values, measure) => [...values, loudness[measure]]);
    let highest = highestBefore;
    if (this.#past.length > PAST_HOPS) {
      const old = recent.map((values) => values[values.length - 1 - PAST_HOPS]);
      highest = highestBefore.map((value, measure) => Math.max(this.#keep * value, old[measure]));
      for (const cut of this.#cuts) {
        for (const values of cut.sums) for (let line = first; line <= LINES; line++) values[line] *= this.#keep;
      }
      const isSpeech = ({ measure, height }) => OUTSTANDING * old[measure] > height;
      for (const cut of this.#cuts.filter(isSpeech)) {
        addTo(sums, cut.sums);
        this.#past = this.#past.map(({ hop: audio, state }) => {
          const all = state.sums.map((values) => values.slice());
          addTo(all, cut.sums);
          return { hop: audio, state: { ...state, sums: all } };
        });
      }
      this.#cuts = this.#cuts.filter((cut) => !isSpeech(cut));
      this.#past.shift();
    }
    const powers = recent[0];
    const loudest = maxOf(powers);
    let [known, ceiling] = [NO_CEILING, 0]; // a first word looks like a burst
    if (powers.length === CEILING_FRAMES) {
      ceiling = this.#keep ** (1 / CEILING_PACE) * ceilingBefore;
      if (HIGHEST_CEILING * loudest > ceiling) ceiling = Math.max(ceiling, ceilingOf(powers));
      known = ceiling;
    } else if (powers.length >= BURST_HOPS) known = burstCeilingOf(powers); // others may still rise during an event
    this.#state = { recent: recent.map((values) => values.slice(1 - CEILING_FRAMES)), ceiling, sums, highest };
    return this.#power(known, powers);
  }

  /** Return the burst that becomes clear at a hop, its first hop counted back from that one; null if there is none. */
  #nextBurst({ loudness }) {
    const recent = this.#state.recent.map((values, measure) => [...values, loudness[measure]]);
    const now = recent[0].length - 1;
    for (const [measure, values] of recent.entries()) {
      const loudest = maxOf(values);
      const age = now - indexOfMax(values);
      if (loudest <= OUTSTANDING * maxOf(values.slice(-OVER_HOPS))) continue;
      if (age < OVER_HOPS || age > this.#past.length) continue;
      if (loudest <= OUTSTANDING * this.#state.highest[measure]) continue;
      const part = burstOf(...recent);
      if (part !== null && part[1] <= now + 1 - OVER_HOPS && part[0] >= now - this.#past.length) {
        return { measure, start: part[0] - now, stop: part[1] - now };
      }
    }
    return null;
  }

  /** Forget a burst, as if it had never been. */
  #without({ measure, start, stop }) {
    const recent = this.#state.recent[measure];
    const height = maxOf(recent.slice(recent.length + start, recent.length + stop));
    const [all, cuts, past] = [this.#state.sums, this.#cuts, this.#past];
    const later = past.slice(past.length + stop);
    [this.#state, this.#past, this.#cuts] = [past[past.length + start].state, past.slice(0, past.length + start), []];
    for (const { hop } of later) this.#plus(hop, sortedSquares(hop));
    const sums = all.map((values, kind) => values.map((value, line) => value - this.#state.sums[kind][line]));
    this.#cuts = [...cuts, { measure, height, sums }].slice(-CUTS);
  }

  /** Return the power of what is below a ceiling; of all if that is nearly the same, or all else is too quiet. */
  #power(ceiling, recent) {
    const { level: all, rise } = this.#levelAt(LINES);
    const position = (10 * Math.log10(Math.max(ceiling, TINY_POWER)) - LOWEST_DB) / LINE_DB;
    const line = clipped(Math.trunc(position), 0, LINES - 1);
    const [under, above] = [this.#levelAt(line).level, this.#levelAt(line + 1).level];
    const below = between(under, above, clipped(position - line, 0, 1));
    const loudest = Float64Array.from(recent.slice(-ONSET_HOPS)).sort().slice(-ONSET_LOUDEST);
    const onset = (ONSET_SHARE / ONSET_LOUDEST) * rise * loudest.reduce((sum, some) => sum + some, 0);
    if (isEventOnly(all, GROWTH * Math.max(below, onset))) return Math.max(all, onset);
    const changeDb = 10 * Math.log10(Math.max(all, TINY_POWER) / Math.max(below, TINY_POWER));
    return Math.max(between(all, below, clipped((changeDb - LITTLE_DB) / (MUCH_DB - LITTLE_DB), 0, 1)), onset);
  }

  /** Return the level below a line, raised at the start of a signal, and by how much: the loudest is yet to come. */
  #levelAt(line) {
    const [energy, samples, soundSamples, activeEnergy, activeSamples] = this.#state.sums.map((values) => values[line]);
    const rise = 10 ** ((RISE_DB / 10) * Math.exp(-soundSamples / FRAME_SAMPLES / RISE_HOPS));
    // No sample is above the mean power in a square wave: its active energy is 0, and the mean is the level.
    return { level: Math.max(activeEnergy / Math.max(activeSamples, 1), energy / Math.max(samples, 1)) * rise, rise };
  }
}

/** Return the squares of a hop from the smallest on, the energy of the smallest, and its power and largest square. */
function sortedSquares(hop) {
  const squares = Float64Array.from(hop, (value) => value ** 2).sort();
  const energies = new Float64Array(hop.length + 1);
  squares.forEach((square, at) => (energies[at + 1] = energies[at] + square));
  return { squares, energies, loudness: [energies[hop.length] / hop.length, squares[hop.length - 1]] };
}

function addTo(sums, others) {
  sums.forEach((values, kind) => others[kind].forEach((value, line) => (values[line] += value)));
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
