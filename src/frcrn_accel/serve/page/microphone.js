// The microphone, and recordings from it.

import { Problem, unreachable } from "./server.js";
import { wavFile } from "./wav.js";

const MOST_S = 600;

/**
 * Open the microphone, without what browsers do to speech by themselves.
 *
 * @param {(problem: Problem) => void} onLost Called if it goes away.
 * @returns {Promise<{context: AudioContext, source: AudioNode, close: () => Promise<void>}>}
 */
export async function openMicrophone(onLost) {
  if (!window.isSecureContext) {
    throw new Problem("No microphone", "Browsers give the microphone to pages over HTTPS, or of this machine, only.");
  }
  if (!navigator.mediaDevices?.getUserMedia || !globalThis.AudioWorkletNode) {
    throw new Problem("No microphone", "This browser cannot record. Chrome, Edge, Firefox and Safari of 2022 or later can.");
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
    stream.getAudioTracks()[0].onended = () => onLost(new Problem("No microphone", "The microphone is gone. Connect it, and start again."));
    await context.resume();
    return { context, source: context.createMediaStreamSource(stream), close };
  } catch (error) {
    await close();
    throw error;
  }
}

const REFUSALS = {
  NotAllowedError: "This page may not use the microphone. Allow it beside the address of the page, and try again.",
  NotFoundError: "There is no microphone here. Connect one, and try again.",
  NotReadableError: "The microphone is in use, or switched off. Close what uses it, and try again.",
};

/** Fetch what runs beside the audio. */
export async function addWorklet(context, name) {
  try {
    await context.audioWorklet.addModule(new URL(name, import.meta.url));
  } catch {
    throw unreachable();
  }
}

/**
 * Begin a recording.
 *
 * @param {object} handlers
 * @param {(levelDb: number, recordedS: number) => void} handlers.onLevel Called ten times a second.
 * @param {(problem: Problem|null) => void} handlers.onEnd Called if it ends by itself: the microphone is gone, or it
 *   is as long as it may be (null).
 * @returns {Promise<{stop: () => Promise<File>}>} `stop` gives the recording, a WAV.
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
    else if (samples > MOST_S * context.sampleRate) onEnd(null);
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
