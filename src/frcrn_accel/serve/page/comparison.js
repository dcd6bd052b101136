// The result on the page: both signals as pictures, and a player that switches between them.

import { element, minutes, radioGroup, say } from "./elements.js";
import { gatedLoudness } from "./loudness.js";
import { depict, paintAxis } from "./pictures.js";
import { Player } from "./player.js";
import { acceptSeeking } from "./seeking.js";
import { Turns } from "./turns.js";

const PICTURE_LEFT = 4; // px; where time begins, right of the coloured edge
const NAMES = ["before", "after"];

/** Plays and draws two signals, `before` and `after`. */
export class Comparison {
  #tracks = element("tracks");
  #selected = radioGroup("selected", (name) => this.#select(name));
  #player = null;
  #pictures = null; // by name
  #loudness = null; // LUFS, by name

  constructor() {
    element("play").addEventListener("click", () => this.#togglePlay());
    element("equal").addEventListener("change", () => this.#setLevels());
    acceptSeeking(this.#tracks, PICTURE_LEFT, () => this.#player);
    new ResizeObserver(() => this.#paint()).observe(this.#tracks);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#paint());
    this.#select(this.#selected.value());
  }

  /**
   * Measure and draw two signals.
   *
   * @param {{before: AudioBuffer, after: AudioBuffer}} buffers
   * @param {number} rateHz
   * @param {AbortSignal} signal
   */
  async load(buffers, rateHz, signal) {
    const turns = new Turns(signal);
    const [loudness, pictures] = [{}, {}];
    for (const name of NAMES) {
      const samples = channelsOf(buffers[name]);
      loudness[name] = await gatedLoudness(samples, rateHz, turns);
      pictures[name] = await depict(samples, rateHz, turns);
    }
    signal.throwIfAborted();
    this.#loudness = loudness;
    this.#pictures = pictures;
    this.#player = new Player(buffers, rateHz);
    this.#player.onChange = () => this.#showPlayer();
    this.#player.select(this.#selected.value());
    this.#setLevels();
  }

  /** Paint what was loaded, now that it is visible. */
  show() {
    this.#paint();
    this.#showPlayer();
  }

  clear() {
    this.#player?.close();
    this.#player = this.#pictures = this.#loudness = null;
  }

  pause() {
    this.#player?.pause();
  }

  /** @returns {boolean} Whether the key was used. */
  key(key) {
    if (this.#player === null) return false;
    if (key === " ") this.#togglePlay();
    else if (key === "a" || key === "b") this.#selected.choose(key === "a" ? "before" : "after");
    else if (key === "x") this.#selected.other();
    else return false;
    return true;
  }

  #select(name) {
    this.#player?.select(name);
    for (const track of this.#tracks.querySelectorAll(".track")) {
      track.classList.toggle("selected", track.classList.contains(name === "before" ? "a" : "b"));
    }
    if (this.#player) say(name === "before" ? "Before" : "After");
  }

  #togglePlay() {
    if (this.#player.isPlaying) this.#player.pause();
    else this.#player.play();
  }

  #setLevels() {
    if (this.#player === null) return;
    const { before, after } = this.#loudness;
    const louderDb = before - after;
    const text = element("loudness");
    const isMeasured = Number.isFinite(louderDb);
    const isOn = element("equal").checked && isMeasured;
    const levels = { before: 1, after: 1 };
    if (isOn) levels[louderDb > 0 ? "before" : "after"] = 10 ** (-Math.abs(louderDb) / 20);
    this.#player.setLevels(levels);
    if (!isMeasured) text.textContent = "One of the signals is silent, so their loudness cannot be matched.";
    else {
      const measured = `Loudness: before ${lufs(before)}, after ${lufs(after)}.`;
      const matched = `${louderDb > 0 ? "Before" : "After"} is played ${Math.abs(louderDb).toFixed(1)} dB softer.`;
      text.textContent = `${measured} ${isOn ? matched : "Both are played unchanged."}`;
    }
  }

  /** Update button, clock and playhead; while it plays, in every animation frame. */
  #showPlayer() {
    const player = this.#player;
    if (player === null) return;
    const { positionS, durationS, isPlaying } = player;
    element("play").textContent = isPlaying ? "Pause" : "Play";
    element("clock").textContent = `${minutes(positionS)} / ${minutes(durationS)}`;
    const tracks = this.#tracks;
    const width = tracks.clientWidth - PICTURE_LEFT;
    element("playhead").style.transform = `translateX(${((width * positionS) / durationS).toFixed(1)}px)`;
    if (!isPlaying || Math.floor(positionS) !== Math.floor(Number(tracks.getAttribute("aria-valuenow")))) {
      tracks.setAttribute("aria-valuemax", durationS.toFixed(1));
      tracks.setAttribute("aria-valuenow", positionS.toFixed(1));
      tracks.setAttribute("aria-valuetext", `${positionS.toFixed(1)} of ${durationS.toFixed(1)} s`);
    }
    if (isPlaying) requestAnimationFrame(() => this.#player === player && player.isPlaying && this.#showPlayer());
  }

  #paint() {
    if (this.#player === null || !this.#tracks.clientWidth) return;
    const pictures = this.#pictures;
    const peak = Math.max(...NAMES.map((name) => pictures[name].peak));
    const topDb = Math.max(...NAMES.map((name) => pictures[name].topDb));
    const style = getComputedStyle(this.#tracks);
    NAMES.forEach((name, index) => {
      const [wave, spectrogram] = this.#tracks.querySelectorAll(".track")[index].querySelectorAll("canvas");
      pictures[name].paintWave(wave, style.getPropertyValue(`--${name}`), peak);
      pictures[name].paintSpectrogram(spectrogram, topDb);
    });
    paintAxis(this.#tracks.querySelector(".axis"), this.#player.durationS, PICTURE_LEFT);
    this.#showPlayer();
  }
}

const channelsOf = (buffer) => Array.from({ length: buffer.numberOfChannels }, (_, index) => buffer.getChannelData(index));
const lufs = (loudness) => `${loudness.toFixed(1)} LUFS`;
