// Cancellable work, one job at a time.

import { element, say, show } from "./elements.js";

/** Runs jobs; a new one cancels the one before. The Cancel button cancels the current one. */
export class Jobs {
  #showProblem;
  #running = null;

  /** @param {(problem: Error|null) => void} showProblem Shows an error, or clears it (null). */
  constructor(showProblem) {
    this.#showProblem = showProblem;
    element("cancel").addEventListener("click", () => this.#running?.abort(new Cancelled()));
  }

  /**
   * Run a job and show its error, if any.
   *
   * @param {(signal: AbortSignal) => Promise<void>} work
   */
  async run(work) {
    this.#running?.abort(new Cancelled());
    const controller = new AbortController();
    this.#running = controller;
    this.#showProblem(null);
    try {
      await work(controller.signal);
    } catch (error) {
      if (error instanceof Cancelled) {
        if (this.#running === controller) say("Cancelled");
      } else {
        say("");
        this.#showProblem(error);
      }
    } finally {
      if (this.#running === controller) {
        this.#running = null;
        show(element("work"), false);
      }
    }
  }
}

/** The job was cancelled by the user, or by another job. */
export class Cancelled extends Error {}
