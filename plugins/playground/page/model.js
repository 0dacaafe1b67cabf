// A 3D model to be turned: drawn by WebGL when something changes, and not in between.

import { GLYPHS, h, icon } from "./dom.js";
import { meshOf, times } from "./mesh.js";

const NARROW = 0.75; // radians from the bottom to the top of the view
const [TURN_KEY, TURN_PIXEL] = [0.15, 0.01]; // radians
const [NEAREST, FARTHEST] = [0.4, 5]; // of the distance that shows all

const VERTEX = `#version 300 es
uniform mat4 view, projection;
in vec3 position, normal, color;
in vec2 uv;
out vec3 at, facing, tint;
out vec2 place;
void main() {
  vec4 seen = view * vec4(position, 1.);
  at = seen.xyz; facing = mat3(view) * normal; tint = color; place = uv;
  gl_Position = projection * seen;
  gl_PointSize = 3.;
}`;

// Where a file gives no normals, the slope of the surface is one. Light comes from beside the eye.
const FRAGMENT = `#version 300 es
precision highp float;
uniform vec3 factor;
uniform bool textured, points;
uniform sampler2D skin;
in vec3 at, facing, tint;
in vec2 place;
out vec4 shown;
void main() {
  vec3 base = factor * tint * (textured ? pow(texture(skin, place).rgb, vec3(2.2)) : vec3(1.));
  float light = 1.;
  if (!points) {
    vec3 flat_ = cross(dFdx(at), dFdy(at));
    vec3 n = normalize(dot(facing, facing) > 1e-6 ? facing : flat_);
    if (dot(n, at) > 0.) n = -n;
    light = .3 + .8 * max(0., dot(n, normalize(vec3(.4, .7, 1.)))) + .15 * max(0., dot(n, normalize(vec3(-1., -.2, .4))));
  }
  shown = vec4(pow(base * light, vec3(1. / 2.2)), 1.);
}`;

const MOST_CONTEXTS = 8; // a browser has about sixteen
const living = []; // pictures whose context is there, the oldest first

/** Fill `node` with the model at `url`. Error when it cannot be read or drawn. */
export async function showModel(node, url, name) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`the server says ${response.status}`);
  const mesh = meshOf(await response.arrayBuffer(), name);
  const images = await Promise.all(mesh.parts.map(({ image }) => image && createImageBitmap(image).catch(() => undefined)));
  while (living.length >= MOST_CONTEXTS) living.splice(Math.max(0, living.findIndex(({ canvas }) => !canvas.isConnected)), 1)[0].lose();
  const triangles = mesh.parts.reduce((sum, { indices, positions, points }) => sum + (points ? 0 : (indices?.length ?? positions.length / 3) / 3), 0);
  const points = mesh.parts.reduce((sum, { positions, points: loose }) => sum + (loose ? positions.length / 3 : 0), 0);
  const said = triangles ? `${triangles.toLocaleString("en")} triangles` : `${points.toLocaleString("en")} points`;
  const canvas = h("canvas", { tabIndex: 0, role: "img", "aria-label": `3D model, ${said}. Drag or arrow keys turn it, plus and minus come closer.` });
  const picture = pictureOf(canvas, mesh, images);
  living.push(picture);
  canvas.addEventListener("webglcontextlost", () => {
    const again = h("button", { type: "button", class: "plain", onclick: () => showModel(node, url, name) }, "Show the model again");
    node.replaceChildren(again);
  });
  const camera = cameraOf(canvas, mesh, picture);
  const button = (glyph, label, onclick) => h("button", { type: "button", class: "quiet icon", title: label, "aria-label": label, onclick }, icon(GLYPHS[glyph]));
  const tools = h("div", { class: "model-tools" }, button("plus", "Closer", () => camera.come(0.8)), button("minus", "Farther", () => camera.come(1.25)), button("repeat", "As it was", camera.reset));
  node.replaceChildren(canvas, tools, h("small", { class: "model-said" }, said));
  new ResizeObserver(camera.draw).observe(canvas);
}

