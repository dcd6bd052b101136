// The result on the page: the signals as pictures, and a player that switches between them.

import { element, minutes, radioGroup, say } from "./elements.js";
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
const WORDS = { before: "Before", after: "After", removed: "Removed" };

/** Plays and draws two signals, `before` and `after`, and the difference between them, `removed`. */
export class Comparison {
  #tracks = element("tracks");
  #selected = radioGroup("selected", (name) => this.#select(name));
  #selection = new Selection(PICTURE_LEFT, () => this.#player);
  #player = null;
  #buffers = null; // before and after, all noise taken away
  #rateHz = 0;
  #dryShare = 0; // of the signal before in the one after, as amplitude
  #pictures = null; // by name
  #loudness = null; // LUFS, by name
  #settling = new AbortController();

  constructor() {
    element("play").addEventListener("click", () => this.#togglePlay());
    element("equal").addEventListener("change", () => this.#setGains());
    acceptSeeking(this.#tracks, PICTURE_LEFT, () => this.#player, () => !this.#selection.isOn);
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
    this.#player?.close();
    this.#player = this.#buffers = this.#pictures = this.#loudness = null;
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
    else if (key === "[" || key === "]") this.#selection.setEdge(key === "[" ? 0 : 1);
    else return false;
    return true;
  }

  /** Measure and draw what depends on the share of the signal before. */
  async #measure(signal) {
    signal.throwIfAborted();
    const turns = new Turns(signal);
    const [before, wet] = [channelsOf(this.#buffers.before), channelsOf(this.#buffers.after)];
    const share = this.#dryShare;
    const mix = (ofWet, ofBefore) =>
      wet.map((channel, index) => channel.map((value, at) => ofWet * value + ofBefore * before[index][at]));
    const after = share ? mix(1 - share, share) : wet;
    const loudness = await gatedLoudness(after, this.#rateHz, turns);
    const words = inWords(await compare(before, after, this.#rateHz, turns));
    const pictures = {
      after: await depict(after, this.#rateHz, turns),
      removed: await depict(mix(share - 1, 1 - share), this.#rateHz, turns),
    };
    signal.throwIfAborted();
    this.#loudness.after = loudness;
    Object.assign(this.#pictures, pictures);
    element("summary").textContent = words;
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
    const share = this.#dryShare;
    const name = this.#selected.value();
    const mix = { before: [1, 0], after: [share, 1 - share], removed: [1 - share, share - 1] }[name];
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
    const peak = Math.max(pictures.before.peak, pictures.after.peak);
    const topDb = Math.max(pictures.before.topDb, pictures.after.topDb);
    const style = getComputedStyle(this.#tracks);
    for (const [name, track] of Object.entries(TRACKS)) {
      const [wave, spectrogram] = this.#tracks.querySelectorAll(`.track.${track} canvas`);
      pictures[name].paintWave(wave, style.getPropertyValue(`--${name}`), peak);
      pictures[name].paintSpectrogram(spectrogram, topDb);
    }
    paintAxis(this.#tracks.querySelector(".axis"), this.#player.durationS, PICTURE_LEFT);
    this.#selection.show();
    this.#showPlayer();
  }
}

const channelsOf = (buffer) => Array.from({ length: buffer.numberOfChannels }, (_, index) => buffer.getChannelData(index));
const lufs = (loudness) => `${loudness.toFixed(1)} LUFS`;
