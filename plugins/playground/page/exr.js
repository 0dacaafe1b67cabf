// Pictures with more light than a screen has (OpenEXR), drawn with a slider for the exposure.
// Scan lines of half or float, uncompressed or by RLE, ZIPS or ZIP; other kinds are an error that says so.

import { h, newId } from "./dom.js";

const MAGIC = 20000630;
const [UINT, HALF, FLOAT] = [0, 1, 2];
const KINDS = ["none", "RLE", "ZIPS", "ZIP", "PIZ", "PXR24", "B44", "B44A", "DWAA", "DWAB"];
const LINES = { 0: 1, 1: 1, 2: 1, 3: 16 }; // in one block, by compression
const [TILED, DEEP, MANY] = [0x200, 0x800, 0x1000];
const MOST_PIXELS = 64 * 2 ** 20;

/** Fill `node` with the picture at `url`. Error when it cannot be read. */
export async function showExr(node, url, name) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`the server says ${response.status}`);
  const { width, height, light } = await read(await response.arrayBuffer());
  const canvas = h("canvas", { width, height, role: "img", "aria-label": name || "Picture of high dynamic range" });
  const id = newId("exposure");
  const slider = h("input", { id, type: "range", min: "-8", max: "8", step: "0.25", value: "0", oninput: draw });
  const said = h("small", {});
  const pen = canvas.getContext("2d");
  const shown = pen.createImageData(width, height);
  function draw() {
    const gain = 2 ** Number(slider.value);
    for (let i = 0; i < width * height; i++) {
      for (let c = 0; c < 3; c++) {
        const value = Math.max(0, light[i * 3 + c] * gain);
        shown.data[i * 4 + c] = 255 * (value <= 0.0031308 ? 12.92 * value : 1.055 * value ** (1 / 2.4) - 0.055); // clamped by the array
      }
      shown.data[i * 4 + 3] = 255;
    }
    pen.putImageData(shown, 0, 0);
    said.textContent = `${slider.value > 0 ? "+" : ""}${slider.value} stops`;
  }
  draw();
  node.replaceChildren(canvas, h("div", { class: "row" }, h("label", { for: id }, "Exposure"), slider, said));
}

/** Linear light, three numbers for each pixel. */
async function read(data) {
  const view = new DataView(data);
  if (data.byteLength < 8 || view.getUint32(0, true) !== MAGIC) throw new Error("it is no OpenEXR file");
  if (view.getUint32(4, true) & (TILED | DEEP | MANY)) throw new Error("tiled, deep and many-part files are not drawn here");
  const { fields, end } = header(view);
  const kind = view.getUint8(fields.compression);
  if (!(kind in LINES)) throw new Error(`files compressed by ${KINDS[kind] ?? kind} are not drawn here`);
  const [left, top, right, bottom] = [0, 4, 8, 12].map((at) => view.getInt32(fields.dataWindow + at, true));
  const [width, height] = [right - left + 1, bottom - top + 1];
  if (!(width > 0 && height > 0 && width * height <= MOST_PIXELS)) throw new Error(`${width} × ${height} pixels are not drawn here`);
  const channels = channelsAt(view, fields.channels);
  const places = colorsOf(channels);
  const light = new Float32Array(width * height * 3);
  const lineBytes = channels.reduce((sum, { bytes }) => sum + bytes * width, 0);
  for (let block = 0; block < Math.ceil(height / LINES[kind]); block++) {
    const at = Number(view.getBigUint64(end + block * 8, true));
    const first = view.getInt32(at, true) - top;
    const packed = new Uint8Array(data, at + 8, view.getInt32(at + 4, true));
    const lines = Math.min(LINES[kind], height - first);
    const plain = new DataView(await unpacked(packed, kind, lines * lineBytes));
    for (let line = 0; line < lines; line++) {
      let offset = line * lineBytes;
      channels.forEach(({ type, bytes }, i) => {
        for (const c of places[i]) for (let x = 0; x < width; x++) light[((first + line) * width + x) * 3 + c] = number(plain, offset + x * bytes, type);
        offset += bytes * width;
      });
    }
  }
  return { width, height, light };
}

/** Where each attribute's value begins, and where the header ends. */
function header(view) {
  const fields = {};
  let at = 8;
  const text = () => {
    let found = "";
    for (let byte; (byte = view.getUint8(at++)); ) found += String.fromCharCode(byte);
    return found;
  };
  for (let name; (name = text()); ) {
    text(); // its type
    const size = view.getInt32(at, true);
    at += 4;
    fields[name] = at;
    at += size;
  }
  return { fields, end: at };
}

function channelsAt(view, at) {
  const found = [];
  while (view.getUint8(at)) {
    let name = "";
    for (let byte; (byte = view.getUint8(at++)); ) name += String.fromCharCode(byte);
    const type = view.getInt32(at, true);
    if (view.getInt32(at + 8, true) !== 1 || view.getInt32(at + 12, true) !== 1) throw new Error("subsampled channels are not drawn here");
    found.push({ name, type, bytes: type === HALF ? 2 : 4 });
    at += 16;
  }
  return found;
}

/** For each channel the colours it fills: R, G and B, or the first one as grey. */
function colorsOf(channels) {
  const colors = channels.map(({ name }) => ({ R: [0], G: [1], B: [2] })[name.split(".").pop()] ?? []);
  if (colors.some((one) => one.length)) return colors;
  const grey = Math.max(0, channels.findIndex(({ name }) => name === "Y" || name === "Z"));
  return channels.map((_, i) => (i === grey ? [0, 1, 2] : []));
}

function number(view, at, type) {
  if (type === FLOAT) return view.getFloat32(at, true);
  if (type === UINT) return view.getUint32(at, true);
  const bits = view.getUint16(at, true);
  const [exponent, part] = [(bits >> 10) & 31, bits & 1023];
  const size = exponent === 0 ? part * 2 ** -24 : exponent === 31 ? 65504 : (1 + part / 1024) * 2 ** (exponent - 15);
  return bits & 0x8000 ? -size : size;
}

async function unpacked(packed, kind, size) {
  if (kind === 0 || packed.length === size) return packed.slice().buffer;
  const plain = kind === 1 ? runs(packed, size) : new Uint8Array(await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"))).arrayBuffer());
  for (let i = 1; i < plain.length; i++) plain[i] = plain[i - 1] + plain[i] - 128; // differences
  const half = Math.ceil(plain.length / 2);
  return Uint8Array.from(plain, (_, i) => plain[i % 2 ? half + (i >> 1) : i >> 1]).buffer; // even bytes first, then odd ones
}

function runs(packed, size) {
  const plain = new Uint8Array(size);
  for (let from = 0, to = 0; from < packed.length; ) {
    const count = (packed[from++] << 24) >> 24;
    if (count < 0) {
      plain.set(packed.subarray(from, from - count), to);
      from -= count;
      to -= count;
    } else {
      plain.fill(packed[from++], to, to + count + 1);
      to += count + 1;
    }
  }
  return plain;
}
