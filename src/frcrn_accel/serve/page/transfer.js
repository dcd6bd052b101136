// Send a file to the server and receive the result, with the progress on the page.

import { element, say, show } from "./elements.js";
import { denoise } from "./server.js";

const UPDATE_MS = 250;

/** Transfers files. Once a file has been processed, its next run shows the remaining time. */
export class Transfer {
  #timed = null; // {file, processingS} of the last file that was processed

  /** Remember how long the server took for a file. */
  setProcessingTime(file, processingS) {
    this.#timed = { file, processingS };
  }

  /**
   * Have a file denoised.
   *
   * @param {File} file
   * @param {object} options
   * @param {string} options.format Format of the result; "" for that of the file.
   * @param {number|null} options.limitDb Attenuation limit; null for the server's default.
   * @param {AbortSignal} options.signal
   * @param {string} options.verb What the server does with the file, e.g. "Denoising".
   * @returns {Promise<{blob: Blob, header: (name: string) => string|null}>}
   */
  async send(file, { format, limitDb, signal, verb }) {
    const expectedS = this.#timed?.file === file ? this.#timed.processingS : null;
    let timer = null;
    const onSent = (share) => {
      if (share < 1) return showPhase(`Sending, ${Math.floor(100 * share)} %`, share);
      if (timer !== null) return;
      const began = performance.now();
      const update = () => showProcessing(verb, (performance.now() - began) / 1000, expectedS);
      timer = setInterval(update, UPDATE_MS);
      update();
      say(verb);
    };
    const onReceived = (share) => {
      clearInterval(timer);
      showPhase(`Receiving, ${Math.floor(100 * share)} %`, share);
    };
    show(element("work"), true);
    showPhase("Sending", 0);
    say(`Sending ${file.name}`);
    try {
      return await denoise(file, { format, limitDb, signal, onSent, onReceived });
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
  element("phase").textContent = text;
  if (share === null) progress.removeAttribute("value");
  else progress.value = share;
}

function showProcessing(verb, elapsedS, expectedS) {
  if (expectedS === null) return showPhase(`${verb}, ${elapsedS.toFixed(0)} s`);
  const leftS = Math.max(0, expectedS - elapsedS);
  showPhase(`${verb}, about ${Math.ceil(leftS)} s left`, Math.min(0.98, elapsedS / Math.max(expectedS, 0.001)));
}
