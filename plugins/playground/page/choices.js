// Choices that are seen rather than read: shapes of pictures, movements of a camera, colours.

import { GLYPHS, choice, h, icon, svg } from "./dom.js";
import { textOf } from "./controls.js";
import { words } from "./schema.js";
import { equal, isObject } from "./values.js";

const SIDE = 20; // of the field that a shape is drawn on

/** What fal's names for sizes mean, in pixels. */
const SIZES = {
  square_hd: [1024, 1024], square: [512, 512], portrait_4_3: [768, 1024], portrait_16_9: [576, 1024],
  landscape_4_3: [1024, 768], landscape_16_9: [1024, 576],
};

/** Movements of a camera by the names that video models use. */
const MOVEMENTS = {
  horizontal: "M3 10h14M6 7l-3 3 3 3M14 7l3 3-3 3",
  vertical: "M10 3v14M7 6l3-3 3 3M7 14l3 3 3-3",
  pan: "M3 12a9 9 0 0114 0M17 8v4h-4M3 8v4h4",
  tilt: "M8 3a9 9 0 010 14M12 17H8v-4M12 3H8v4",
  roll: "M15.5 7a6.5 6.5 0 10.8 4.5M16 3.5V7h-3.5",
  zoom: "M11.5 8.5L17 3M12.5 3H17v4.5M8.5 11.5L3 17M7.5 17H3v-4.5",
  down_back: "M10 3v10M6 9l4 4 4-4M5 17h10",
  forward_up: "M10 17V7M6 11l4-4 4 4M5 3h10",
  right_turn_forward: "M6 17v-5a4 4 0 014-4h6M13 5l3 3-3 3",
  left_turn_forward: "M14 17v-5a4 4 0 00-4-4H4M7 5L4 8l3 3",
};

/** One of a few values, each with its drawing. Where nothing may be chosen, that is the first tile. */
export function tilesControl(context, schema, id, name, required) {
  const optional = !required && (schema.default === undefined || schema.default === null);
  const values = [...(optional ? [undefined] : []), ...schema.enum];
  const options = values.map((value, i) => [String(i), value === undefined ? "None" : words(textOf(value)), undefined, icon(MOVEMENTS[value] ?? "M7 10h6")]);
  let chosen = 0;
  const pick = choice("", options, "0", (at) => {
    chosen = Number(at);
    context.changed();
  });
  pick.node.classList.add("tiles");
  pick.node.removeAttribute("aria-label"); // the field has one
  return {
    kind: "tiles",
    group: true,
    node: pick.node,
    get: () => values[chosen],
    set(value) {
      chosen = Math.max(0, values.findIndex((one) => equal(one, value ?? undefined)));
      pick.show(String(chosen));
    },
  };
}

/** The shape of a picture: a size by its name, or one's own. */
export function sizeControl(context, schema, id, name, required) {
  const named = schema.variants.find((one) => one.enum);
  const sized = schema.variants.find((one) => one.properties);
  const optional = (schema.nullable || !required) && (schema.default === undefined || schema.default === null);
  const CUSTOM = "custom";
  const options = [
    ...(optional ? [["", "None", undefined, icon("M7 10h6")]] : []),
    ...named.enum.map((value) => [value, words(shortened(value)), SIZES[value]?.join(" × "), shape(value)]),
    [CUSTOM, "Custom", "A width and a height", icon("M3 8V3h5M17 12v5h-5M3 3l14 14")],
  ];
  let chosen = options[0][0];
  const [width, height] = ["width", "height"].map((side) => context.field(context, side, { ...context.resolve(sized.properties[side]), ui: { field: "number" } }, true, words(side)));
  const swap = h("button", { type: "button", class: "quiet icon", title: "Swap width and height", "aria-label": "Swap width and height", onclick: turn }, icon(GLYPHS.swap));
  const own = h("div", { class: "own-size" }, width.node, swap, height.node);
  const pick = choice("", options, chosen, (value) => {
    if (value === CUSTOM && SIZES[chosen]) sides(...SIZES[chosen]); // one begins from what one sees
    put(value);
    context.changed();
  });
  pick.node.classList.add("tiles");
  pick.node.removeAttribute("aria-label");

  function put(value) {
    chosen = value;
    pick.show(value);
    own.hidden = value !== CUSTOM;
  }
  function sides(wide, high) {
    width.control.set(wide);
    height.control.set(high);
  }
  function turn() {
    sides(height.control.get(), width.control.get());
    context.changed();
  }
  return {
    kind: "size",
    group: true,
    node: h("div", { class: "sizes" }, pick.node, own),
    child: (part) => (chosen === CUSTOM ? { width, height }[part] : undefined),
    get: () => (chosen === "" ? undefined : chosen === CUSTOM ? { width: width.control.get(), height: height.control.get() } : chosen),
    set(value) {
      if (isObject(value)) {
        sides(value.width, value.height);
        put(CUSTOM);
      } else put(named.enum.includes(value) ? value : options[0][0]);
    },
  };
}