/** Where one looks from; pointers and keys move it. */
function cameraOf(canvas, { low, high }, picture) {
  const middle = low.map((value, i) => (value + high[i]) / 2);
  const radius = Math.hypot(...low.map((value, i) => high[i] - value)) / 2 || 1;
  let turn, tilt, far, due;
  function draw() {
    if (due) return;
    due = requestAnimationFrame(() => {
      due = undefined;
      const dense = Math.min(2, devicePixelRatio);
      canvas.width = Math.max(1, canvas.clientWidth * dense);
      canvas.height = Math.max(1, canvas.clientHeight * dense);
      const aspect = canvas.width / canvas.height;
      const away = (far * radius) / Math.sin(Math.min(NARROW, NARROW * aspect) / 2);
      const turned = times(turnX(tilt), turnY(turn));
      const view = times(moveBy([0, 0, -away]), times(turned, moveBy(middle.map((value) => -value))));
      picture.draw(view, perspective(NARROW, aspect, Math.max(away - 2 * radius, away / 100), away + 2 * radius));
    });
  }
  const move = (x, y) => {
    turn += x;
    tilt = Math.max(-Math.PI / 2, Math.min(Math.PI / 2, tilt + y));
    draw();
  };
  const come = (times_) => {
    far = Math.max(NEAREST, Math.min(FARTHEST, far * times_));
    draw();
  };
  const reset = () => {
    [turn, tilt, far] = [-0.6, 0.35, 1];
    draw();
  };
  reset();
  canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
  canvas.addEventListener("pointermove", (event) => event.buttons && move(event.movementX * TURN_PIXEL, event.movementY * TURN_PIXEL));
  canvas.addEventListener("wheel", (event) => {
    if (document.activeElement !== canvas) return; // else it scrolls the page
    event.preventDefault();
    come(Math.exp(event.deltaY / 500));
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (step) move(step[0] * TURN_KEY, step[1] * TURN_KEY);
    else if (event.key === "+" || event.key === "=") come(0.8);
    else if (event.key === "-") come(1.25);
    else return;
    event.preventDefault();
  });
  return { draw, come, reset };
}

/** The mesh in the memory of the graphics card. */
function pictureOf(canvas, { parts }, images) {
  const gl = canvas.getContext("webgl2", { alpha: true, antialias: true, preserveDrawingBuffer: true });
  if (!gl) throw new Error("this browser has no WebGL");
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error("WebGL refuses to draw it");
  const uniform = (name) => gl.getUniformLocation(program, name);
  const drawn = parts.map((part, i) => {
    const array = gl.createVertexArray();
    gl.bindVertexArray(array);
    for (const [name, values, size, usual] of [["position", part.positions, 3], ["normal", part.normals, 3, [0, 0, 0]], ["color", part.colors, 3, [1, 1, 1]], ["uv", part.uvs, 2, [0, 0, 0]]]) {
      const place = gl.getAttribLocation(program, name);
      if (!values) {
        gl.vertexAttrib3f(place, ...usual);
        continue;
      }
      gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
      gl.bufferData(gl.ARRAY_BUFFER, values instanceof Float32Array ? values : Float32Array.from(values), gl.STATIC_DRAW);
      gl.enableVertexAttribArray(place);
      gl.vertexAttribPointer(place, size, gl.FLOAT, false, 0, 0);
    }
    if (part.indices) {
      gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
      gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, part.indices, gl.STATIC_DRAW);
    }
    const count = part.indices?.length ?? part.positions.length / 3;
    const plain = part.colors || images[i] ? [1, 1, 1] : [0.6, 0.62, 0.66];
    return { array, count, indexed: Boolean(part.indices), points: part.points, factor: part.factor ?? plain, skin: images[i] && textureOf(gl, images[i]) };
  });
  return {
    canvas,
    lose: () => gl.getExtension("WEBGL_lose_context")?.loseContext(),
    draw(view, projection) {
      gl.viewport(0, 0, canvas.width, canvas.height);
      gl.clearColor(0, 0, 0, 0);
      gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
      gl.enable(gl.DEPTH_TEST);
      gl.useProgram(program);
      gl.uniformMatrix4fv(uniform("view"), false, view);
      gl.uniformMatrix4fv(uniform("projection"), false, projection);
      for (const { array, count, indexed, points, factor, skin } of drawn) {
        gl.bindVertexArray(array);
        gl.uniform3fv(uniform("factor"), factor);
        gl.uniform1i(uniform("textured"), skin ? 1 : 0);
        gl.uniform1i(uniform("points"), points ? 1 : 0);
        gl.bindTexture(gl.TEXTURE_2D, skin ?? null);
        const mode = points ? gl.POINTS : gl.TRIANGLES;
        if (indexed) gl.drawElements(mode, count, gl.UNSIGNED_INT, 0);
        else gl.drawArrays(mode, 0, count);
      }
    },
  };
}

function textureOf(gl, image) {
  const texture = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, texture);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, image);
  gl.generateMipmap(gl.TEXTURE_2D);
  gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.LINEAR_MIPMAP_LINEAR);
  return texture;
}

const moveBy = ([x, y, z]) => [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, x, y, z, 1];

function turnY(angle) {
  const [c, s] = [Math.cos(angle), Math.sin(angle)];
  return [c, 0, -s, 0, 0, 1, 0, 0, s, 0, c, 0, 0, 0, 0, 1];
}

function turnX(angle) {
  const [c, s] = [Math.cos(angle), Math.sin(angle)];
  return [1, 0, 0, 0, 0, c, s, 0, 0, -s, c, 0, 0, 0, 0, 1];
}

function perspective(angle, aspect, near, far) {
  const f = 1 / Math.tan(angle / 2);
  return [f / aspect, 0, 0, 0, 0, f, 0, 0, 0, 0, (far + near) / (near - far), -1, 0, 0, (2 * far * near) / (near - far), 0];
}
