// The File tab: choose, drop or record files, denoise them, and show the results.

import { bandBox } from "./band.js";
import { Batch } from "./batch.js";
import { Comparison } from "./comparison.js";
import { NotPlayable, decodeBoth } from "./decode.js";
import { resultName, save } from "./download.js";
import { acceptDrops } from "./drop.js";
import { element, say, show, showFacts, showProblem } from "./elements.js";
import { models, traits } from "./engine.js";
import { offerExamples } from "./examples.js";
import { Cancelled, Jobs } from "./jobs.js";
import { limitSlider } from "./limit.js";
import { Problem } from "./problem.js";
import { RecordButton } from "./record-button.js";
import { Transfer, showPhase } from "./transfer.js";
import { wavFormat } from "./wav.js";
import { distinct, zipOf } from "./zip.js";

/** The File tab. */
export class FileMode {
  #showProblem = (problem) => showProblem(element("file-error"), problem);
  #limit = limitSlider("file-limit", (limitDb) => this.#comparison.setDryShare(shareOf(limitDb)));
  #band = bandBox("file-band", () => this.open(this.#files));
  #jobs = new Jobs(this.#showProblem);
  #shows = new Jobs(this.#showProblem); // while files are being denoised, others can be shown and downloaded
  #transfer = new Transfer();
  #comparison = new Comparison();
  #batch = new Batch();
  #recordButton = new RecordButton((file) => this.open([file]), this.#showProblem);
  #files = [];
  #answers = []; // of each file, without a limit; null before it is done
  #shown = null; // index
  #showing = 0; // results that are being prepared to be shown