const shortened = (name) => name.replace(/_(\d+)_(\d+)$/, " $1:$2").replace(/_hd$/, " HD");

/** A frame as wide and high as the name says, on a field of 20 x 20. */
function shape(name) {
  const [, wide, high] = /(\d+)[_:x](\d+)/.exec(name) ?? [0, 1, 1];
  const [w, h_] = SIZES[name] ?? [Number(wide), Number(high)];
  const scale = (name === "square" ? 0.55 : 0.8) * SIDE / Math.max(w, h_);
  return svg("svg", { viewBox: `0 0 ${SIDE} ${SIDE}`, class: "glyph", "aria-hidden": "true" },
    svg("rect", { x: (SIDE - w * scale) / 2, y: (SIDE - h_ * scale) / 2, width: w * scale, height: h_ * scale, rx: 1.5 }));
}

// --- colours

const hex = (part) => Math.max(0, Math.min(255, Math.round(part ?? 0))).toString(16).padStart(2, "0");
const toHex = (color) => `#${hex(color?.r)}${hex(color?.g)}${hex(color?.b)}`;
const fromHex = (text) => ({ r: parseInt(text.slice(1, 3), 16), g: parseInt(text.slice(3, 5), 16), b: parseInt(text.slice(5, 7), 16) });

/** One colour. Where it may be left out there is none until somebody wants one. */
export function colorControl(context, schema, id, name, required) {
  const optional = !required && !isObject(schema.default);
  const said = h("span", { class: "code" });
  const input = h("input", { id, type: "color", oninput: () => {
    said.textContent = input.value;
    context.changed();
  } });
  const give = (value) => () => {
    put(value);
    context.changed();
    node.querySelector("button, input").focus();
  };
  const add = h("button", { type: "button", class: "plain", onclick: give({}) }, icon(GLYPHS.plus), "Add a colour");
  const drop = h("button", { type: "button", class: "quiet icon", "aria-label": "Leave the colour out", onclick: give(undefined) }, icon(GLYPHS.close));
  const node = h("div", { class: "row" });
  let chosen;
  function put(value) {
    chosen = isObject(value) || !optional;
    input.value = toHex(value);
    said.textContent = input.value;
    node.replaceChildren(...(chosen ? [input, said, optional ? drop : ""] : [add]));
  }
  put();
  return { node, get: () => (chosen ? fromHex(input.value) : undefined), set: put };
}

/** Several colours in a row; each is changed by a click, or taken out. */
export function paletteControl(context, schema, id, name, required) {
  const always = required || Array.isArray(schema.default);
  let colors = [];
  const add = h("button", { type: "button", class: "plain", onclick: () => put([...colors, colors.at(-1) ?? { r: 52, g: 80, b: 196 }], true) }, icon(GLYPHS.plus), "Add a colour");
  const node = h("div", { class: "palette" });
  function put(next, byHand) {
    colors = next;
    const swatches = colors.map((color, i) => {
      const input = h("input", { type: "color", value: toHex(color), "aria-label": `Colour ${i + 1}`, oninput: () => {
        colors[i] = fromHex(input.value);
        context.changed();
      } });
      const drop = () => put(colors.filter((_, at) => at !== i), true);
      return h("span", { class: "swatch" }, input, h("button", { type: "button", class: "quiet icon drop", "aria-label": `Remove colour ${i + 1}`, onclick: drop }, icon(GLYPHS.close)));
    });
    node.replaceChildren(...swatches, add);
    if (byHand) {
      context.changed();
      add.focus();
    }
  }
  return {
    kind: "palette",
    group: true,
    node,
    get: () => (colors.length || always ? [...colors] : undefined),
    set: (values) => put(Array.isArray(values) ? values.filter(isObject) : [], false),
  };
}
