// Play two signals in sync, one of them audible.

const FADE_S = 0.012; // short enough to seem instant, long enough not to click

/** Plays `before` and `after`, buffers of one length, at the same time; gains decide which of them is audible. */
export class Player {
  /** Called when it starts, stops or moves to another position. */
  onChange = () => {};

  #context = null; // created by the first `play`: browsers require a user action
  #buffers;
  #rateHz;
  #gains = {};
  #levels = { before: 1, after: 1 };
  #sources = [];
  #selected = "after";
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
    return Math.min(this.durationS, this.#from + Math.max(0, played));
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

  /** Make one signal audible. @param {"before"|"after"} name */
  select(name) {
    this.#selected = name;
    this.#fade();
  }

  /** Set the gains. @param {{before: number, after: number}} levels */
  setLevels(levels) {
    this.#levels = levels;
    this.#fade();
  }

  async close() {
    this.#stop();
    await this.#context?.close();
  }

  #open() {
    const context = new AudioContext({ sampleRate: this.#rateHz });
    for (const name of Object.keys(this.#buffers)) {
      this.#gains[name] = new GainNode(context, { gain: name === this.#selected ? this.#levels[name] : 0 });
      this.#gains[name].connect(context.destination);
    }
    return context;
  }

  #start() {
    this.#beganAt = this.#context.currentTime;
    for (const [name, buffer] of Object.entries(this.#buffers)) {
      const source = new AudioBufferSourceNode(this.#context, { buffer });
      source.connect(this.#gains[name]);
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

  #fade() {
    if (this.#context === null) return;
    const now = this.#context.currentTime;
    for (const [name, { gain }] of Object.entries(this.#gains)) {
      gain.cancelScheduledValues(now);
      gain.setValueAtTime(gain.value, now);
      gain.linearRampToValueAtTime(name === this.#selected ? this.#levels[name] : 0, now + FADE_S);
    }
  }
}
