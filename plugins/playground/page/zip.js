// Files packed into one ZIP, not compressed: pictures and sounds already are.

const LOCAL = 0x04034b50;
const CENTRAL = 0x02014b50;
const END = 0x06054b50;
const VERSION = 20;
const UTF8 = 0x0800;
const MOST_BYTES = 2 ** 32 - 1; // more needs another format
const MOST_FILES = 2 ** 16 - 1;

/** A ZIP of `files`. Those of one name are told apart by a number. */
export async function zip(files, name) {
  if (files.length > MOST_FILES) throw new Error(`${files.length} files are too many for a ZIP`);
  const parts = [];
  const index = [];
  let at = 0;
  for (const [i, file] of unique(files).entries()) {
    const path = new TextEncoder().encode(file);
    const head = header(files[i], path.length, crc32(new Uint8Array(await files[i].arrayBuffer())));
    const local = record(LOCAL, 30, head);
    index.push(record(CENTRAL, 46, head, at), path);
    parts.push(local, path, files[i]);
    at += local.byteLength + path.length + files[i].size;
    if (at > MOST_BYTES) throw new Error("the files are more than 4 GiB");
  }
  const size = index.reduce((sum, part) => sum + part.byteLength, 0);
  const end = new DataView(new ArrayBuffer(22));
  end.setUint32(0, END, true);
  end.setUint16(8, files.length, true);
  end.setUint16(10, files.length, true);
  end.setUint32(12, size, true);
  end.setUint32(16, at, true);
  return new File([...parts, ...index, end], name, { type: "application/zip" });
}

function unique(files) {
  const seen = new Set();
  return files.map(({ name }) => {
    let free = name;
    for (let i = 2; seen.has(free); i++) free = name.replace(/(\.[^./]*)?$/, ` (${i})$1`);
    seen.add(free);
    return free;
  });
}

function header(file, nameLength, crc) {
  const day = new Date(file.lastModified);
  const time = (day.getHours() << 11) | (day.getMinutes() << 5) | (day.getSeconds() >> 1);
  const date = ((day.getFullYear() - 1980) << 9) | ((day.getMonth() + 1) << 5) | day.getDate();
  const view = new DataView(new ArrayBuffer(26)); // what both records have in common
  view.setUint16(0, VERSION, true);
  view.setUint16(2, UTF8, true);
  view.setUint16(6, time, true);
  view.setUint16(8, date, true);
  view.setUint32(10, crc, true);
  view.setUint32(14, file.size, true);
  view.setUint32(18, file.size, true);
  view.setUint16(22, nameLength, true);
  return view;
}

function record(magic, length, head, at) {
  const view = new DataView(new ArrayBuffer(length));
  view.setUint32(0, magic, true);
  if (magic === CENTRAL) {
    view.setUint16(4, VERSION, true);
    view.setUint32(42, at, true);
  }
  new Uint8Array(view.buffer).set(new Uint8Array(head.buffer), magic === CENTRAL ? 6 : 4);
  return view;
}

const TABLE = Uint32Array.from({ length: 256 }, (_, value) => {
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

function crc32(data) {
  let crc = -1;
  for (const byte of data) crc = (crc >>> 8) ^ TABLE[(crc ^ byte) & 255];
  return ~crc >>> 0;
}
