// The constant offset of a live signal, by the rule of `frcrn_accel/streaming/offset.py`.

import { offsetMatters } from "./level.js";

const HORIZON_HOPS = 50; // a second
const STAY = 4;

/** The constant offset of a live channel so far, hop by hop. */
export class RunningOffset {
  #hops = 0;
  #mean = 0;
  #power = 0;
  #offset = 0; // what was taken out of the last sample

  /** Return a hop without the offset. @param {Float32Array} hop */
  takenOut(hop) {
    const isFirst = this.#hops === 0;
    const before = this.#offset;
    this.#update(hop);
    const after = this.#offset;
    const start = isFirst ? after : before;
    if (start === 0 && after === 0) return hop;
    return hop.map((value, at) => value - Math.fround(start + ((after - start) * (at + 1)) / hop.length));
  }

  #update(hop) {
    const [sum, energy] = hop.reduce(([sum, energy], value) => [sum + value, energy + value ** 2], [0, 0]);
    this.#hops = Math.min(this.#hops + 1, HORIZON_HOPS);
    this.#mean += (sum / hop.length - this.#mean) / this.#hops;
    this.#power += (energy / hop.length - this.#power) / this.#hops;
    const evidence = (this.#hops / HORIZON_HOPS) ** 2 * (this.#offset === 0 ? 1 : STAY);
    this.#offset = offsetMatters(this.#mean, this.#power - this.#mean ** 2, evidence) ? this.#mean : 0;
  }
}
