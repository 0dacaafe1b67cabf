// The plain widgets of a form: texts, numbers, switches, choices. Each is a control, as form.js says.

import { GLYPHS, h, icon } from "./dom.js";
import { bounds, titleOf } from "./schema.js";
import { equal, pretty } from "./values.js";

const SEEDS = 2 ** 31;

export const textOf = (value) => (value === undefined || value === null ? "" : typeof value === "string" ? value : JSON.stringify(value));

export function textControl(context, schema, id, name, required) {
  const node = h("input", { id, type: "text", placeholder: placeholder(schema), autocomplete: "off", spellcheck: false, oninput: context.changed });
  return texts(node, schema, required);
}

export function textareaControl(context, schema, id, name, required) {
  const node = h("textarea", { id, rows: 3, placeholder: placeholder(schema), oninput: context.changed });
  return texts(node, schema, required);
}

/** An empty text counts for nothing, unless nothing is not allowed and the person has been here. */
function texts(node, schema, required) {
  let touched = false;
  node.addEventListener("input", () => (touched = true));
  return {
    node,
    get: () => (node.value !== "" ? node.value : (touched && (required || schema.default)) || schema.default === "" ? "" : undefined),
    set(value) {
      touched = value === "";
      node.value = textOf(value);
    },
  };
}

const placeholder = ({ format, contentEncoding }) => (format === "binary" || format === "byte" ? "base64" : (format ?? contentEncoding ?? ""));

/** One of some values, or one's own. */
export function presetsControl(context, schema, id, name) {
  const OWN = "own";
  const input = h("input", { type: "text", autocomplete: "off", spellcheck: false, "aria-label": `${titleOf(String(name), schema)}, one's own`, oninput: context.changed });
  const select = h("select", { id, onchange: () => {
    follow();
    if (select.value === OWN) input.focus();
    context.changed();
  } }, h("option", { value: "" }, "–"), schema.examples.map((example, i) => h("option", { value: String(i) }, textOf(example))), h("option", { value: OWN }, "Another …"));
  const follow = () => (input.hidden = select.value !== OWN);
  return {
    node: h("div", { class: "presets" }, select, input),
    get: () => (select.value === OWN ? input.value || undefined : schema.examples[Number(select.value || -1)]),
    set(value) {
      const at = schema.examples.findIndex((example) => equal(example, value));
      const own = at < 0 && value !== undefined && value !== null && value !== "";
      input.value = own ? textOf(value) : "";
      select.value = own ? OWN : at < 0 ? "" : String(at);
      follow();
    },
  };
}

function numberInput(context, schema, id) {
  const whole = schema.type === "integer";
  return h("input", {
    id, type: "number", inputMode: whole ? "numeric" : "decimal", autocomplete: "off", oninput: context.changed,
    step: String(schema.multipleOf ?? (whole ? 1 : "any")), min: String(schema.minimum ?? ""), max: String(schema.maximum ?? ""),
  });
}

const numberOf = (input) => (input.value.trim() === "" ? undefined : Number(input.value));

export function numberControl(context, schema, id) {
  const node = numberInput(context, schema, id);
  return { node, get: () => numberOf(node), set: (value) => (node.value = textOf(value)) };
}

export function sliderControl(context, schema, id, name) {
  const { low, high, step } = bounds(schema);
  const input = numberInput(context, schema, id);
  const slider = h("input", { type: "range", min: String(low), max: String(high), step: String(step), "aria-label": `${titleOf(String(name), schema)}, slider` });
  const fill = () => slider.style.setProperty("--part", `${(100 * (Number(slider.value) - low)) / (high - low || 1)}%`);
  slider.addEventListener("input", () => {
    input.value = slider.value;
    fill();
    context.changed();
  });
  const follow = () => {
    slider.value = input.value === "" ? String(Math.max(low, Math.min(high, 0))) : input.value;
    fill();
  };
  input.addEventListener("input", follow);
  return {
    kind: "slider",
    node: h("div", { class: "slider" }, slider, input),
    get: () => numberOf(input),
    set(value) {
      input.value = textOf(value);
      follow();
    },
  };
}

export function seedControl(context, schema, id) {
  const input = numberInput(context, schema, id);
  const highest = Math.min(schema.maximum ?? SEEDS, SEEDS);
  const lowest = Math.max(schema.minimum ?? 0, 0);
  const roll = () => {
    input.value = String(lowest + Math.floor(Math.random() * (highest - lowest)));
    context.changed();
  };
  const dice = h("button", { type: "button", class: "quiet icon", "aria-label": "Another seed, at random", title: "At random", onclick: roll }, icon(GLYPHS.dice));
  return { node: h("div", { class: "row" }, input, dice), get: () => numberOf(input), set: (value) => (input.value = textOf(value)) };
}

export function toggleControl(context, schema, id) {
  const node = h("input", { id, type: "checkbox", role: "switch", class: "switch", onchange: context.changed });
  let touched = false;
  node.addEventListener("change", () => (touched = true));
  return {
    kind: "toggle",
    node,
    get: () => (node.checked || touched || typeof schema.default === "boolean" ? node.checked : undefined),
    set(value) {
      touched = typeof value === "boolean";
      node.checked = value === true;
    },
  };
}

export function selectControl(context, schema, id, name, required) {
  const options = schema.enum.map((value, i) => h("option", { value: String(i) }, textOf(value) || "(empty)"));
  const none = required ? undefined : h("option", { value: "" }, "–");
  const node = h("select", { id, onchange: context.changed }, schema.default === undefined || schema.default === null ? none : undefined, options);
  return {
    node,
    get: () => (node.value === "" ? undefined : schema.enum[Number(node.value)]),
    set(value) {
      const at = schema.enum.findIndex((one) => equal(one, value));
      node.value = at >= 0 ? String(at) : none?.isConnected || none?.parentNode ? "" : "0";
    },
  };
}

export function checksControl(context, schema, id, name, required) {
  const options = context.resolve(schema.items).enum;
  const boxes = options.map((value) => h("input", { type: "checkbox", onchange: context.changed }));
  const node = h("div", { class: "checks" }, boxes.map((box, i) => h("label", {}, box, textOf(options[i]))));
  return {
    group: true,
    node,
    get() {
      const chosen = options.filter((value, i) => boxes[i].checked);
      return chosen.length || required || Array.isArray(schema.default) ? chosen : undefined;
    },
    set: (value) => boxes.forEach((box, i) => (box.checked = Array.isArray(value) && value.some((one) => equal(one, options[i])))),
  };
}

export function constantControl(context, schema, id) {
  const node = h("input", { id, type: "text", readOnly: true, value: textOf(schema.const) });
  return { node, get: () => schema.const, set: () => {} };
}

export function jsonControl(context, schema, id) {
  const node = h("textarea", { id, rows: 3, class: "code", spellcheck: false, placeholder: "JSON", oninput: context.changed });
  return {
    node,
    get() {
      if (node.value.trim() === "") return undefined;
      try {
        return JSON.parse(node.value);
      } catch {
        return node.value; // the server will say what it thinks of it
      }
    },
    set: (value) => (node.value = value === undefined ? "" : pretty(value)),
  };
}
