// Loop over a part of the signals, which is marked in the pictures.

import { element, say, show } from "./elements.js";

const LEAST_S = 0.1;
const DRAG_PX = 4; // a shorter movement is a click

/** The part that is repeated, and its mark in the pictures. */
export class Selection {
  #button = element("loop");
  #mark = element("selection");
  #tracks = element("tracks");
  #leftPx;
  #player;
  #span = null; // [from, to], s

  /**
   * @param {number} leftPx Where time begins in the pictures.
   * @param {() => import("./player.js").Player|null} player
   */
  constructor(leftPx, player) {
    this.#leftPx = leftPx;
    this.#player = player;
    this.#button.addEventListener("click", () => this.toggle());
    let anchor = null;
    this.#tracks.addEventListener("pointerdown", (event) => {
      if (event.button === 0 && this.isOn) anchor = event.clientX;
    });
    this.#tracks.addEventListener("pointermove", (event) => {
      if (anchor === null || Math.abs(event.clientX - anchor) < DRAG_PX) return;
      this.#set([this.#timeAt(anchor), this.#timeAt(event.clientX)].sort((first, second) => first - second));
    });
    for (const type of ["pointerup", "pointercancel"]) this.#tracks.addEventListener(type, () => (anchor = null));
  }

  get isOn() {
    return this.#span !== null;
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
    const scale = (this.#tracks.clientWidth - this.#leftPx) / this.#player().durationS;
    this.#mark.style.transform = `translateX(${(this.#span[0] * scale).toFixed(1)}px)`;
    this.#mark.style.width = `${((this.#span[1] - this.#span[0]) * scale).toFixed(1)}px`;
  }

  #set([from, to]) {
    const { durationS } = this.#player();
    const least = Math.min(LEAST_S, durationS);
    const start = Math.min(Math.max(0, from), durationS - least);
    this.#span = [start, Math.min(durationS, Math.max(to, start + least))];
    this.#player().setLoop(this.#span);
    this.show();
  }

  #timeAt(clientX) {
    const box = this.#tracks.getBoundingClientRect();
    return ((clientX - box.left - this.#leftPx) / (box.width - this.#leftPx)) * this.#player().durationS;
  }
}
