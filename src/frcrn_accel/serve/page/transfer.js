// Have a file denoised, with the progress on the page.

import { element, say, show } from "./elements.js";
import { denoise } from "./engine.js";

const UPDATE_MS = 250;
const STAGES = { sending: "Sending", receiving: "Receiving", loading: "Loading the model", decoding: "Decoding" };

/** Has files denoised. Once a file has been processed, its next run shows the remaining time. */
export class Transfer {
  #timed = null; // {file, processingS} of the last file that was processed

  /**
   * Have a file denoised.
   *
   * @param {File} file
   * @param {object} options See `denoise` of the engine, and:
   * @param {string} options.verb What is done with the file, e.g. "Denoising".
   * @returns {Promise<import("./server.js").Answer>}
   */
  async send(file, { verb, ...options }) {
    const expectedS = this.#timed?.file === file ? this.#timed.processingS : null;
    let [timer, announced] = [null, ""];
    const onProgress = (stage, share) => {
      clearInterval(timer);
      timer = null;
      const words = STAGES[stage] ?? verb;
      if (words !== announced) say(`${words} ${file.name}`);
      announced = words;
      if (stage !== "computing" || share !== null) {
        return showPhase(share === null ? words : `${words}, ${Math.floor(100 * share)} %`, share);
      }
      const began = performance.now();
      const update = () => showProcessing(verb, (performance.now() - began) / 1000, expectedS);
      timer = setInterval(update, UPDATE_MS);
      update();
    };
    showPhase(verb);
    try {
      const answer = await denoise(file, { ...options, onProgress });
      this.#timed = { file, processingS: answer.processingS };
      return answer;
    } finally {
      clearInterval(timer);
    }
  }
}

/**
 * Show what is being done.
 *
 * @param {string} text
 * @param {number|null} share Progress, 0 to 1; null if it is not known.
 */
export function showPhase(text, share = null) {
  const progress = element("progress");
  show(element("work"), true);
  element("phase").textContent = text;
  if (share === null) progress.removeAttribute("value");
  else progress.value = share;
}

function showProcessing(verb, elapsedS, expectedS) {
  if (expectedS === null) return showPhase(`${verb}, ${elapsedS.toFixed(0)} s`);
  const leftS = Math.max(0, expectedS - elapsedS);
  showPhase(`${verb}, about ${Math.ceil(leftS)} s left`, Math.min(0.98, elapsedS / Math.max(expectedS, 0.001)));
}
