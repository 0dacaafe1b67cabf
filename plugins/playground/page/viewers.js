// Media as they are looked at: pictures in a grid, sound, video, 3D models, and a card for any other file.

import { waveform } from "./audio.js";
import { GLYPHS, byId, h, icon } from "./dom.js";
import { bytes, isShown } from "./values.js";

const UNDRAWN = /\.(fbx|mesh|ply)$/i; // models that are files to download, here
const LARGEST = 2; // times its own size that a small picture is shown
const MOST_MODEL_BYTES = 256 * 2 ** 20; // larger ones are loaded when somebody asks

/** Media in two columns; of an odd number the first spans both. `veiled[i]` hides the i-th until a click. */
export function mediaGrid(media, veiled) {
  return h("div", { class: `media${media.length > 1 ? " several" : ""}${media.length % 2 ? " odd" : ""}` }, media.map((medium, i) => mediumView(medium, veiled?.[i])));
}

function mediumView(medium, veiled) {
  const { kind, url, name, size } = medium;
  const caption = [name, size ? bytes(size) : undefined].filter(Boolean).join(", ");
  if (!isShown(url)) {
    return h("figure", {}, h("p", { class: "hint" }, "On another host, so not shown here: ", h("a", { href: url, target: "_blank", rel: "noreferrer noopener" }, "open it")), h("figcaption", {}, caption));
  }
  const said = h("span", {}, caption);
  const download = h("a", { href: url, download: name || kind, class: "quiet button" }, icon(GLYPHS.down), "Download");
  const seen = {
    image: () => picture(medium, veiled, said),
    audio: () => waveform(url),
    video: () => video(url, said),
    model: () => (UNDRAWN.test(name) ? undefined : modelView(url, name, size)),
    hdr: () => hdrView(url, name),
  }[kind]?.();
  if (!seen) return h("figure", {}, fileCard(name || "file", size, download));
  return h("figure", {}, seen, h("figcaption", {}, said, download));
}

function picture({ url, name, width, height }, veiled, said) {
  const sized = width > 0 && height > 0 ? { width, height } : {}; // its place is there before it is
  const image = h("img", { src: url, alt: name || "Image of the result", loading: "lazy", ...sized });
  if (sized.width) image.style.maxWidth = `${LARGEST * width}px`;
  const label = `Look at ${name || "the image"} in full size`;
  const open = h("button", { type: "button", class: "picture", "aria-label": veiled ? "Hidden, as it may not be safe to look at. Show it" : label }, image);
  open.addEventListener("click", () => {
    if (open.classList.contains("veiled")) {
      open.classList.remove("veiled");
      open.setAttribute("aria-label", label);
    } else zoom(image);
  });
  open.classList.toggle("veiled", Boolean(veiled));
  const caption = said.textContent;
  image.addEventListener("load", () => {
    image.style.maxWidth = `${LARGEST * image.naturalWidth}px`;
    said.textContent = [`${image.naturalWidth} × ${image.naturalHeight}`, caption].filter(Boolean).join(" · ");
  });
  image.addEventListener("error", () => open.replaceWith(h("p", { class: "hint" }, "This browser cannot show the picture.")));
  return open;
}

function video(url, said) {
  const node = h("video", { src: url, controls: true, preload: "metadata", playsInline: true, loop: true });
  const caption = said.textContent;
  node.addEventListener("loadedmetadata", () => {
    const seconds = Number.isFinite(node.duration) ? `${node.duration.toFixed(1)} s` : undefined;
    said.textContent = [`${node.videoWidth} × ${node.videoHeight}`, seconds, caption].filter(Boolean).join(" · ");
  });
  node.addEventListener("error", () => node.replaceWith(h("p", { class: "hint" }, "This browser cannot play the video.")));
  return node;
}

/** A file that is not shown: its name and size, and what may be done with it. */
export function fileCard(name, size, ...actions) {
  return h("div", { class: "file-card" }, icon(GLYPHS.file), h("span", { class: "file-name" }, name, size ? h("small", {}, ` ${bytes(size)}`) : undefined), actions);
}

/** A 3D model that can be turned, or a card where it cannot be drawn. */
export function modelView(url, name, size) {
  if (UNDRAWN.test(name)) return fileCard(name, size);
  const node = h("div", { class: "model", "aria-busy": "true" }, h("p", { class: "hint" }, "Loading the model …"));
  const load = () => import("./model.js").then(({ showModel }) => showModel(node, url, name)).catch((error) => {
    node.replaceChildren(fileCard(name || "3D model", size), h("p", { class: "hint" }, `No preview: ${error.message}`));
  }).finally(() => node.removeAttribute("aria-busy"));
  if (size > MOST_MODEL_BYTES) {
    node.removeAttribute("aria-busy");
    node.replaceChildren(fileCard(name || "3D model", size, h("button", { type: "button", class: "quiet", onclick: load }, "Show it")));
  } else load();
  return node;
}

function hdrView(url, name) {
  const node = h("div", { class: "hdr", "aria-busy": "true" }, h("p", { class: "hint" }, "Loading the picture …"));
  import("./exr.js").then(({ showExr }) => showExr(node, url, name)).catch((error) => {
    node.replaceChildren(fileCard(name || "picture.exr"), h("p", { class: "hint" }, `No preview: ${error.message}`));
  }).finally(() => node.removeAttribute("aria-busy"));
  return node;
}

function zoom(image) {
  const dialog = byId("zoom");
  const large = h("img", { src: image.src, alt: image.alt });
  const close = h("button", { type: "button", class: "quiet icon drop", "aria-label": "Close", onclick: () => dialog.close() }, icon(GLYPHS.close));
  large.addEventListener("click", () => large.classList.toggle("full"));
  dialog.replaceChildren(large, close);
  dialog.onclick = (event) => event.target === dialog && dialog.close();
  dialog.showModal();
}
