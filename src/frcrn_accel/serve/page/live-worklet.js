// Runs beside the audio: sends what the microphone gives, plays what comes back, and both from the same moment.

const CHUNK_S = 0.02;
const REPORT_S = 0.05;
const KEPT_S = 6;
const HOLD_S = { first: 0.04, more: 0.02, most: 0.3 }; // what is kept waiting, against a connection that is not even
const SLACK_S = 0.2; // waits beyond the hold are cut when they are longer
const FADE_S = 0.012;

/**
 * Samples are counted from the start. Of sample `n` that comes in, sample `n` that comes back is its place in time; what
 * is heard in it is sample `n - latencySamples`. So the signal as it came is delayed by that much to be in step.
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
    #share = 1; // of the denoised one in what is heard
    #target = 1;
    #gaps = 0;
    #cuts = 0;
    #chunk = new Int16Array(Math.round(CHUNK_S * sampleRate));
    #filled = 0;
    #inEnergy = 0;
    #inSamples = 0;
    #heard = { before: new Float32Array(Math.round(REPORT_S * sampleRate)), after: null, filled: 0 };

    constructor({ processorOptions: { latencySamples, heard } }) {
      super();
      this.#latency = latencySamples;
      const size = 2 ** Math.ceil(Math.log2(KEPT_S * sampleRate));
      this.#mask = size - 1;
      this.#before = new Float32Array(size);
      this.#after = new Float32Array(size);
      this.#heard.after = new Float32Array(this.#heard.before.length);
      this.#share = this.#target = heard === "after" ? 1 : 0;
      this.port.onmessage = ({ data }) => {
        if (data.heard) this.#target = data.heard === "after" ? 1 : 0;
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
      if (!this.#isPlaying) return; // what is not written is silence
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
      const heard = this.#heard;
      heard.before[heard.filled] = before;
      heard.after[heard.filled++] = after;
      if (heard.filled < heard.before.length) return;
      heard.filled = 0;
      const energy = heard.after.reduce((sum, value) => sum + value * value, 0);
      this.port.postMessage({
        before: heard.before.slice(),
        after: heard.after.slice(),
        inDb: 10 * Math.log10(Math.max(1e-14, this.#inEnergy / this.#inSamples)),
        outDb: 10 * Math.log10(Math.max(1e-14, energy / heard.after.length)),
        latencyS: (this.#captured - this.#played + this.#latency) / sampleRate,
        gaps: this.#gaps,
        cuts: this.#cuts,
      });
      this.#inEnergy = this.#inSamples = 0;
    }
  },
);
