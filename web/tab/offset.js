// The constant offset of a live signal, by the rule of `frcrn_accel/streaming/offset.py`.

import { offsetMatters } from "./level.js";

const HORIZON_HOPS = 50; // a second
const RECENT_HOPS = 60;
const BANG_HOPS = 30;
const STAY = 4;

/** The constant offset of a live channel so far, hop by hop. */
export class RunningOffset {
  #recent = []; // means of the last hops
  #mean = 0;
  #power = 0;
  #offset = 0; // what was taken out of the last sample

  /** Return a hop without the offset. @param {Float32Array} hop */
  takenOut(hop) {
    const isFirst = this.#recent.length === 0;
    const before = this.#offset;
    this.#update(hop);
    const after = this.#offset;
    const start = isFirst ? after : before;
    if (start === 0 && after === 0) return hop;
    return hop.map((value, at) => value - Math.fround(start + ((after - start) * (at + 1)) / hop.length));
  }

  #update(hop) {
    const [sum, energy] = hop.reduce(([sum, energy], value) => [sum + value, energy + value ** 2], [0, 0]);
    this.#recent.push(sum / hop.length);
    if (this.#recent.length > RECENT_HOPS) this.#recent.shift();
    const hops = Math.min(this.#recent.length, HORIZON_HOPS);
    this.#mean += (sum / hop.length - this.#mean) / hops;
    this.#power += (energy / hop.length - this.#power) / hops;
    // A bang can have a large mean of its own, and be more than half of the first second.
    const ranked = Float64Array.from(this.#recent).sort();
    const median = ranked[ranked.length >> 1];
    const inMost =
      median > 0
        ? Math.max(ranked[Math.max(ranked.length - BANG_HOPS, 0)], 0)
        : Math.min(ranked[Math.min(BANG_HOPS, ranked.length - 1)], 0);
    const bound = 2 * Math.abs(inMost) < Math.abs(median) ? inMost : median;
    const found = Math.min(Math.max(this.#mean, Math.min(bound, 0)), Math.max(bound, 0));
    const evidence = (hops / HORIZON_HOPS) ** 2 * (this.#offset === 0 ? 1 : STAY);
    this.#offset = offsetMatters(found, this.#power - this.#mean ** 2, evidence) ? found : 0;
  }
}
