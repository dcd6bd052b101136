// The button that records from the microphone.

import { element, minutes, say, show, showLevel } from "./elements.js";
import { record } from "./microphone.js";

/** Starts and stops a recording. */
export class RecordButton {
  #button = element("record");
  #onFile;
  #showProblem;
  #recorder = null;
  #isWanted = false; // whether to record once the microphone is open

  /**
   * @param {(file: File) => void} onFile Called with a finished recording.
   * @param {(problem: Error|null) => void} showProblem Shows an error, or clears it (null).
   */
  constructor(onFile, showProblem) {
    this.#onFile = onFile;
    this.#showProblem = showProblem;
    this.#button.addEventListener("click", () => (this.#recorder === null ? this.#start() : this.stop()));
  }

  /** Stop recording, if it is on. @param {Error|null} problem Shown instead of using the recording. */
  async stop(problem = null) {
    this.#isWanted = false;
    const recorder = this.#recorder;
    if (recorder === null) return;
    this.#recorder = null;
    this.#button.textContent = "Record";
    show(element("recording"), false);
    const file = await recorder.stop();
    if (problem !== null) this.#showProblem(problem);
    else this.#onFile(file);
  }

  async #start() {
    this.#showProblem(null);
    this.#button.disabled = true;
    this.#isWanted = true;
    try {
      const recorder = await record({
        onLevel: (levelDb, recordedS) => {
          showLevel(element("recording-level"), levelDb);
          element("recorded").textContent = minutes(recordedS);
        },
        onEnd: (problem) => this.stop(problem),
      });
      if (!this.#isWanted) {
        await recorder.stop(); // the other tab was selected meanwhile
        return;
      }
      this.#recorder = recorder;
      this.#button.textContent = "Stop recording";
      element("recorded").textContent = minutes(0);
      show(element("recording"), true);
      say("Recording");
    } catch (error) {
      this.#showProblem(error);
    } finally {
      this.#button.disabled = false;
    }
  }
}
