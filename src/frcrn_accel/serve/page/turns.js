// Split long work into short turns, so that the page stays responsive.

const TURN_MS = 12;

/** Await `turns.next()` regularly: it yields when a turn is over, and throws when `signal` is aborted. */
export class Turns {
  #signal;
  #began = performance.now();

  constructor(signal) {
    this.#signal = signal;
  }

  async next() {
    if (performance.now() - this.#began < TURN_MS) return;
    await new Promise((resolve) => setTimeout(resolve));
    this.#signal.throwIfAborted();
    this.#began = performance.now();
  }
}
