// 3D files read into plain arrays: GLB and glTF, OBJ, STL. No DOM.
//
// A mesh is `{parts: [{positions, normals?, uvs?, colors?, indices?, points?, factor?, image?}], low, high}`, where
// positions are in one space for all parts, and low and high are the corners of the box around them.

const GLB = 0x46546c67;
const [JSON_CHUNK, BINARY_CHUNK] = [0x4e4f534a, 0x004e4942];
const SIZES = { SCALAR: 1, VEC2: 2, VEC3: 3, VEC4: 4, MAT4: 16 };
const ARRAYS = { 5120: Int8Array, 5121: Uint8Array, 5122: Int16Array, 5123: Uint16Array, 5125: Uint32Array, 5126: Float32Array };
const [POINTS, TRIANGLES, STRIP, FAN] = [0, 4, 5, 6];
const MUST = { KHR_draco_mesh_compression: "it is compressed by Draco", EXT_meshopt_compression: "it is compressed by meshopt" };

/** The mesh in `data`, an ArrayBuffer. Error when it is damaged, or of no kind that is read here. */
export function meshOf(data, name) {
  try {
    return read(data, name);
  } catch (error) {
    throw error.constructor === Error ? error : new Error("the file is damaged");
  }
}

function read(data, name) {
  const view = new DataView(data);
  const kind = /\.(\w+)$/.exec(name ?? "")?.[1]?.toLowerCase();
  let parts;
  if (data.byteLength >= 12 && view.getUint32(0, true) === GLB) parts = gltf(...chunks(view));
  else if (kind === "stl") parts = stl(data, view);
  else {
    const text = new TextDecoder().decode(data.slice(0, 4096)).trimStart();
    if (text.startsWith("{")) parts = gltf(JSON.parse(new TextDecoder().decode(data)));
    else if (/^(#|v|vn|vt|o|g|mtllib|usemtl|s)\s/m.test(text) && !/[\0]/.test(text)) parts = obj(new TextDecoder().decode(data));
    else throw new Error("it is neither GLB, glTF, OBJ nor STL");
  }
  const found = parts.filter(({ positions }) => positions.length);
  if (!found.length) throw new Error("it holds no triangles and no points");
  return { parts: found, ...box(found) };
}

function box(parts) {
  const [low, high] = [[Infinity, Infinity, Infinity], [-Infinity, -Infinity, -Infinity]];
  for (const { positions } of parts) {
    for (let i = 0; i < positions.length; i++) {
      const value = positions[i];
      if (value < low[i % 3]) low[i % 3] = value;
      if (value > high[i % 3]) high[i % 3] = value;
    }
  }
  return { low, high };
}

// --- glTF

function chunks(view) {
  let [json, binary] = [undefined, undefined];
  for (let at = 12; at + 8 <= view.byteLength; ) {
    const [length, kind] = [view.getUint32(at, true), view.getUint32(at + 4, true)];
    const data = new Uint8Array(view.buffer, at + 8, length);
    if (kind === JSON_CHUNK) json = JSON.parse(new TextDecoder().decode(data));
    else if (kind === BINARY_CHUNK) binary ??= data;
    at += 8 + length;
  }
  return [json, binary];
}

function gltf(json, binary) {
  const missing = (json.extensionsRequired ?? []).find((name) => MUST[name]);
  if (missing) throw new Error(MUST[missing]);
  const buffers = (json.buffers ?? []).map(({ uri }) => (uri === undefined ? binary : fromDataUri(uri)));
  const parts = [];
  const nodes = json.nodes ?? [];
  const roots = json.scenes?.[json.scene ?? 0]?.nodes ?? nodes.keys();
  const visit = (index, above, depth) => {
    const node = nodes[index];
    if (!node || depth > 64) return;
    const placed = times(above, node.matrix ?? matrixOf(node));
    for (const primitive of json.meshes?.[node.mesh]?.primitives ?? []) parts.push(partOf(json, buffers, primitive, placed));
    for (const child of node.children ?? []) visit(child, placed, depth + 1);
  };
  for (const root of roots) visit(root, IDENTITY, 0);
  return parts.filter(Boolean);
}

function partOf(json, buffers, primitive, placed) {
  const { attributes, mode = TRIANGLES } = primitive;
  if (attributes.POSITION === undefined || ![POINTS, TRIANGLES, STRIP, FAN].includes(mode)) return undefined;
  const read = (index) => (index === undefined ? undefined : accessor(json, buffers, index));
  const material = json.materials?.[primitive.material];
  const skin = material?.pbrMetallicRoughness ?? {};
  const texture = json.textures?.[skin.baseColorTexture?.index];
  const image = json.images?.[texture?.source ?? texture?.extensions?.EXT_texture_webp?.source];
  const indices = read(primitive.indices)?.values;
  const colors = read(attributes.COLOR_0);
  return {
    positions: moved(read(attributes.POSITION).values, placed, 1),
    normals: attributes.NORMAL === undefined ? undefined : moved(read(attributes.NORMAL).values, placed, 0),
    uvs: read(attributes[`TEXCOORD_${skin.baseColorTexture?.texCoord ?? 0}`])?.values,
    colors: colors && rgb(colors),
    indices: mode === STRIP || mode === FAN ? fanned(indices ?? [...Array(read(attributes.POSITION).count).keys()], mode) : indices && Uint32Array.from(indices),
    points: mode === POINTS,
    factor: skin.baseColorFactor?.slice(0, 3),
    image: image && imageOf(json, buffers, image),
  };
}

/** The numbers of an accessor, packed; those that are normalized are from -1 or 0 to 1. */
function accessor(json, buffers, index) {
  const { bufferView, byteOffset = 0, componentType, count, type, normalized } = json.accessors[index];
  const [size, Kind] = [SIZES[type], ARRAYS[componentType]];
  const view = json.bufferViews?.[bufferView];
  const values = new (normalized ? Float32Array : Kind)(count * size);
  if (!view) return { values, size, count };
  const bytes = buffers[view.buffer];
  if (!bytes) throw new Error("it needs other files beside it");
  const stride = view.byteStride ?? size * Kind.BYTES_PER_ELEMENT;
  const start = bytes.byteOffset + (view.byteOffset ?? 0) + byteOffset;
  const packed = stride === size * Kind.BYTES_PER_ELEMENT && start % Kind.BYTES_PER_ELEMENT === 0;
  const scale = normalized ? 1 / (2 ** (8 * Kind.BYTES_PER_ELEMENT - (Kind.name.startsWith("U") ? 0 : 1)) - 1) : 1;
  for (let i = 0; i < (packed ? 1 : count); i++) {
    const length = packed ? count * size : size;
    const from = start + i * stride;
    const some = packed ? new Kind(bytes.buffer, from, length) : new Kind(bytes.buffer.slice(from, from + length * Kind.BYTES_PER_ELEMENT));
    values.set(normalized ? Float32Array.from(some, (value) => value * scale) : some, i * size);
  }
  return { values, size, count };
}

function rgb({ values, size, count }) {
  if (size === 3) return Float32Array.from(values);
  const colors = new Float32Array(count * 3);
  for (let i = 0; i < count; i++) for (let c = 0; c < 3; c++) colors[i * 3 + c] = values[i * size + c];
  return colors;
}

function fanned(order, mode) {
  const found = [];
  for (let i = 2; i < order.length; i++) {
    if (mode === FAN) found.push(order[0], order[i - 1], order[i]);
    else found.push(order[i - 2], order[i - 1 + (i % 2 ? 1 : 0)], order[i - (i % 2 ? 1 : 0)]);
  }
  return Uint32Array.from(found);
}

function imageOf(json, buffers, { uri, bufferView, mimeType }) {
  if (uri?.startsWith("data:")) return new Blob([fromDataUri(uri)]);
  const view = json.bufferViews?.[bufferView];
  const bytes = view && buffers[view.buffer];
  return bytes && new Blob([bytes.subarray(view.byteOffset ?? 0, (view.byteOffset ?? 0) + view.byteLength)], { type: mimeType });
}

function fromDataUri(uri) {
  const [, text] = /^data:[^,]*;base64,(.*)$/s.exec(uri) ?? [];
  return text === undefined ? undefined : Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

// --- matrices, by columns

const IDENTITY = [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1];

export function times(a, b) {
  return Array.from({ length: 16 }, (_, i) => [0, 1, 2, 3].reduce((sum, k) => sum + a[k * 4 + (i % 4)] * b[(i >> 2) * 4 + k], 0));
}

function matrixOf({ translation: [tx, ty, tz] = [0, 0, 0], rotation: [x, y, z, w] = [0, 0, 0, 1], scale: [sx, sy, sz] = [1, 1, 1] }) {
  return [
    sx * (1 - 2 * (y * y + z * z)), sx * 2 * (x * y + z * w), sx * 2 * (x * z - y * w), 0,
    sy * 2 * (x * y - z * w), sy * (1 - 2 * (x * x + z * z)), sy * 2 * (y * z + x * w), 0,
    sz * 2 * (x * z + y * w), sz * 2 * (y * z - x * w), sz * (1 - 2 * (x * x + y * y)), 0,
    tx, ty, tz, 1,
  ];
}

/** Points (`w` 1) or directions (`w` 0) where the matrix takes them. */
function moved(values, m, w) {
  const found = new Float32Array(values.length);
  for (let i = 0; i < values.length; i += 3) {
    const [x, y, z] = [values[i], values[i + 1], values[i + 2]];
    for (let c = 0; c < 3; c++) found[i + c] = m[c] * x + m[c + 4] * y + m[c + 8] * z + m[c + 12] * w;
  }
  return found;
}

// --- OBJ and STL

function obj(text) {
  const [places, colors, at] = [[], [], []];
  for (const line of text.split("\n")) {
    if (line.startsWith("v ")) {
      const [x, y, z, ...more] = line.trim().split(/\s+/).slice(1).map(Number);
      places.push([x, y, z]);
      if (more.length >= 3) colors[places.length - 1] = more.slice(-3);
    } else if (line.startsWith("f ")) {
      const corners = line.trim().split(/\s+/).slice(1).map((corner) => {
        const number = parseInt(corner, 10);
        return number < 0 ? places.length + number : number - 1;
      });
      for (let i = 2; i < corners.length; i++) at.push(corners[0], corners[i - 1], corners[i]);
    }
  }
  if (at.some((corner) => !places[corner])) throw new Error("a face names a vertex that is not there");
  const tinted = colors.length > 0;
  return [{
    positions: Float32Array.from(places.flat()),
    colors: tinted ? Float32Array.from(places.flatMap((_, i) => colors[i] ?? [0.8, 0.8, 0.8])) : undefined,
    indices: at.length ? Uint32Array.from(at) : undefined,
    points: !at.length,
  }];
}

function stl(data, view) {
  const count = data.byteLength >= 84 ? view.getUint32(80, true) : 0;
  if (data.byteLength !== 84 + 50 * count) {
    const numbers = [...new TextDecoder().decode(data).matchAll(/vertex\s+(\S+)\s+(\S+)\s+(\S+)/g)].flatMap(([, ...xyz]) => xyz.map(Number));
    return [{ positions: Float32Array.from(numbers) }];
  }
  const positions = new Float32Array(count * 9);
  for (let i = 0; i < count; i++) for (let k = 0; k < 9; k++) positions[i * 9 + k] = view.getFloat32(84 + i * 50 + 12 + k * 4, true);
  return [{ positions }];
}
