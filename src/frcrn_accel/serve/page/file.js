// The File tab: choose, drop or record a file, denoise it, and show the result.

import { Comparison } from "./comparison.js";
import { NotPlayable, decodeBoth } from "./decode.js";
import { save } from "./download.js";
import { acceptDrops } from "./drop.js";
import { element, say, show, showFacts, showProblem } from "./elements.js";
import { Jobs } from "./jobs.js";
import { limitSlider } from "./limit.js";
import { RecordButton } from "./record-button.js";
import { Transfer, showPhase } from "./transfer.js";
import { wavFormat } from "./wav.js";

/** The File tab. */
export class FileMode {
  #showProblem = (problem) => showProblem(element("file-error"), problem);
  #limit = limitSlider("file-limit");
  #jobs = new Jobs(this.#showProblem);
  #transfer = new Transfer();
  #comparison = new Comparison();
  #recordButton = new RecordButton((file) => this.open(file), this.#showProblem);
  #file = null;
  #result = null; // {answer, limitDb}

  constructor() {
    element("choose").addEventListener("click", () => element("chosen").click());
    element("chosen").addEventListener("change", ({ target }) => {
      if (target.files.length) this.open(target.files[0]);
      target.value = ""; // so that choosing the same file again is a change, too
    });
    element("again").addEventListener("click", () => this.open(this.#file));
    element("download").addEventListener("click", () => this.#download());
    acceptDrops((file) => this.open(file), this.#showProblem);
  }

  setDefaultLimit(limitDb) {
    this.#limit.setDefault(limitDb);
  }

  /** @returns {boolean} Whether the key was used. */
  key(key) {
    return this.#comparison.key(key);
  }

  /** Stop playing and recording: the other tab was selected. */
  leave() {
    this.#comparison.pause();
    this.#recordButton.stop();
  }

  /** Denoise a file and show the result. @param {File} file */
  async open(file) {
    await this.#jobs.run(async (signal) => {
      this.#clear();
      this.#file = file;
      const limitDb = this.#limit.value();
      const answer = await this.#transfer.send(file, { format: "wav", limitDb, signal, verb: "Denoising" });
      this.#result = { answer, limitDb };
      this.#transfer.setProcessingTime(file, processingTime(answer));
      element("result-title").textContent = file.name;
      element("speed").textContent = speed(duration(answer), processingTime(answer));
      const format = await wavFormat(answer.blob);
      showFacts(element("facts"), facts(answer, format));
      await this.#show(file, await this.#obstacle(file, answer, format, signal), signal);
    });
    show(element("again"), this.#file !== null);
  }

  /** Prepare both signals for playback. @returns {Promise<string>} why they cannot be played; "" if they can. */
  async #obstacle(file, answer, { rateHz, channels }, signal) {
    showPhase("Drawing");
    // With a limit of 0 dB all of the noise is left in: the result is the decoded original.
    const original = { format: "wav", limitDb: 0, signal, verb: "Decoding the original" };
    const decodeOnServer = async () => (await this.#transfer.send(file, original)).blob;
    try {
      const options = { durationS: duration(answer), rateHz, channels, decodeOnServer };
      await this.#comparison.load(await decodeBoth(file, answer.blob, options), rateHz, signal);
      return "";
    } catch (error) {
      if (error instanceof NotPlayable) return error.message;
      throw error;
    }
  }

  #show(file, obstacle, signal) {
    signal.throwIfAborted();
    element("not-playable").textContent = obstacle;
    show(element("not-playable"), obstacle);
    show(element("listening"), !obstacle);
    show(element("result"), true);
    this.#comparison.show();
    say(`Denoised ${file.name}`);
    // Move the focus to the next thing to do, unless the user is doing something else.
    const at = document.activeElement;
    if (at === document.body || at.closest("#drop, #again")) element(obstacle ? "download" : "play").focus();
  }

  async #download() {
    const format = element("format").value;
    const { answer, limitDb } = this.#result;
    const file = this.#file;
    if (format === "wav") return save(answer, file.name);
    await this.#jobs.run(async (signal) => {
      save(await this.#transfer.send(file, { format, limitDb, signal, verb: "Denoising for the download" }), file.name);
      say("Downloaded");
    });
  }

  #clear() {
    this.#comparison.clear();
    this.#result = null;
    show(element("result"), false);
  }
}

const duration = ({ header }) => Number(header("X-Audio-Seconds"));
const processingTime = ({ header }) => Number(header("X-Processing-Seconds"));

function facts(answer, { rateHz, channels }) {
  const { header } = answer;
  const clipped = Number(header("X-Clipped-Samples"));
  const factor = header("X-Real-Time-Factor");
  return [
    ["Length", `${duration(answer).toFixed(2)} s`],
    ["Processing time", `${processingTime(answer).toFixed(2)} s`],
    ["Real-time factor", factor && Number(factor).toFixed(3)],
    ["Model", decodeURIComponent(header("X-Model"))],
    ["Backend", decodeURIComponent(header("X-Backend"))],
    ["Audio", `${rateHz / 1000} kHz, ${channels === 1 ? "mono" : channels === 2 ? "stereo" : `${channels} channels`}`],
    ["Clipped samples", clipped ? String(clipped) : ""],
  ];
}

function speed(audioS, processingS) {
  if (!audioS || !processingS) return "";
  const times = audioS / processingS;
  return `${times < 10 ? times.toFixed(1) : times.toFixed(0)}× real time`;
}
