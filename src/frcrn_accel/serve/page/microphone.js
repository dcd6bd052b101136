// Open the microphone, and record from it.

import { unreachable } from "./engine.js";
import { Problem } from "./problem.js";
import { wavFile } from "./wav.js";

const MAX_S = 600;

/**
 * Open the microphone, with the browser's own speech processing turned off.
 *
 * @param {(problem: Problem) => void} onLost Called if it is disconnected.
 * @returns {Promise<{context: AudioContext, source: AudioNode, close: () => Promise<void>}>}
 */
export async function openMicrophone(onLost) {
  if (!window.isSecureContext) {
    throw new Problem("No microphone", "Browsers allow microphone access only on pages served over HTTPS or from this machine.");
  }
  if (!navigator.mediaDevices?.getUserMedia || !globalThis.AudioWorkletNode) {
    throw new Problem("No microphone", "This browser cannot record. Use Chrome, Edge, Firefox or Safari from 2022 or later.");
  }
  const wanted = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false };
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: wanted });
  } catch (error) {
    throw new Problem("No microphone", REFUSALS[error.name] ?? `The microphone cannot be opened: ${error.message}.`);
  }
  const context = new AudioContext({ latencyHint: "interactive" });
  const close = async () => {
    for (const track of stream.getTracks()) {
      track.onended = null;
      track.stop();
    }
    if (context.state !== "closed") await context.close();
  };
  try {
    stream.getAudioTracks()[0].onended = () => onLost(new Problem("No microphone", "The microphone was disconnected. Connect it and start again."));
    await context.resume();
    return { context, source: context.createMediaStreamSource(stream), close };
  } catch (error) {
    await close();
    throw error;
  }
}

const REFUSALS = {
  NotAllowedError: "Microphone access is blocked. Allow it next to the address of the page and try again.",
  NotFoundError: "No microphone was found. Connect one and try again.",
  NotReadableError: "The microphone is in use or switched off. Close the program that uses it and try again.",
};

/** Load code that runs in the audio thread. */
export async function addWorklet(context, name) {
  try {
    await context.audioWorklet.addModule(new URL(name, import.meta.url));
  } catch {
    throw unreachable();
  }
}

/**
 * Start a recording.
 *
 * @param {object} handlers
 * @param {(levelDb: number, recordedS: number) => void} handlers.onLevel Called ten times a second.
 * @param {(problem: Problem|null) => void} handlers.onEnd Called if it ends by itself: the microphone was
 *   disconnected, or the recording has its maximum length (null).
 * @returns {Promise<{stop: () => Promise<File>}>} `stop` returns the recording, a WAV.
 */
export async function record({ onLevel, onEnd }) {
  const microphone = await openMicrophone(onEnd);
  const { context, source } = microphone;
  try {
    await addWorklet(context, "record-worklet.js");
  } catch (error) {
    await microphone.close();
    throw error;
  }
  const node = new AudioWorkletNode(context, "record", { numberOfOutputs: 0 });
  const chunks = [];
  let samples = 0;
  let whenLast;
  const last = new Promise((resolve) => {
    whenLast = resolve;
  });
  node.port.onmessage = ({ data }) => {
    chunks.push(data.samples);
    samples += data.samples.length;
    onLevel(data.levelDb, samples / context.sampleRate);
    if (data.isLast) whenLast();
    else if (samples > MAX_S * context.sampleRate) onEnd(null);
  };
  source.connect(node);
  return {
    async stop() {
      node.port.postMessage("stop");
      if (context.state === "running") await last;
      await microphone.close();
      return wavFile(chunks, context.sampleRate, "recording.wav");
    },
  };
}
