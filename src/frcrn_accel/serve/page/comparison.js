// The result on the page: the signals as pictures, and a player that switches between them.

import { TimeAxis } from "./axis.js";
import { element, minutes, radioGroup, say, show } from "./elements.js";
import { gatedLoudness } from "./loudness.js";
import { depict, paintAxis } from "./pictures.js";
import { Player } from "./player.js";
import { acceptSeeking } from "./seeking.js";
import { Selection } from "./selection.js";
import { compare, inWords } from "./summary.js";
import { Turns } from "./turns.js";

const PICTURE_LEFT = 4; // px; where time begins, right of the coloured edge
const SETTLE_MS = 250; // after the last movement of the slider, what it changes is measured and drawn again
const TRACKS = { before: "a", after: "b", removed: "c" };
const ZOOM = 2;
const WORDS = { before: "Before", after: "After", removed: "Removed" };

/** Plays and draws two signals, `before` and `after`, and the difference between them, `removed`. */
export class Comparison {
  #tracks = element("tracks");
  #selected = radioGroup("selected", (name) => this.#select(name));
  #axis = new TimeAxis(this.#tracks, PICTURE_LEFT);
  #selection = new Selection(this.#axis, () => this.#player);
  #player = null;
  #buffers = null; // before and after, all noise taken away
  #rateHz = 0;
  #dryShare = 0; // of the signal before in the one after, as amplitude
  #pictures = null; // of the whole signals, by name
  #views = null; // of the part that is shown
  #loudness = null; // LUFS, by name
  #settling = new AbortController();
  #zooming = new AbortController();

