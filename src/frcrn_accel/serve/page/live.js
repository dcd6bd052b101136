// The Live tab: stream the microphone to the engine and play what comes back.

import { bandBox } from "./band.js";
import { element, radioGroup, say, show, showFacts, showLevel, showProblem } from "./elements.js";
import { GapWatch } from "./gaps.js";
import { limitSlider } from "./limit.js";
import { addWorklet, openMicrophone } from "./microphone.js";
import { RollingPicture } from "./pictures.js";
import { LiveStream, traits } from "./engine.js";
import { Problem } from "./problem.js";

const MAX_BEHIND_S = 3;

/** The Live tab. */
export class LiveMode {
  #button = element("live-start");
  #listen = element("listen");
  #problem = element("live-error");
  #facts = element("live-facts");
  #selected = radioGroup("live-selected", (name) => this.#select(name));
  #limit = limitSlider("live-limit", (limitDb) => this.#session?.stream.setLimit(limitDb));
  #band = bandBox("live-band");
  #tracks = [...document.querySelectorAll("#live .track")];
  #session = null;
  #starting = null;

  constructor() {
    this.#button.addEventListener("click", () => (this.#session || this.#starting ? this.stop() : this.#start()));
    this.#listen.addEventListener("change", () => this.#setVolume());
    element("live-gaps").textContent = `The sound has gaps: ${traits.slow}`;
    this.#select(this.#selected.value());
  }

  /** @returns {boolean} Whether the key was used. */
  key(key) {
    if (key === "a" || key === "b") this.#selected.choose(key === "a" ? "before" : "after");
    else if (key === "x") this.#selected.other();
    else return false;
    return true;
  }

  /** Show the defaults of the engine. @param {object} model Its entry in `GET /v1/models`. */
  setDefaults(model) {
    this.#limit.setDefault(model.attenuation_limit_db);
    this.#band.setDefault(model.high_band);
  }

  /** Stop the microphone, and show what the engine measured. */
  async stop(problem = null) {
    this.#starting?.abort();
    this.#starting = null;
    const session = this.#session;
    this.#session = null;
    this.#showRunning(false);
    show(element("live-gaps"), false);
    if (problem !== null) showProblem(this.#problem, problem);
    if (session === null) return;
    session.stream.onSamples = () => {};
    session.node.port.onmessage = null;
    await session.microphone.close();
    for (const name of ["level-in", "level-out"]) this.#showLevel(name, -Infinity);
    if (problem !== null) return session.stream.abandon();
    session.stream.onEnd = () => {};
    const measured = await session.stream.finish();
    if (measured === null || this.#session || this.#starting) return;
    showFacts(this.#facts, [
      ["Length", `${measured.audio_s.toFixed(1)} s`],
      ["Processing time", `${measured.processing_s.toFixed(2)} s`],
      ["Real-time factor", measured.real_time_factor?.toFixed(3)],
      ["Model", session.started.model],
      ["Backend", session.started.backend],
    ]);
  }

  async #start() {
    showProblem(this.#problem, null);
    const starting = new AbortController();
    this.#starting = starting;
    this.#showRunning(true);
    say("Starting");
    let microphone = null;
    let stream = null;
    try {
      microphone = await openMicrophone((problem) => this.stop(problem));
      const { context } = microphone;
      await addWorklet(context, "live-worklet.js");
      const opened = await LiveStream.open(context.sampleRate, this.#limit.value(), this.#band.value());
      ({ stream } = opened);
      starting.signal.throwIfAborted();
      this.#run(microphone, stream, opened.started);
      say("Live");
    } catch (error) {
      stream?.abandon();
      await microphone?.close();
      if (!starting.signal.aborted) {
        this.#showRunning(false);
        showProblem(this.#problem, error);
      }
    } finally {
      if (this.#starting === starting) this.#starting = null;
    }
  }

  #run(microphone, stream, started) {
    const { context, source } = microphone;
    const node = new AudioWorkletNode(context, "live", {
      numberOfInputs: 1,
      outputChannelCount: [1],
      processorOptions: { latencySamples: started.latency_samples, selected: this.#selected.value() },
    });
    show(element("rolling"), true);
    const volume = new GainNode(context, { gain: 0 });
    const pictures = ["before", "after"].map((name) => new RollingPicture(element(`rolling-${name}`), context.sampleRate));
    let unanswered = 0; // samples sent and not yet returned
    stream.onSamples = (samples) => {
      unanswered -= samples.length;
      node.port.postMessage({ samples }, [samples.buffer]);
    };
    stream.onEnd = (problem) => this.stop(problem ?? new Problem("Ended", "The stream ended. Start again."));
    node.port.onmessage = ({ data }) => {
      if (!data.samples) return this.#showReport(data, pictures);
      unanswered += data.samples.length;
      stream.send(data.samples);
      if (unanswered > MAX_BEHIND_S * context.sampleRate) {
        this.stop(new Problem("Too slow", `The denoiser is ${MAX_BEHIND_S} s behind: ${traits.slow}`));
      }
    };
    source.connect(node).connect(volume).connect(context.destination);
    this.#session = { microphone, stream, started, node, volume, gaps: new GapWatch() };
    this.#setVolume();
  }

  #showReport(report, pictures) {
    const { microphone, stream, started, gaps } = this.#session;
    const { context } = microphone;
    pictures[0].add(report.before);
    pictures[1].add(report.after);
    this.#showLevel("level-in", report.inDb);
    this.#showLevel("level-out", report.outDb);
    const cardS = (context.baseLatency || 0) + (context.outputLatency || 0);
    showFacts(this.#facts, [
      ["Latency", `${(1000 * (report.latencyS + cardS)).toFixed(0)} ms`],
      ["Model latency", `${(1000 * started.latency_s).toFixed(0)} ms`],
      ["Gaps", report.gaps || report.cuts ? `${report.gaps} late, ${report.cuts} skipped` : "none"],
      ["Real-time factor", stream.realTimeFactor?.toFixed(2)],
      ["Sample rate", `${started.sample_rate / 1000} kHz`],
      ["Model", started.model],
      ["Backend", started.backend],
    ]);
    const judged = gaps.update(context.currentTime, report.gaps + report.cuts);
    show(element("live-gaps"), judged !== "few");
    if (judged === "lasting") this.stop(new Problem("Too slow", `Stopped because the sound had gaps: ${traits.slow}`));
  }

  #showLevel(id, levelDb) {
    showLevel(element(id), levelDb);
    element(`${id}-text`).textContent = `${Math.max(-60, levelDb).toFixed(0)} dB`;
  }

  #showRunning(isRunning) {
    this.#button.textContent = isRunning ? "Stop" : "Start";
    this.#band.enable(!isRunning); // a stream keeps what it was started with
    if (!isRunning) say("Stopped");
  }

  #select(name) {
    this.#session?.node.port.postMessage({ selected: name });
    for (const track of this.#tracks) track.classList.toggle("selected", track.classList.contains(name === "before" ? "a" : "b"));
    if (this.#session) say(name === "before" ? "Before" : "After");
  }

  #setVolume() {
    this.#session?.volume.gain.setTargetAtTime(this.#listen.checked ? 1 : 0, this.#session.microphone.context.currentTime, 0.01);
  }
}
