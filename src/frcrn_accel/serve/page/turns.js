// Long work in short turns, so that the page answers meanwhile.

const TURN_MS = 12;

/** Await `turns.next()` now and then: it lets others work when a turn is over, and throws when `signal` is aborted. */
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
