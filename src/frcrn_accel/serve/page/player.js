// Play two signals in sync, mixed by gains.

const FADE_S = 0.012; // short enough to seem instant, long enough not to click

/** Plays `before` and `after`, buffers of one length, at the same time; gains decide what of them is audible. */
export class Player {
  /** Called when it starts, stops or moves to another position. */
  onChange = () => {};

  #context = null; // created by the first `play`: browsers require a user action
  #buffers;
  #rateHz;
  #nodes = {};
  #gains = { before: 0, after: 1 };
  #sources = [];
  #loop = null; // [from, to], s
  #from = 0;
  #beganAt = 0;

  /**
   * @param {{before: AudioBuffer, after: AudioBuffer}} buffers
   * @param {number} rateHz Their sample rate. They are mixed at this rate, so only the sound card resamples.
   */
  constructor(buffers, rateHz) {
    this.#buffers = buffers;
    this.#rateHz = rateHz;
  }

  get durationS() {
    return this.#buffers.after.duration;
  }

  get isPlaying() {
    return this.#sources.length > 0;
  }

  get positionS() {
    if (!this.isPlaying) return this.#from;
    const played = this.#context.currentTime - this.#beganAt - (this.#context.outputLatency || 0);
    const at = this.#from + Math.max(0, played);
    if (this.#loop && at > this.#loop[1]) {
      return this.#loop[0] + ((at - this.#loop[0]) % (this.#loop[1] - this.#loop[0]));
    }
    return Math.min(this.durationS, at);
  }

  async play() {
    this.#context ??= this.#open();
    await this.#context.resume();
    if (this.isPlaying) return;
    if (this.#from >= this.durationS) this.#from = 0;
    this.#start();
    this.onChange();
  }

  pause() {
    if (!this.isPlaying) return;
    this.#from = this.positionS;
    this.#stop();
    this.onChange();
  }

  seek(positionS) {
    const wasPlaying = this.isPlaying;
    this.#stop();
    this.#from = Math.min(this.durationS, Math.max(0, positionS));
    if (wasPlaying && this.#from < this.durationS) this.#start();
    this.onChange();
  }

  /** Repeat a part; null to play on to the end. @param {[number, number]|null} span First and last second. */
  setLoop(span) {
    const at = this.positionS;
    this.#loop = span;
    this.seek(at);
  }

  /** Set the gains of the two signals; a gain below zero inverts. @param {{before: number, after: number}} gains */
  setGains(gains) {
    this.#gains = gains;
    if (this.#context === null) return;
    const now = this.#context.currentTime;
    for (const [name, { gain }] of Object.entries(this.#nodes)) {
      gain.cancelScheduledValues(now);
      gain.setValueAtTime(gain.value, now);
      gain.linearRampToValueAtTime(gains[name], now + FADE_S);
    }
  }

  async close() {
    this.#stop();
    await this.#context?.close();
  }

  #open() {
    const context = new AudioContext({ sampleRate: this.#rateHz });
    const sum = new GainNode(context);
    sum.connect(context.destination);
    for (const name of Object.keys(this.#buffers)) {
      this.#nodes[name] = new GainNode(context, { gain: this.#gains[name] });
      this.#nodes[name].connect(sum);
    }
    return context;
  }

  #start() {
    if (this.#loop && (this.#from < this.#loop[0] || this.#from >= this.#loop[1])) this.#from = this.#loop[0];
    this.#beganAt = this.#context.currentTime;
    for (const [name, buffer] of Object.entries(this.#buffers)) {
      const [loopStart, loopEnd] = this.#loop ?? [0, 0];
      const source = new AudioBufferSourceNode(this.#context, { buffer, loop: this.#loop !== null, loopStart, loopEnd });
      source.connect(this.#nodes[name]);
      source.start(this.#beganAt, this.#from);
      this.#sources.push(source);
    }
    this.#sources[0].onended = () => {
      this.#stop();
      this.#from = this.durationS;
      this.onChange();
    };
  }

  #stop() {
    for (const source of this.#sources) {
      source.onended = null;
      source.stop();
      source.disconnect();
    }
    this.#sources = [];
  }
}
