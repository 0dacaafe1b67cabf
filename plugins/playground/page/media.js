// Media as inputs: chosen, dropped, pasted, taken with the camera or the microphone, or given by URL.
// A file goes to the server's store at once, so that the input holds its URL; where there is no
// store, the input holds the file itself as a data URI.

import { waveform } from "./audio.js";
import { GLYPHS, h, icon, say } from "./dom.js";
import { call, problemText } from "./server.js";
import { bytes, isObject, isShown, kindOfType, local } from "./values.js";

const ACCEPT = { image: "image/*", mask: "image/*", audio: "audio/*", video: "video/*", file: "" };
const ARTICLE = { image: "an image", mask: "a mask", audio: "a recording", video: "a video", file: "a file" };

const urlOf = (value) => (typeof value === "string" ? value : isObject(value) ? (value.url ?? "") : "");

/** One medium: a place to drop it, its preview, and its URL. */
export function mediumControl(context, id) {
  let url = "";
  let given; // the value as it was set, kept while its URL stays
  let shown; // the blob of what was chosen here
  const preview = h("div", { class: "preview" });
  const address = h("input", { id, type: "text", class: "code", placeholder: "https://… or data:…", autocomplete: "off", spellcheck: false });
  address.addEventListener("input", () => {
    take(address.value.trim());
    context.changed();
  });
  const zone = dropZone(context, (files) => receive(files[0]));
  const node = h("div", { class: "medium", role: "group" }, preview, zone.node, address);

  function take(next, blob) {
    if (url !== next) given = undefined;
    url = next;
    if (shown) URL.revokeObjectURL(shown);
    shown = blob ? URL.createObjectURL(blob) : undefined;
    const source = shown ?? (url && local(url));
    const kind = blob ? kindOfType(blob.type) : context.medium === "mask" ? "image" : context.medium;
    preview.replaceChildren(...(url ? [seen(kind ?? "file", source, blob), clear] : []));
    node.toggleAttribute("data-filled", Boolean(url));
  }
  const clear = h("button", { type: "button", class: "quiet icon drop", "aria-label": "Remove", onclick: () => {
    tellUrl("");
    take("");
    context.changed();
    zone.focus();
  } }, icon(GLYPHS.close));

  /** A file inside a URL is too long to be read or edited. */
  function tellUrl(text) {
    address.readOnly = text.length > 500;
    address.value = address.readOnly ? `${text.slice(0, 60)}…` : text;
  }

  async function receive(file) {
    if (!file) return;
    node.setAttribute("aria-busy", "true");
    zone.tell(`Sending ${file.name ?? "it"}, ${bytes(file.size)} …`);
    try {
      const kept = await keep(file);
      tellUrl(kept);
      take(kept, file);
      context.changed();
      node.dispatchEvent(new Event("input", { bubbles: true }));
    } catch (error) {
      say(`It could not be sent: ${error.message}`);
    } finally {
      node.removeAttribute("aria-busy");
      zone.tell();
    }
  }

  return {
    kind: "medium",
    node,
    get: () => (url ? (given ?? context.wrap(url)) : undefined),
    set(value) {
      tellUrl(urlOf(value));
      take(urlOf(value));
      given = value;
    },
  };
}

/** Several media: the same place to drop them, and a strip of previews. */
export function mediaControl(context, id, always) {
  let values = [];
  const strip = h("div", { class: "strip" });
  const zone = dropZone(context, async (files) => {
    for (const file of files) {
      zone.tell(`Sending ${file.name}, ${bytes(file.size)} …`);
      try {
        values.push(context.wrap(await keep(file)));
      } catch (error) {
        say(`${file.name} could not be sent: ${error.message}`);
      }
    }
    zone.tell();
    draw();
    context.changed();
  }, true);
  function draw() {
    strip.replaceChildren(...values.map((value, i) => {
      const remove = () => {
        values.splice(i, 1);
        draw();
        context.changed();
      };
      return h("div", { class: "preview" }, seen(context.medium, local(urlOf(value)), undefined),
        h("button", { type: "button", class: "quiet icon drop", "aria-label": `Remove number ${i + 1}`, onclick: remove }, icon(GLYPHS.close)));
    }));
  }
  return {
    group: true,
    node: h("div", { class: "medium" }, strip, zone.node),
    get: () => (values.length || always ? [...values] : undefined),
    set(value) {
      values = Array.isArray(value) ? [...value] : [];
      draw();
    },
  };
}

