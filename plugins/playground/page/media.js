// Media as inputs: chosen, dropped, pasted, taken with the camera or the microphone, or given by URL.
// A file goes to the server's store at once, so that the input holds its URL; where there is no
// store, the input holds the file itself as a data URI.

import { waveform } from "./audio.js";
import { paintMask, picture, recorder } from "./devices.js";
import { GLYPHS, h, icon, say } from "./dom.js";
import { call, problemText } from "./server.js";
import { bytes, fileNameOf, isObject, isShown, kindOfType, local } from "./values.js";
import { fileCard, modelView } from "./viewers.js";

const ACCEPT = { image: "image/*", mask: "image/*", audio: "audio/*", video: "video/*", model: ".glb,.gltf,.obj,.fbx,.stl,.mesh,.ply" };
const ARTICLE = { image: "an image", mask: "a mask", audio: "a recording", video: "a video", model: "a 3D model", file: "a file" };
const ARCHIVES = /\.(7z|gz|parquet|rar|tar|tgz|xz|zip|zst)$/i;
const MOST_FILES = 10_000; // of a folder

const isUrl = (text) => /^(data:|https?:\/\/[^/\s]+)/.test(text) && URL.canParse(text);
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
  const zone = dropZone(context, receive, Boolean(context.pack));
  const node = h("div", { class: "medium", role: "group" }, preview, zone.node, address);

  function take(next, blob) {
    if (url !== next) given = undefined;
    url = next;
    if (shown) URL.revokeObjectURL(shown);
    shown = blob ? URL.createObjectURL(blob) : undefined;
    const whole = isUrl(url); // while one is typed it is none yet
    const source = shown ?? (whole && local(url));
    const usual = { mask: "image", bundle: "file" }[context.medium] ?? context.medium;
    const kind = blob && usual === "file" ? (kindOfType(blob.type) ?? "file") : usual;
    preview.replaceChildren(...(whole || shown ? [seen(kind, source, blob), clear] : []));
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

  async function receive(files) {
    if (!files.length) return;
    node.setAttribute("aria-busy", "true");
    try {
      if (context.pack) zone.tell("Packing …");
      const file = context.pack ? await context.pack(files) : files[0];
      zone.tell(`Sending ${file.name ?? "it"}, ${bytes(file.size)} …`);
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

/** Many files as one URL: an archive goes as it is, other files and folders are packed into a ZIP here. */
export function bundleControl(context, id) {
  return mediumControl({ ...context, pack: async (files) => {
    if (files.length === 1 && ARCHIVES.test(files[0].name)) return files[0];
    const { zip } = await import("./zip.js");
    return zip(files, "files.zip");
  } }, id);
}

/** Several media: the same place to drop them, and a strip of previews. */
export function mediaControl(context, id, always) {
  let values = [];
  const strip = h("div", { class: `strip ${context.medium}s` });
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
      return h("div", { class: "preview" }, isUrl(urlOf(value)) ? seen(context.medium, local(urlOf(value))) : h("p", { class: "hint" }, urlOf(value)),
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
  const name = blob?.name ?? fileNameOf(source);
  if (kind === "model") return modelView(source, name, blob?.size);
  return fileCard(name || "A file", blob?.size);
}

/** A place for files: to choose, drop or paste them, and the devices that can make one. */
function dropZone(context, take, several = false) {
  const picker = h("input", { type: "file", accept: ACCEPT[context.medium] ?? "", multiple: several, class: "offscreen", tabIndex: -1, "aria-hidden": "true" });
  picker.addEventListener("change", () => {
    const files = [...picker.files];
    picker.value = "";
    take(files);
  });
  const usual = context.medium === "bundle" ? "Choose files or an archive" : `Choose ${several ? "files" : ARTICLE[context.medium]}`;
  const text = h("span", {}, usual);
  const level = h("span", { class: "level-bar", hidden: true, "aria-hidden": "true" });
  const small = h("small", {}, context.medium === "bundle" ? "or drop them or a folder here" : "or drop or paste here");
  const button = h("button", { type: "button", class: "pick", onclick: () => picker.click() }, text, small, level);
  const node = h("div", { class: "zone" }, button, devicesOf(context, take, heard), picker);
  node.addEventListener("dragover", (event) => {
    event.preventDefault();
    node.toggleAttribute("data-over", true);
  });
  node.addEventListener("dragleave", () => node.toggleAttribute("data-over", false));
  node.addEventListener("drop", async (event) => {
    event.preventDefault();
    node.toggleAttribute("data-over", false);
    const files = several ? await dropped(event.dataTransfer) : [...event.dataTransfer.files];
    take(files.slice(0, several ? undefined : 1));
  });
  node.receive = (files) => take(several ? files : files.slice(0, 1)); // what is pasted anywhere on the page
  button.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (!files.length) return;
    event.preventDefault();
    node.receive(files);
  });
  function tell(said) {
    text.textContent = said ?? usual;
    small.hidden = said !== undefined;
  }
  function heard(said, loudness) {
    tell(said);
    level.hidden = said === undefined;
    level.style.setProperty("--level", String(loudness ?? 0));
  }
  return { node, tell, focus: () => button.focus() };
}

function devicesOf(context, take, heard) {
  const devices = navigator.mediaDevices?.getUserMedia;
  if (devices && context.medium === "image") return [tool("camera", "Take a picture", () => picture(take))];
  if (devices && window.MediaRecorder && context.medium === "audio") {
    const button = tool("microphone", "Record");
    button.addEventListener("click", recorder(button, take, heard));
    return [button];
  }
  if (context.medium !== "mask") return [];
  return [tool("brush", "Paint the mask", () => {
    const values = context.values();
    const source = urlOf(values?.image_url ?? values?.inpaint_image_url ?? values?.image);
    if (!source || !isShown(local(source))) return say("Choose the image first");
    paintMask(local(source), take);
  })];
}

/** What was dropped, with all that is in folders, each file named by its path. */
async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const loose = [...transfer.files]; // after the first await the transfer is empty
  if (!entries.some((entry) => entry.isDirectory)) return loose;
  const found = [];
  async function walk(entry) {
    if (found.length >= MOST_FILES || entry.name.startsWith(".")) return;
    if (entry.isFile) {
      const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
      found.push(new File([file], entry.fullPath.replace(/^\//, ""), { type: file.type }));
      return;
    }
    const reader = entry.createReader();
    for (;;) {
      const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // a hundred at a time
      if (!some.length) return;
      for (const one of some) await walk(one);
    }
  }
  for (const entry of entries) await walk(entry);
  return found;
}

const tool = (glyph, label, onclick) => h("button", { type: "button", class: "quiet icon", title: label, "aria-label": label, ...(onclick && { onclick }) }, icon(GLYPHS[glyph]));

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
