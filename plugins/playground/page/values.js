// Plain values: compared, shortened, measured, recognised as media. No DOM.

export const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

export function equal(a, b) {
  if (a === b) return true;
  if (Array.isArray(a) && Array.isArray(b)) return a.length === b.length && a.every((item, i) => equal(item, b[i]));
  if (!isObject(a) || !isObject(b)) return false;
  const names = Object.keys(a);
  return names.length === Object.keys(b).length && names.every((name) => equal(a[name], b[name]));
}

export function duration(ms) {
  if (ms === undefined || ms === null || Number.isNaN(ms)) return "–";
  if (ms < 10) return `${ms.toFixed(1)} ms`;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`;
  return `${Math.floor(ms / 60_000)} min ${Math.round((ms % 60_000) / 1000)} s`;
}

export function bytes(size) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  for (; size >= 1024 && at < units.length - 1; at++) size /= 1024;
  return `${at && size < 10 ? size.toFixed(1) : Math.round(size)} ${units[at]}`;
}

const EXTENSIONS = {
  image: /\.(avif|bmp|gif|jpe?g|png|svg|webp)$/i,
  audio: /\.(aac|flac|m4a|mp3|oga|ogg|opus|wav)$/i,
  video: /\.(m4v|mov|mp4|ogv|webm)$/i,
  model: /\.(fbx|glb|gltf|mesh|obj|stl)$/i,
  hdr: /\.exr$/i,
};
const NAMES = [
  [/(^|_)(model_(glb|obj|mesh)|mesh)(_urls?)?$/, "model"],
  [/(^|_)images?(_urls?)?$/, "image"],
  [/(^|_)videos?(_urls?)?$/, "video"],
  [/(^|_)(audios?|audio_file)(_urls?)?$/, "audio"],
];

/** What `value`, found under `name` in a result, shows: `{kind, url, ...}`, or undefined when it is no medium. */
export function mediumOf(value, name = "") {
  const url = isObject(value) ? value.url : value;
  if (typeof url !== "string" || !/^(https?:|data:|\/)/.test(url)) return undefined;
  const type = isObject(value) ? value.content_type : /^data:([^;,]+)/.exec(url)?.[1];
  if (isObject(value) && !("content_type" in value) && !("file_name" in value)) return undefined;
  const fileName = isObject(value) && value.file_name ? String(value.file_name) : fileNameOf(url);
  const kind = kindOfType(type) ?? kindOfName(fileName) ?? kindOfName(fileNameOf(url)) ?? NAMES.find(([pattern]) => pattern.test(name))?.[1];
  if (!kind && !isObject(value)) return undefined;
  return { kind: kind ?? "file", url: local(url), type, name: fileName, size: value.file_size, width: value.width, height: value.height };
}

export function kindOfType(type) {
  if (/^image\/(x-)?(aces|exr|x-exr)$/.test(type ?? "")) return "hdr";
  return /^(image|audio|video|model)\//.exec(type ?? "")?.[1];
}

function kindOfName(path) {
  return Object.keys(EXTENSIONS).find((kind) => EXTENSIONS[kind].test(path));
}

export function fileNameOf(url) {
  if (/^(data|blob):/.test(url)) return "";
  try {
    return decodeURIComponent(url.replace(/[?#].*$/, "").split("/").pop() ?? "");
  } catch {
    return ""; // a stray percent sign
  }
}

/** One machine has several names for itself: a file of this server is asked for by the name the page has. */
export function local(url) {
  if (url.startsWith("data:")) return url;
  const parsed = new URL(url, document.baseURI);
  const loops = /^(localhost|127\.\d+\.\d+\.\d+|\[::1\]|0\.0\.0\.0)$/;
  if (loops.test(parsed.hostname) && /^\/files\/[0-9a-f]{32}\//.test(parsed.pathname)) {
    return new URL(parsed.pathname.slice(1), new URL(".", document.baseURI)).href;
  }
  return parsed.href;
}

/** Whether the page may show it: the policy lets nothing in from other hosts. */
export const isShown = (url) => /^(data|blob):/.test(url) || new URL(url, document.baseURI).origin === location.origin;

/** JSON as people read it: short lists and objects on one line. */
export function pretty(value, indent = "") {
  const flat = JSON.stringify(value);
  if (flat === undefined) return "null";
  if (typeof value !== "object" || value === null || flat.length + indent.length <= 60) return spaced(value, flat);
  const inner = `${indent}  `;
  const parts = Array.isArray(value)
    ? value.map((item) => inner + pretty(item, inner))
    : Object.entries(value).map(([name, item]) => `${inner}${JSON.stringify(name)}: ${pretty(item, inner)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  return `${open}\n${parts.join(",\n")}\n${indent}${close}`;
}

function spaced(value, flat) {
  if (Array.isArray(value)) return `[${value.map((item) => pretty(item)).join(", ")}]`;
  if (isObject(value)) return `{${Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${pretty(item)}`).join(", ")}}`;
  return flat;
}
