// Runs in the audio thread: collects microphone audio as 16-bit samples.

const CHUNK_S = 0.1;

registerProcessor(
  "record",
  class extends AudioWorkletProcessor {
    #chunk = new Int16Array(Math.round(CHUNK_S * sampleRate));
    #filled = 0;
    #energy = 0;
    #isOn = true;

    constructor() {
      super();
      this.port.onmessage = () => {
        this.#isOn = false;
        this.#send();
      };
    }

    process([input]) {
      const samples = input[0];
      for (let index = 0; this.#isOn && samples && index < samples.length; index++) {
        let value = 0;
        for (const channel of input) value += channel[index] / input.length;
        this.#energy += value * value;
        this.#chunk[this.#filled++] = Math.max(-32768, Math.min(32767, Math.round(32768 * value)));
        if (this.#filled === this.#chunk.length) this.#send();
      }
      return this.#isOn;
    }

    #send() {
      const samples = this.#chunk.slice(0, this.#filled);
      const levelDb = 10 * Math.log10(Math.max(1e-14, this.#energy / Math.max(1, this.#filled)));
      this.port.postMessage({ samples, levelDb, isLast: !this.#isOn }, [samples.buffer]);
      this.#filled = this.#energy = 0;
    }
  },
);
