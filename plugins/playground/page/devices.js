// The camera, the microphone and the pointer as sources of files.

import { h, say } from "./dom.js";
import { duration } from "./values.js";

const TOLD_EVERY_MS = 200; // of a recording that goes on

/** Take a picture with the camera. */
export async function picture(take) {
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: true });
  } catch (error) {
    return say(`No camera: ${error.message}`);
  }
  const video = h("video", { srcObject: stream, autoplay: true, muted: true, playsInline: true });
  const shoot = () => {
    const canvas = h("canvas", { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob((blob) => take([new File([blob], "camera.jpg", { type: "image/jpeg" })]), "image/jpeg", 0.92);
    dialog.close();
  };
  const dialog = overlay("Camera", video, h("button", { type: "button", class: "primary", onclick: shoot }, "Take it"));
  dialog.addEventListener("close", () => stream.getTracks().forEach((track) => track.stop()));
}

/** A button that records. `told(text, level)` says how it goes, with undefined at the end; a level is from 0 to 1. */
export function recorder(button, take, told) {
  let running;
  return async () => {
    if (running) return running.stop();
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    } catch (error) {
      return say(`No microphone: ${error.message}`);
    }
    const level = meter(stream);
    const began = performance.now();
    const parts = [];
    running = new MediaRecorder(stream);
    running.ondataavailable = ({ data }) => {
      if (data.size) parts.push(data);
      if (parts.length && running) told(`Recording, ${duration(performance.now() - began)}`, level.read());
    };
    running.onstop = async () => {
      running = undefined;
      stream.getTracks().forEach((track) => track.stop());
      level.close();
      button.removeAttribute("data-on");
      button.setAttribute("aria-label", "Record");
      told();
      if (!parts.length) return say("Nothing was heard yet");
      take([await wav(new Blob(parts))]);
    };
    running.start(TOLD_EVERY_MS);
    button.toggleAttribute("data-on", true);
    button.setAttribute("aria-label", "Stop the recording");
    told("Recording", 0);
  };
}

/** How loud a stream is now. */
function meter(stream) {
  const context = new AudioContext();
  const analyser = context.createAnalyser();
  context.createMediaStreamSource(stream).connect(analyser);
  const samples = new Float32Array(analyser.fftSize);
  return {
    read() {
      analyser.getFloatTimeDomainData(samples);
      return Math.min(1, 3 * Math.sqrt(samples.reduce((sum, sample) => sum + sample * sample, 0) / samples.length));
    },
    close: () => context.close(),
  };
}

/** A recording as a WAV of one channel: every decoder reads that, few read what browsers record. */
async function wav(blob) {
  const context = new AudioContext();
  const sound = await context.decodeAudioData(await blob.arrayBuffer());
  context.close();
  const samples = sound.getChannelData(0);
  const view = new DataView(new ArrayBuffer(44 + samples.length * 2));
  const text = (at, letters) => [...letters].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  const [RATE, CHANNELS, BYTES] = [sound.sampleRate, 1, 2];
  text(0, "RIFF"); view.setUint32(4, 36 + samples.length * BYTES, true); text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, CHANNELS, true);
  view.setUint32(24, RATE, true); view.setUint32(28, RATE * BYTES, true); view.setUint16(32, BYTES, true);
  view.setUint16(34, 8 * BYTES, true); text(36, "data"); view.setUint32(40, samples.length * BYTES, true);
  samples.forEach((sample, i) => view.setInt16(44 + i * 2, Math.max(-1, Math.min(1, sample)) * 0x7fff, true));
  return new File([view], "recording.wav", { type: "audio/wav" });
}

/** White where the finger went, black elsewhere, over the image that the mask is for. */
export function paintMask(source, take) {
  const image = h("img", { src: source, alt: "The image to be masked" });
  const canvas = h("canvas", { class: "painted", "aria-label": "The mask: draw with the pointer" });
  const pen = canvas.getContext("2d");
  image.addEventListener("load", () => {
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    Object.assign(pen, { lineWidth: Math.max(8, canvas.width / 16), lineCap: "round", lineJoin: "round", strokeStyle: "#fff" });
  });
  const place = (event) => [(event.offsetX * canvas.width) / canvas.clientWidth, (event.offsetY * canvas.height) / canvas.clientHeight];
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pen.beginPath();
    pen.moveTo(...place(event));
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!event.buttons) return;
    pen.lineTo(...place(event));
    pen.stroke();
  });
  const use = () => {
    pen.globalCompositeOperation = "destination-over";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    canvas.toBlob((blob) => take([new File([blob], "mask.png", { type: "image/png" })]), "image/png");
    dialog.close();
  };
  const dialog = overlay("Mask", h("div", { class: "masking" }, image, canvas), h("button", { type: "button", class: "primary", onclick: use }, "Use the mask"));
}

function overlay(label, ...content) {
  const dialog = h("dialog", { "aria-label": label, class: "overlay" }, ...content, h("button", { type: "button", class: "quiet", onclick: () => dialog.close() }, "Close"));
  dialog.addEventListener("close", () => setTimeout(() => dialog.remove()));
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}
