// Files: from the one that is dropped to the one that is downloaded.

import { element, minutes, radioGroup, say, show, showFacts, showLevel, showProblem } from "./elements.js";
import { limitSlider } from "./limit.js";
import { gatedLoudness } from "./loudness.js";
import { record } from "./microphone.js";
import { depict, paintAxis } from "./pictures.js";
import { Player } from "./player.js";
import { Problem, denoise } from "./server.js";
import { Turns } from "./turns.js";
import { wavFormat } from "./wav.js";

const MOST_DECODED_BYTES = 1 << 30; // of both signals, in the browser's memory
const PICTURE_LEFT = 4; // px; where time begins: behind the coloured edge
const NAMES = ["before", "after"];

/** The half of the page for files. */
export class FileMode {
  #drop = element("drop");
  #problem = element("file-error");
  #tracks = element("tracks");
  #limit = limitSlider("file-limit");
  #heard = radioGroup("heard", (name) => this.#hear(name));
  #file = null;
  #result = null; // {answer, limitDb, durationS}
  #measured = null; // {file, processingS}: what the same file will take again
  #player = null;
  #pictures = null;
  #loudness = null;
  #running = null;
  #recorder = null;

  constructor() {
    element("choose").addEventListener("click", () => element("chosen").click());
    element("chosen").addEventListener("change", ({ target }) => {
      if (target.files.length) this.open(target.files[0]);
      target.value = ""; // the same file again is a choice too
    });
    element("record").addEventListener("click", () => this.#toggleRecording());
    element("again").addEventListener("click", () => this.open(this.#file));
    element("cancel").addEventListener("click", () => this.#cancel());
    element("play").addEventListener("click", () => this.#togglePlay());
    element("equal").addEventListener("change", () => this.#setLevels());
    element("download").addEventListener("click", () => this.#download());
    this.#acceptDrops();
    this.#acceptSeeking();
    new ResizeObserver(() => this.#paint()).observe(this.#tracks);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#paint());
    this.#hear(this.#heard.value());
  }

  setDefaultLimit(limitDb) {
    this.#limit.setDefault(limitDb);
  }

  /** @returns {boolean} Whether it was one of its keys. */
  key(key) {
    if (this.#player === null) return false;
    if (key === " ") this.#togglePlay();
    else if (key === "a" || key === "b") this.#heard.choose(key === "a" ? "before" : "after");
    else if (key === "x") this.#heard.other();
    else return false;
    return true;
  }

  /** Be silent, and record no more: the other half is in front. */
  leave() {
    this.#player?.pause();
    this.#endRecording(null);
  }

  /** Denoise a file, and show what became of it. @param {File} file */
  async open(file) {
    await this.#run(async (signal) => {
      this.#clear();
      this.#file = file;
      const limitDb = this.#limit.value();
      const answer = await this.#ask(file, "wav", limitDb, signal, "Denoising");
      const [durationS, processingS] = ["X-Audio-Seconds", "X-Processing-Seconds"].map((name) => Number(answer.header(name)));
      this.#result = { answer, limitDb, durationS };
      this.#measured = { file, processingS };
      element("result-title").textContent = file.name;
      element("speed").textContent = speed(durationS, processingS);
      const format = await wavFormat(answer.blob);
      this.#showFacts(format);
      const obstacle = await this.#prepareListening(format, signal);
      signal.throwIfAborted();
      element("not-heard").textContent = obstacle;
      show(element("not-heard"), obstacle);
      show(element("listening"), !obstacle);
      show(element("result"), true);
      this.#paint();
      this.#showPlayer();
      say(`${file.name} is denoised.`);
      // On to what comes next, but not away from what somebody is doing.
      const at = document.activeElement;
      if (at === document.body || at.closest("#drop, #again")) element(obstacle ? "download" : "play").focus();
    });
    show(element("again"), this.#file !== null);
  }

  /** Run work that can be given up, one at a time; what goes wrong is shown. */
  async #run(work) {
    this.#running?.abort(new Cancelled());
    const controller = new AbortController();
    this.#running = controller;
    showProblem(this.#problem, null);
    try {
      await work(controller.signal);
    } catch (error) {
      if (error instanceof Cancelled) {
        if (this.#running === controller) say("Cancelled");
      } else {
        say("");
        showProblem(this.#problem, error);
      }
    } finally {
      if (this.#running === controller) {
        this.#running = null;
        show(element("work"), false);
      }
    }
  }

  #cancel() {
    this.#running?.abort(new Cancelled());
  }

  /** Send a file; how far it is, is shown. */
  async #ask(file, format, limitDb, signal, verb) {
    const progress = element("progress");
    const phase = element("phase");
    show(element("work"), true);
    const expectedS = this.#measured?.file === file ? this.#measured.processingS : null;
    let timer = null;
    const showPhase = (text, share) => {
      phase.textContent = text;
      if (share === null) progress.removeAttribute("value");
      else progress.value = share;
    };
    const onSent = (share) => {
      if (share < 1) return showPhase(`Sending, ${Math.floor(100 * share)} %`, share);
      if (timer !== null) return;
      const began = performance.now();
      const tell = () => {
        const passedS = (performance.now() - began) / 1000;
        if (expectedS === null) return showPhase(`${verb}, ${passedS.toFixed(0)} s`, null);
        const leftS = Math.max(0, expectedS - passedS);
        showPhase(`${verb}, about ${Math.ceil(leftS)} s left`, Math.min(0.98, passedS / Math.max(expectedS, 0.001)));
      };
      timer = setInterval(tell, 250);
      tell();
      say(verb);
    };
    const onReceived = (share) => {
      clearInterval(timer);
      showPhase(`Receiving, ${Math.floor(100 * share)} %`, share);
    };
    showPhase("Sending", 0);
    say(`Sending ${file.name}`);
    try {
      return await denoise(file, { format, limitDb, signal, onSent, onReceived });
    } finally {
      clearInterval(timer);
    }
  }

  /** Decode, measure and draw both signals. @returns {Promise<string>} why that cannot be; "" if it can. */
  async #prepareListening({ rateHz, channels }, signal) {
    const { answer, durationS } = this.#result;
    if (!durationS) return "There is no audio in this file: nothing to listen to.";
    if (NAMES.length * durationS * rateHz * channels * Float32Array.BYTES_PER_ELEMENT > MOST_DECODED_BYTES) {
      return "This is too long to listen to in the browser. Download it.";
    }
    element("phase").textContent = "Drawing";
    element("progress").removeAttribute("value");
    let decoder;
    const buffers = {};
    try {
      decoder = new OfflineAudioContext(1, 1, rateHz); // it decodes to its own rate: nothing is resampled
      buffers.after = await decoder.decodeAudioData(await answer.blob.arrayBuffer());
    } catch {
      return `This browser does not play WAV files like this one (${rateHz / 1000} kHz, ${channels} channels). Download it.`;
    }
    buffers.before = await this.#decodeOriginal(decoder, buffers.after, signal);
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
    this.#player.hear(this.#heard.value());
    this.#setLevels();
    return "";
  }

  /** The original, in step with the result. */
  async #decodeOriginal(decoder, after, signal) {
    try {
      const before = await decoder.decodeAudioData(await this.#file.arrayBuffer());
      if (before.length === after.length && before.numberOfChannels === after.numberOfChannels) return before;
    } catch {
      // A format that the browser does not know.
    }
    // Then the server decodes it: with all of the noise left in, the result is the original. So it does too where the
    // browser's decoder cuts a lossy file elsewhere, which would put the two out of step.
    const { blob } = await this.#ask(this.#file, "wav", 0, signal, "Decoding the original");
    return decoder.decodeAudioData(await blob.arrayBuffer());
  }

  #showFacts({ rateHz, channels }) {
    const { header } = this.#result.answer;
    const clipped = Number(header("X-Clipped-Samples"));
    const factor = header("X-Real-Time-Factor");
    showFacts(element("facts"), [
      ["Length", `${Number(header("X-Audio-Seconds")).toFixed(2)} s`],
      ["Computed in", `${Number(header("X-Processing-Seconds")).toFixed(2)} s`],
      ["Real-time factor", factor && Number(factor).toFixed(3)],
      ["Model", header("X-Model")],
      ["Engine", header("X-Backend")],
      ["Audio", `${rateHz / 1000} kHz, ${channels === 1 ? "mono" : channels === 2 ? "stereo" : `${channels} channels`}`],
      ["Clipped samples", clipped ? String(clipped) : ""],
    ]);
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
    if (!isMeasured) text.textContent = "One of them is silent, so their loudness is as it is.";
    else {
      const measured = `Loudness: before ${lufs(before)}, after ${lufs(after)}.`;
      const matched = `${louderDb > 0 ? "Before" : "After"} is played ${Math.abs(louderDb).toFixed(1)} dB softer.`;
      text.textContent = `${measured} ${isOn ? matched : "Both are played as they are."}`;
    }
  }

  #hear(name) {
    this.#player?.hear(name);
    for (const track of this.#tracks.querySelectorAll(".track")) {
      track.classList.toggle("heard", track.classList.contains(name === "before" ? "a" : "b"));
    }
    if (this.#player) say(name === "before" ? "Before" : "After");
  }

  #togglePlay() {
    if (this.#player.isPlaying) this.#player.pause();
    else this.#player.play();
  }

  /** Button, clock and playhead; again for each frame while it plays. */
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

  async #download() {
    const format = element("format").value;
    const { answer, limitDb } = this.#result;
    const file = this.#file;
    if (format === "wav") return save(answer, file.name);
    await this.#run(async (signal) => {
      save(await this.#ask(file, format, limitDb, signal, "Denoising for the download"), file.name);
      say("Downloaded");
    });
  }

  #clear() {
    this.#player?.close();
    this.#player = this.#pictures = this.#loudness = this.#result = null;
    show(element("result"), false);
  }

  async #toggleRecording() {
    const button = element("record");
    if (this.#recorder !== null) return this.#endRecording(null);
    showProblem(this.#problem, null);
    button.disabled = true;
    try {
      this.#recorder = await record({
        onLevel: (levelDb, recordedS) => {
          showLevel(element("recording-level"), levelDb);
          element("recorded").textContent = minutes(recordedS);
        },
        onEnd: (problem) => this.#endRecording(problem),
      });
      button.textContent = "Stop recording";
      element("recorded").textContent = minutes(0);
      show(element("recording"), true);
      say("Recording");
    } catch (error) {
      showProblem(this.#problem, error);
    } finally {
      button.disabled = false;
    }
  }

  async #endRecording(problem) {
    const recorder = this.#recorder;
    if (recorder === null) return;
    this.#recorder = null;
    element("record").textContent = "Record";
    show(element("recording"), false);
    const file = await recorder.stop();
    if (problem !== null) showProblem(this.#problem, problem);
    else await this.open(file);
  }

  #acceptDrops() {
    let inside = 0; // elements on the page that what is dragged is over
    const mark = () => this.#drop.classList.toggle("over", inside > 0);
    document.addEventListener("dragenter", (event) => {
      event.preventDefault();
      inside++;
      mark();
    });
    document.addEventListener("dragleave", () => {
      inside--;
      mark();
    });
    document.addEventListener("dragover", (event) => event.preventDefault());
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      inside = 0;
      mark();
      const { files, items } = event.dataTransfer;
      const isFolder = [...items].some((item) => item.webkitGetAsEntry?.()?.isDirectory);
      if (files.length === 1 && !isFolder) this.open(files[0]);
      else showProblem(this.#problem, new Problem("Not a file", "Drop one audio file. For folders there is frcrn-accel denoise."));
    });
  }

  #acceptSeeking() {
    const tracks = this.#tracks;
    const seek = (event) => {
      const box = tracks.getBoundingClientRect();
      const share = (event.clientX - box.left - PICTURE_LEFT) / (box.width - PICTURE_LEFT);
      this.#player.seek(share * this.#player.durationS);
    };
    tracks.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      tracks.setPointerCapture(event.pointerId);
      seek(event);
    });
    tracks.addEventListener("pointermove", (event) => tracks.hasPointerCapture(event.pointerId) && seek(event));
    tracks.addEventListener("keydown", (event) => {
      const { positionS, durationS } = this.#player;
      const stepS = event.shiftKey ? 5 : 1;
      const to = {
        ArrowLeft: positionS - stepS,
        ArrowDown: positionS - stepS,
        ArrowRight: positionS + stepS,
        ArrowUp: positionS + stepS,
        PageDown: positionS - 10,
        PageUp: positionS + 10,
        Home: 0,
        End: durationS,
      }[event.key];
      if (to === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      this.#player.seek(to);
    });
  }
}

class Cancelled extends Error {}

const channelsOf = (buffer) => Array.from({ length: buffer.numberOfChannels }, (_, index) => buffer.getChannelData(index));
const lufs = (loudness) => `${loudness.toFixed(1)} LUFS`;

function speed(audioS, processingS) {
  if (!audioS || !processingS) return "";
  const times = audioS / processingS;
  return `${times < 10 ? times.toFixed(1) : times.toFixed(0)} times as fast as it plays`;
}

/** Give a result to the person, under the name of the original. */
function save({ blob, header }, name) {
  const suffix = /filename="[^"]*\.(\w+)"/.exec(header("Content-Disposition"))[1];
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `${name.replace(/\.[^.]*$/, "")}.denoised.${suffix}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