  constructor() {
    element("play").addEventListener("click", () => this.#togglePlay());
    element("equal").addEventListener("change", () => this.#setGains());
    element("zoom-in").addEventListener("click", () => this.#zoom(1 / ZOOM));
    element("zoom-out").addEventListener("click", () => this.#zoom(ZOOM));
    acceptSeeking(this.#tracks, this.#axis, () => this.#player, () => !this.#selection.isOn);
    new ResizeObserver(() => this.#paint()).observe(this.#tracks);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#paint());
    this.#select(this.#selected.value());
  }

  /**
   * Measure and draw two signals.
   *
   * @param {{before: AudioBuffer, after: AudioBuffer}} buffers
   * @param {number} rateHz
   * @param {number} dryShare See `setDryShare`.
   * @param {AbortSignal} signal
   */
  async load(buffers, rateHz, dryShare, signal) {
    const turns = new Turns(signal);
    const samples = channelsOf(buffers.before);
    const [loudness, picture] = [await gatedLoudness(samples, rateHz, turns), await depict(samples, rateHz, turns)];
    signal.throwIfAborted();
    this.clear();
    this.#buffers = buffers;
    this.#rateHz = rateHz;
    this.#dryShare = dryShare;
    this.#loudness = { before: loudness };
    this.#pictures = { before: picture };
    this.#axis.reset(buffers.before.length / rateHz);
    await this.#measure(signal);
    this.#player = new Player(buffers, rateHz);
    this.#player.onChange = () => this.#showPlayer();
    this.#setGains();
  }

  /** Paint what was loaded, now that it is visible. */
  show() {
    this.#paint();
    this.#showPlayer();
  }

  clear() {
    this.#settling.abort();
    this.#zooming.abort();
    this.#player?.close();
    this.#player = this.#buffers = this.#pictures = this.#views = this.#loudness = null;
    this.#selection.clear();
  }

  pause() {
    this.#player?.pause();
  }

  /** Mix some of the signal before into the one after: heard at once, drawn a moment later. */
  async setDryShare(dryShare) {
    this.#dryShare = dryShare;
    if (this.#player === null) return;
    this.#setGains();
    this.#settling.abort();
    this.#settling = new AbortController();
    const { signal } = this.#settling;
    try {
      await new Promise((resolve) => setTimeout(resolve, SETTLE_MS));
      await this.#measure(signal);
    } catch (error) {
      if (!signal.aborted) throw error;
      return;
    }
    this.#setGains();
    this.#paint();
  }

  /** @returns {boolean} Whether the key was used. */
  key(key) {
    if (this.#player === null) return false;
    const name = Object.keys(TRACKS).find((each) => TRACKS[each] === key);
    if (key === " ") this.#togglePlay();
    else if (name) this.#selected.choose(name);
    else if (key === "x") this.#selected.other();
    else if (key === "l") this.#selection.toggle();
    else if (key === "+" || key === "=") this.#zoom(1 / ZOOM);
    else if (key === "-") this.#zoom(ZOOM);
    else if (key === "[" || key === "]") this.#selection.setEdge(key === "[" ? 0 : 1);
    else return false;
    return true;
  }

  /** Measure and draw what depends on the share of the signal before. */
  async #measure(signal) {
    signal.throwIfAborted();
    const turns = new Turns(signal);
    const [before, after] = [this.#samples("before"), this.#samples("after")];
    const loudness = await gatedLoudness(after, this.#rateHz, turns);
    const words = inWords(await compare(before, after, this.#rateHz, turns));
    const pictures = {
      after: await depict(after, this.#rateHz, turns),
      removed: await depict(this.#samples("removed"), this.#rateHz, turns),
    };
    signal.throwIfAborted();
    this.#loudness.after = loudness;
    Object.assign(this.#pictures, pictures);
    element("summary").textContent = words;
    await this.#depictView();
  }

  /** Get samples of a signal, all of them or those of a part, a channel each. */
  #samples(name, [fromS, toS] = [0, Infinity]) {
    const [first, end] = [fromS * this.#rateHz, toS * this.#rateHz].map(Math.round);
    const part = (buffer) => channelsOf(buffer).map((channel) => channel.subarray(first, end));
    const [before, wet] = [part(this.#buffers.before), part(this.#buffers.after)];
    const [ofBefore, ofWet] = mixOf(name, this.#dryShare);
    if (ofWet === 0) return before;
    if (ofBefore === 0) return wet;
    return wet.map((channel, index) => channel.map((value, at) => ofWet * value + ofBefore * before[index][at]));
  }

  /** Compute the pictures of the part that is shown. @returns {Promise<boolean>} False if another part is shown by now. */
  async #depictView() {
    this.#zooming.abort();
    this.#zooming = new AbortController();
    const { signal } = this.#zooming;
    try {
      this.#views = this.#axis.isWhole ? this.#pictures : await this.#picturesOf(this.#axis.span, signal);
    } catch (error) {
      if (!signal.aborted) throw error;
      return false;
    }
    return true;
  }

  async #picturesOf(span, signal) {
    const turns = new Turns(signal);
    const pictures = {};
    for (const name of Object.keys(TRACKS)) pictures[name] = await depict(this.#samples(name, span), this.#rateHz, turns);
    return pictures;
  }

  /** Zoom around the position, at first into what is repeated. @param {number} factor Of the time that is shown. */
  async #zoom(factor) {
    if (this.#player === null) return;
    const loop = this.#selection.span;
    if (factor < 1 && loop && loop[1] - loop[0] < this.#axis.lengthS) this.#axis.show(loop);
    else this.#axis.zoom(factor, this.#player.positionS);
    if (!(await this.#depictView())) return;
    this.#paint();
    const [fromS, toS] = this.#axis.span;
    say(`Showing ${fromS.toFixed(1)} to ${toS.toFixed(1)} s`);
  }

  #select(name) {
    for (const track of this.#tracks.querySelectorAll(".track")) {
      track.classList.toggle("selected", track.classList.contains(TRACKS[name]));
    }
    if (this.#player === null) return;
    this.#setGains();
    say(WORDS[name]);
  }

  #togglePlay() {
    if (this.#player.isPlaying) this.#player.pause();
    else this.#player.play();
  }

  #setGains() {
    if (this.#player === null) return;
    const { before, after } = this.#loudness;
    const louderDb = before - after;
    const isMeasured = Number.isFinite(louderDb);
    const levels = { before: 1, after: 1, removed: 1 };
    if (element("equal").checked && isMeasured) {
      levels[louderDb > 0 ? "before" : "after"] = 10 ** (-Math.abs(louderDb) / 20);
    }
    const name = this.#selected.value();
    const mix = mixOf(name, this.#dryShare);
    this.#player.setGains({ before: levels[name] * mix[0], after: levels[name] * mix[1] });
    this.#showLoudness(louderDb, isMeasured);
  }

  #showLoudness(louderDb, isMeasured) {
    const text = element("loudness");
    if (!isMeasured) text.textContent = "One of the signals is silent, so their loudness cannot be matched.";
    else {
      const measured = `Loudness: before ${lufs(this.#loudness.before)}, after ${lufs(this.#loudness.after)}.`;
      const matched = `${louderDb > 0 ? "Before" : "After"} is played ${Math.abs(louderDb).toFixed(1)} dB softer.`;
      text.textContent = `${measured} ${element("equal").checked ? matched : "Both are played unchanged."}`;
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
    element("playhead").style.transform = `translateX(${this.#axis.placeOf(positionS).toFixed(1)}px)`;
    show(element("playhead"), this.#axis.shows(positionS));
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
    const peak = Math.max(pictures.before.peak, pictures.after.peak);
    const topDb = Math.max(pictures.before.topDb, pictures.after.topDb);
    const style = getComputedStyle(this.#tracks);
    for (const [name, track] of Object.entries(TRACKS)) {
      const [wave, spectrogram] = this.#tracks.querySelectorAll(`.track.${track} canvas`);
      this.#views[name].paintWave(wave, style.getPropertyValue(`--${name}`), peak);
      this.#views[name].paintSpectrogram(spectrogram, topDb);
    }
    paintAxis(this.#tracks.querySelector(".axis"), this.#axis.span, PICTURE_LEFT);
    element("zoom-out").disabled = this.#axis.isWhole;
    this.#selection.show();
    this.#showPlayer();
  }
}

/** Shares of the signals before and after in one that is played or drawn. @returns {[number, number]} */
const mixOf = (name, dryShare) =>
  ({ before: [1, 0], after: [dryShare, 1 - dryShare], removed: [1 - dryShare, dryShare - 1] })[name];
const channelsOf = (buffer) => Array.from({ length: buffer.numberOfChannels }, (_, index) => buffer.getChannelData(index));
const lufs = (loudness) => `${loudness.toFixed(1)} LUFS`;