  constructor() {
    element("choose").addEventListener("click", () => element("chosen").click());
    element("chosen").addEventListener("change", ({ target }) => {
      if (target.files.length) this.open([...target.files]);
      target.value = ""; // so that choosing the same file again is a change, too
    });
    element("again").addEventListener("click", () => this.open(this.#files));
    element("download").addEventListener("click", () => this.#download());
    element("archive").addEventListener("click", () => this.#downloadAll());
    for (const option of element("format").options) option.hidden = option.disabled = !traits.formats.includes(option.value);
    show(element("formats"), traits.formats.length > 1);
    acceptDrops((files) => this.open(files), this.#showProblem);
    offerExamples((files) => this.open(files), this.#showProblem);
  }

  /** Show the defaults of the engine. @param {object} model Its entry in `GET /v1/models`. */
  setDefaults(model) {
    this.#limit.setDefault(model.attenuation_limit_db);
    this.#band.setDefault(model.high_band);
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

  /** Denoise files and show the first result. @param {File[]} chosen */
  async open(chosen) {
    const files = [...chosen]; // an array of its own: once `#files` is another one, other files have been opened
    this.#files = files;
    this.#answers = files.map(() => null);
    this.#batch.start(files, (index) => this.#shows.run((signal) => this.#show(index, signal)));
    this.#clear();
    show(element("again"), false);
    await this.#jobs.run((signal) => this.#denoiseAll(files, signal));
    if (this.#files === files) show(element("again"), this.#answers.includes(null));
  }

  async #denoiseAll(files, signal) {
    for (const [index, file] of files.entries()) {
      try {
        this.#batch.set(index, "denoising");
        const verb = files.length > 1 ? `Denoising ${index + 1} of ${files.length}` : "Denoising";
        const options = { format: "wav", limitDb: Infinity, highBand: this.#band.value(), signal, verb };
        const answer = await this.#transfer.send(file, options);
        signal.throwIfAborted();
        this.#answers[index] = answer;
        this.#batch.set(index, "done", { isDone: true });
        if (this.#shown === null && !this.#showing) await this.#show(index, signal);
      } catch (error) {
        if (this.#files !== files) throw error; // the list shows other files now
        this.#batch.set(index, signal.aborted ? "cancelled" : error.message, { isError: true });
        if (signal.aborted || files.length === 1 || !(error instanceof Problem)) throw error;
      }
    }
    const done = this.#answers.filter((answer) => answer !== null).length;
    this.#batch.showArchive(done > 1);
    if (files.length > 1) say(`Denoised ${done} of ${files.length} files`);
  }

  /** Show the result of a file. */
  async #show(index, signal) {
    this.#showing += 1;
    try {
      await this.#prepare(index, signal);
    } finally {
      this.#showing -= 1;
    }
  }

  async #prepare(index, signal) {
    const files = this.#files;
    const [file, answer] = [files[index], this.#answers[index]];
    this.#clear();
    const [model] = await models();
    this.setDefaults(model);
    element("result-title").textContent = file.name;
    element("speed").textContent = speed(answer);
    const format = await wavFormat(answer.blob);
    show(element("file-band-box"), format.rateHz > MODEL_RATE_HZ);
    showFacts(element("facts"), facts(answer, format));
    const obstacle = await this.#obstacle(file, answer, format, signal);
    signal.throwIfAborted();
    if (this.#files !== files) throw new Cancelled(); // other files were opened meanwhile
    this.#shown = index;
    this.#batch.select(index);
    element("not-playable").textContent = obstacle;
    show(element("not-playable"), obstacle);
    show(element("listening"), !obstacle);
    show(element("result"), true);
    this.#comparison.show();
    say(`Denoised ${file.name}`);
    // Move the focus to the next thing to do, unless the user is doing something else.
    const at = document.activeElement;
    if (at === document.body || at.closest("#drop, #again, #batch")) element(obstacle ? "download" : "play").focus();
  }

  /** Prepare the signals for playback. @returns {Promise<string>} why they cannot be played; "" if they can. */
  async #obstacle(file, answer, { rateHz, channels }, signal) {
    showPhase("Drawing");
    // With a limit of 0 dB all of the noise is left in: the result is the decoded original.
    const original = { format: "wav", limitDb: 0, signal, verb: "Decoding the original" };
    const decodeAsWav = async () => (await this.#transfer.send(file, original)).blob;
    try {
      const options = { durationS: answer.audioS, rateHz, channels, decodeAsWav };
      const buffers = await decodeBoth(file, answer.blob, options);
      await this.#comparison.load(buffers, rateHz, shareOf(this.#limit.value()), signal);
      return "";
    } catch (error) {
      if (error instanceof NotPlayable) return error.message;
      throw error;
    }
  }

  #download() {
    return this.#shows.run(async (signal) => {
      const file = this.#files[this.#shown];
      const { blob, suffix } = await this.#finished(this.#shown, signal);
      save(blob, resultName(file.name, suffix));
      say("Downloaded");
    });
  }

  #downloadAll() {
    return this.#jobs.run(async (signal) => {
      const results = [];
      for (const [index, file] of this.#files.entries()) {
        if (this.#answers[index] === null) continue;
        const { blob, suffix } = await this.#finished(index, signal);
        results.push({ name: resultName(file.name, suffix), blob });
      }
      const names = distinct(results.map(({ name }) => name));
      save(await zipOf(results.map(({ blob }, index) => ({ name: names[index], blob }))), "denoised.zip");
      say("Downloaded");
    });
  }

  /** Get the result in the chosen format and with the chosen limit. */
  async #finished(index, signal) {
    const format = element("format").value;
    const limitDb = this.#limit.value();
    const full = this.#answers[index];
    if (format === "wav" && limitDb === Infinity) return full;
    const options = { format, limitDb, highBand: this.#band.value(), full, signal, verb: "Preparing the download" };
    const answer = await this.#transfer.send(this.#files[index], options);
    signal.throwIfAborted();
    return answer;
  }

  #clear() {
    this.#comparison.clear();
    this.#shown = null;
    show(element("result"), false);
  }
}

const MODEL_RATE_HZ = 16_000;
const shareOf = (limitDb) => 10 ** (-limitDb / 20);

function facts(answer, { rateHz, channels }) {
  const { audioS, processingS } = answer;
  return [
    ["Length", `${audioS.toFixed(2)} s`],
    ["Processing time", `${processingS.toFixed(2)} s`],
    ["Real-time factor", audioS > 0 && (processingS / audioS).toFixed(3)],
    ["Model", answer.model],
    ["Backend", answer.backend],
    ["Audio", `${rateHz / 1000} kHz, ${channels === 1 ? "mono" : channels === 2 ? "stereo" : `${channels} channels`}`],
    ["Clipped samples", answer.clipped ? String(answer.clipped) : ""],
    ["Warnings", answer.warnings],
  ];
}

function speed({ audioS, processingS }) {
  if (!audioS || !processingS) return "";
  const times = audioS / processingS;
  return `${times < 10 ? times.toFixed(1) : times.toFixed(0)}× real time`;
}
