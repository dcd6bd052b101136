// Loop over a part of the signals, which is marked in the pictures.

import { element, say, show } from "./elements.js";

const LEAST_S = 0.1;
const DRAG_PX = 4; // a shorter movement is a click

/** The part that is repeated, and its mark in the pictures. */
export class Selection {
  #button = element("loop");
  #mark = element("selection");
  #tracks = element("tracks");
  #axis;
  #player;
  #span = null; // [from, to], s

  /**
   * @param {import("./axis.js").TimeAxis} axis Of the pictures.
   * @param {() => import("./player.js").Player|null} player
   */
  constructor(axis, player) {
    this.#axis = axis;
    this.#player = player;
    this.#button.addEventListener("click", () => this.toggle());
    let anchor = null;
    this.#tracks.addEventListener("pointerdown", (event) => {
      if (event.button === 0 && this.isOn) anchor = event.clientX;
    });
    this.#tracks.addEventListener("pointermove", (event) => {
      if (anchor === null || Math.abs(event.clientX - anchor) < DRAG_PX) return;
      this.#set([this.#axis.timeAt(anchor), this.#axis.timeAt(event.clientX)].sort((first, second) => first - second));
    });
    for (const type of ["pointerup", "pointercancel"]) this.#tracks.addEventListener(type, () => (anchor = null));
  }

  get isOn() {
    return this.#span !== null;
  }

  /** @returns {[number, number]|null} What is repeated, s. */
  get span() {
    return this.#span;
  }

  /** Loop over everything, or stop looping. */
  toggle() {
    if (this.isOn) this.clear();
    else this.#set([0, this.#player().durationS]);
    say(this.isOn ? "Loop on: drag in the pictures to select a part" : "Loop off");
  }

  /** Move the start or the end of the loop to the current position. @param {0|1} edge */
  setEdge(edge) {
    const { positionS, durationS } = this.#player();
    const span = [...(this.#span ?? [0, durationS])];
    span[edge] = positionS;
    if (span[1] - span[0] < LEAST_S) span[1 - edge] = edge ? 0 : durationS;
    this.#set(span);
    say(`Loop from ${this.#span[0].toFixed(1)} to ${this.#span[1].toFixed(1)} s`);
  }

  clear() {
    this.#span = null;
    this.#player()?.setLoop(null);
    this.show();
  }

  /** Draw the mark. */
  show() {
    this.#button.setAttribute("aria-pressed", String(this.isOn));
    show(this.#mark, this.isOn);
    if (!this.isOn || !this.#player()) return;
    const [shownFromS, shownToS] = this.#axis.span;
    const left = this.#axis.placeOf(Math.min(shownToS, Math.max(shownFromS, this.#span[0])));
    const right = this.#axis.placeOf(Math.min(shownToS, Math.max(shownFromS, this.#span[1])));
    this.#mark.style.transform = `translateX(${left.toFixed(1)}px)`;
    this.#mark.style.width = `${(right - left).toFixed(1)}px`;
  }

  #set([from, to]) {
    const { durationS } = this.#player();
    const least = Math.min(LEAST_S, durationS);
    const start = Math.min(Math.max(0, from), durationS - least);
    this.#span = [start, Math.min(durationS, Math.max(to, start + least))];
    this.#player().setLoop(this.#span);
    this.show();
  }
}
