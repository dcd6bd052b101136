// The part of the time that the pictures show.

const LEAST_S = 0.1;

/** The time axis of the pictures: from where to where it shows, and where a time is on it. */
export class TimeAxis {
  #tracks;
  #leftPx;
  #durationS = 1;
  #fromS = 0;
  #lengthS = 1;

  /**
   * @param {HTMLElement} tracks The pictures, one time axis from edge to edge.
   * @param {number} leftPx Where time begins in them.
   */
  constructor(tracks, leftPx) {
    this.#tracks = tracks;
    this.#leftPx = leftPx;
  }

  /** Show all of a signal. */
  reset(durationS) {
    this.#durationS = durationS;
    this.show([0, durationS]);
  }

  /** @returns {[number, number]} What it shows, s. */
  get span() {
    return [this.#fromS, this.#fromS + this.#lengthS];
  }

  get lengthS() {
    return this.#lengthS;
  }

  get isWhole() {
    return this.#lengthS === this.#durationS;
  }

  /** Show a part, and at least 0.1 s. @param {[number, number]} span */
  show([fromS, toS]) {
    this.#show(fromS, toS - fromS);
  }

  /**
   * Show a part of another length.
   *
   * @param {number} factor Of the length.
   * @param {number} aroundS A time that stays where it is; if it is not shown, it comes to the middle.
   */
  zoom(factor, aroundS) {
    const lengthS = this.#lengthS * factor;
    const share = this.shows(aroundS) ? (aroundS - this.#fromS) / this.#lengthS : 0.5;
    this.#show(aroundS - share * lengthS, lengthS);
  }

  shows(seconds) {
    const [fromS, toS] = this.span;
    return seconds >= fromS && seconds <= toS;
  }

  /** @returns {number} Where a time is, px from where time begins; less than 0 and more than the width are possible. */
  placeOf(seconds) {
    return ((this.#tracks.clientWidth - this.#leftPx) * (seconds - this.#fromS)) / this.#lengthS;
  }

  /** @returns {number} The time at a place on the screen, s; at its edges where the place is beyond them. */
  timeAt(clientX) {
    const box = this.#tracks.getBoundingClientRect();
    const share = (clientX - box.left - this.#leftPx) / (box.width - this.#leftPx);
    return this.#fromS + Math.min(1, Math.max(0, share)) * this.#lengthS;
  }

  #show(fromS, lengthS) {
    this.#lengthS = Math.min(Math.max(lengthS, LEAST_S), this.#durationS);
    this.#fromS = Math.min(Math.max(0, fromS), this.#durationS - this.#lengthS);
  }
}