function seen(kind, source, blob) {
  if (!blob && !isShown(source)) return h("p", { class: "hint" }, "Kept on another host; this page does not ask others for anything.");
  if (kind === "image") return h("img", { src: source, alt: "The chosen image" });
  if (kind === "video") return h("video", { src: source, controls: true, preload: "metadata" });
  if (kind === "audio") return waveform(source);
  return h("p", { class: "hint" }, blob?.name ? `${blob.name}, ${bytes(blob.size)}` : "A file is chosen.");
}

function dropZone(context, take, several = false) {
  const picker = h("input", { type: "file", accept: ACCEPT[context.medium] ?? "", multiple: several, class: "offscreen", tabIndex: -1, "aria-hidden": "true" });
  picker.addEventListener("change", () => {
    const files = [...picker.files];
    picker.value = "";
    take(files);
  });
  const usual = `Choose ${several ? "files" : ARTICLE[context.medium]}`;
  const text = h("span", {}, usual);
  const button = h("button", { type: "button", class: "pick", onclick: () => picker.click() }, text, h("small", {}, "or drop or paste here"));
  const tools = [];
  const devices = navigator.mediaDevices;
  if (devices?.getUserMedia && context.medium === "image" ) tools.push(tool("camera", "Take a picture", () => picture(take)));
  if (devices?.getUserMedia && window.MediaRecorder && context.medium === "audio") tools.push(recorder(take));
  if (context.medium === "mask") tools.push(tool("brush", "Paint the mask", () => paintMask(context, take)));
  const node = h("div", { class: "zone" }, button, tools, picker);
  node.addEventListener("dragover", (event) => {
    event.preventDefault();
    node.toggleAttribute("data-over", true);
  });
  node.addEventListener("dragleave", () => node.toggleAttribute("data-over", false));
  node.addEventListener("drop", (event) => {
    event.preventDefault();
    node.toggleAttribute("data-over", false);
    take([...event.dataTransfer.files].slice(0, several ? undefined : 1));
  });
  button.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (!files.length) return;
    event.preventDefault();
    take(several ? files : files.slice(0, 1));
  });
  return { node, focus: () => button.focus(), tell: (said) => (text.textContent = said ?? usual) };
}

const tool = (glyph, label, onclick) => h("button", { type: "button", class: "quiet icon", title: label, "aria-label": label, onclick }, icon(GLYPHS[glyph]));

/** The URL of `file` in the server's store; its bytes as a data URI where the server keeps none. */
async function keep(file) {
  const headers = { "content-type": file.type || "application/octet-stream", "x-fal-file-name": inBytes(file.name ?? "recording") };
  const response = await call("/files", { method: "POST", body: file, headers });
  if (response.ok) return (await response.json()).url;
  if (response.status !== 404 && response.status !== 405) throw new Error(await problemText(response));
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

/** A header holds bytes, not characters: a name in UTF-8, one character for each byte. */
const inBytes = (text) => String.fromCharCode(...new TextEncoder().encode(text));

// --- the devices

async function picture(take) {
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

function recorder(take) {
  let running;
  const button = tool("microphone", "Record", async () => {
    if (running) return running.stop();
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    } catch (error) {
      return say(`No microphone: ${error.message}`);
    }
    const parts = [];
    running = new MediaRecorder(stream);
    running.ondataavailable = (event) => parts.push(event.data);
    running.onstop = async () => {
      stream.getTracks().forEach((track) => track.stop());
      running = undefined;
      button.removeAttribute("data-on");
      button.setAttribute("aria-label", "Record");
      take([await wav(new Blob(parts))]);
    };
    running.start();
    button.toggleAttribute("data-on", true);
    button.setAttribute("aria-label", "Stop the recording");
  });
  return button;
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
function paintMask(context, take) {
  const values = context.values();
  const source = urlOf(values?.image_url ?? values?.inpaint_image_url ?? values?.image);
  if (!source || !isShown(local(source))) return say("Choose the image first");
  const image = h("img", { src: local(source), alt: "The image to be masked" });
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
