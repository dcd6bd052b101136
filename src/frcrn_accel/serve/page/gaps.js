// Judges the gaps of live audio.

const WATCHED_S = 10;
const MANY = 5; // gaps in that time
const PATIENCE_S = 30;

/** Watches the gaps of a live stream. */
export class GapWatch {
  #gaps = 0;
  #times = []; // of the gaps in the last `WATCHED_S`
  #since = null; // when they became many

  /**
   * Count the gaps.
   *
   * @param {number} nowS Any clock.
   * @param {number} gaps Number of gaps since the start.
   * @returns {"few"|"many"|"lasting"} "lasting" once they have been many for `PATIENCE_S`.
   */
  update(nowS, gaps) {
    for (; this.#gaps < gaps; this.#gaps++) this.#times.push(nowS);
    this.#times = this.#times.filter((time) => time > nowS - WATCHED_S);
    if (this.#times.length < MANY) this.#since = null;
    else this.#since ??= nowS;
    if (this.#since === null) return "few";
    return nowS - this.#since < PATIENCE_S ? "many" : "lasting";
  }
}
