// Runs in the audio thread: sends microphone audio, and plays the original or the denoised signal in sync.

const CHUNK_S = 0.02;
const REPORT_S = 0.05;
const KEPT_S = 6;
const HOLD_S = { first: 0.04, more: 0.02, most: 0.3 }; // audio buffered against network jitter
const SLACK_S = 0.2; // when the buffer exceeds the hold by more than this, audio is skipped
const FADE_S = 0.012;

/**
 * Samples are counted from the start. Sample `n` that the engine returns is the denoised sample `n - latencySamples` of
 * the input, so the original is delayed by `latencySamples` to be in sync.
 */
registerProcessor(
  "live",
  class extends AudioWorkletProcessor {
    #latency;
    #before;
    #after;
    #mask;
    #captured = 0;
    #received = 0;
    #played = 0;
    #isPlaying = false;
    #hold = HOLD_S.first * sampleRate;
    #share = 1; // of the denoised signal in the output
    #target = 1;
    #gaps = 0;
    #cuts = 0;
    #chunk = new Int16Array(Math.round(CHUNK_S * sampleRate));
    #filled = 0;
    #inEnergy = 0;
    #inSamples = 0;
    #report = { before: new Float32Array(Math.round(REPORT_S * sampleRate)), after: null, filled: 0 };

    constructor({ processorOptions: { latencySamples, selected } }) {
      super();
      this.#latency = latencySamples;
      const size = 2 ** Math.ceil(Math.log2(KEPT_S * sampleRate));
      this.#mask = size - 1;
      this.#before = new Float32Array(size);
      this.#after = new Float32Array(size);
      this.#report.after = new Float32Array(this.#report.before.length);
      this.#share = this.#target = selected === "after" ? 1 : 0;
      this.port.onmessage = ({ data }) => {
        if (data.selected) this.#target = data.selected === "after" ? 1 : 0;
        else this.#take(data.samples);
      };
    }

    process([input], [[output]]) {
      this.#capture(input, output.length);
      this.#play(output);
      return true;
    }

    #take(samples) {
      for (let index = 0; index < samples.length; index++) {
        this.#after[(this.#received + index) & this.#mask] = samples[index] / 32768;
      }
      this.#received += samples.length;
    }

    #capture(input, samples) {
      for (let index = 0; index < samples; index++) {
        let value = 0;
        for (const channel of input) value += channel[index] / input.length;
        this.#before[this.#captured++ & this.#mask] = value;
        this.#inEnergy += value * value;
        this.#chunk[this.#filled++] = Math.max(-32768, Math.min(32767, Math.round(32768 * value)));
        if (this.#filled === this.#chunk.length) {
          this.port.postMessage({ samples: this.#chunk }, [this.#chunk.buffer]);
          this.#chunk = new Int16Array(Math.round(CHUNK_S * sampleRate));
          this.#filled = 0;
        }
      }
      this.#inSamples += samples;
    }

    #play(output) {
      const waiting = this.#received - this.#played;
      if (!this.#isPlaying) this.#isPlaying = waiting >= this.#hold;
      else if (waiting < output.length) {
        this.#isPlaying = false;
        this.#gaps++;
        this.#hold = Math.min(this.#hold + HOLD_S.more * sampleRate, HOLD_S.most * sampleRate);
      } else if (waiting > this.#hold + SLACK_S * sampleRate) {
        this.#played = Math.round(this.#received - this.#hold);
        this.#cuts++;
      }
      if (!this.#isPlaying) return; // the output is silent unless written to
      const step = 1 / (FADE_S * sampleRate);
      for (let index = 0; index < output.length; index++, this.#played++) {
        const after = this.#after[this.#played & this.#mask];
        const at = this.#played - this.#latency;
        const before = at < 0 ? 0 : this.#before[at & this.#mask];
        this.#share += Math.max(-step, Math.min(step, this.#target - this.#share));
        output[index] = before + this.#share * (after - before);
        this.#show(before, after);
      }
    }

    #show(before, after) {
      const report = this.#report;
      report.before[report.filled] = before;
      report.after[report.filled++] = after;
      if (report.filled < report.before.length) return;
      report.filled = 0;
      const energy = report.after.reduce((sum, value) => sum + value * value, 0);
      this.port.postMessage({
        before: report.before.slice(),
        after: report.after.slice(),
        inDb: 10 * Math.log10(Math.max(1e-14, this.#inEnergy / this.#inSamples)),
        outDb: 10 * Math.log10(Math.max(1e-14, energy / report.after.length)),
        latencyS: (this.#captured - this.#played + this.#latency) / sampleRate,
        gaps: this.#gaps,
        cuts: this.#cuts,
      });
      this.#inEnergy = this.#inSamples = 0;
    }
  },
);
