// A form made from a schema. Every widget is a control: `{node, get, set, child?, group?}`, where
// `get()` gives the JSON value or undefined for nothing, and `set(undefined)` goes back to the start.

import { GLYPHS, h, icon, newId } from "./dom.js";
import { mediaControl, mediumControl } from "./media.js";
import { bounds, fits, initial, isMask, mediumOfField, ordered, widgetOf, words } from "./schema.js";
import { equal, isObject, pretty } from "./values.js";

const DEEPEST = 8; // nested objects drawn as forms; deeper ones are edited as JSON
const FIRST = 4; // fields in sight of an object that requires none
const SEEDS = 2 ** 31;

/** The form of one endpoint. `changed()` is called after every edit. */
export function makeForm(endpoint, changed) {
  const context = { resolve: endpoint.resolve, changed, depth: 0, values: () => root.get() };
  const schema = endpoint.input;
  const isRecord = (schema.properties || schema.type === "object") && !mediumOfField("", schema);
  const root = isRecord ? objectControl(context, schema, true) : wholeField(context, schema);
  return {
    node: root.node,
    get: root.get,
    set: root.set,
    clearFaults: () => root.node.querySelectorAll("[data-faulty]").forEach((field) => field.fault("")),
    showFaults: (faults) => showFaults(root, faults),
  };
}

/** An input that is no object, or is a file itself: one field, named as the schema is. */
function wholeField(context, schema) {
  const field = fieldOf(context, "body", { title: "Input", ...schema }, true);
  return { ...field.control, node: h("div", { class: "fields" }, field.node), child: () => field };
}

/** Put each fault at the field it is about. Returns those that have none, and the first field that has one. */
function showFaults(root, faults) {
  const left = [];
  let first;
  for (const fault of faults) {
    const path = (fault.loc ?? []).slice(1);
    let control = root;
    let field;
    for (const part of path) {
      const next = control?.child?.(part);
      if (!next) continue; // validators name the variants of a union, too
      field = next;
      control = next.control;
    }
    if (!field) {
      left.push(fault);
      continue;
    }
    field.node.fault(fault.msg ?? String(fault.type));
    first ??= field.node;
  }
  for (let box = first?.closest("details"); box; box = box.parentElement.closest("details")) box.open = true;
  first?.enter();
  return left;
}

// --- a field: label, control, hint, fault

function fieldOf(context, name, given, required, label) {
  const schema = context.resolve(given);
  const id = newId("field");
  const control = controlOf(context, name, schema, id, required);
  const title = label ?? given.title ?? words(String(name)); // a reference has the title of its type, not of the field
  const hint = schema.ui?.hint ?? schema.description;
  const fault = h("p", { class: "error", id: `${id}-error`, hidden: true });
  const mark = required && label === undefined ? h("span", { class: "needed", title: "required", "aria-hidden": "true" }, "*") : undefined;
  const head = control.group
    ? h("span", { class: "label", id: `${id}-label` }, title, mark)
    : h("label", { for: id, id: `${id}-label` }, title, mark);
  const described = [hint && `${id}-hint`, `${id}-error`].filter(Boolean).join(" ");
  const node = h(
    "div",
    { class: `field field-${control.kind ?? "plain"}`, "data-name": name },
    h("div", { class: "field-head" }, head, control.aside),
    control.node,
    hint ? h("p", { class: "hint", id: `${id}-hint` }, hint) : undefined,
    fault,
  );
  if (control.group) {
    control.node.setAttribute("role", control.node.getAttribute("role") ?? "group");
    control.node.setAttribute("aria-labelledby", `${id}-label`);
  }
  const target = control.group ? control.node : (node.querySelector(`#${id}`) ?? control.node);
  target.setAttribute("aria-describedby", described);
  if (required && !control.group) target.setAttribute("aria-required", "true");
  if (schema.ui?.frozen) node.querySelectorAll("input, textarea, select, button").forEach((part) => (part.disabled = true));
  node.enter = () => (control.group ? node.querySelector("input, textarea, select, button") : target)?.focus();
  node.fault = (text) => {
    fault.textContent = text;
    fault.hidden = !text;
    node.toggleAttribute("data-faulty", Boolean(text));
    if (!control.group) target.toggleAttribute("aria-invalid", Boolean(text));
    if (!control.group && text) target.setAttribute("aria-invalid", "true");
  };
  node.addEventListener("input", () => node.hasAttribute("data-faulty") && node.fault(""));
  return { node, control, schema, required };
}

function controlOf(context, name, schema, id, required) {
  const make = context.depth > DEEPEST ? jsonControl : CONTROLS[widgetOf(name, schema, context.resolve)];
  const control = make({ ...context, depth: context.depth + 1 }, schema, id, name, required);
  control.set(initial(schema));
  return control;
}

// --- an object: its main fields, the rest folded away

function objectControl(context, schema, isRoot = false) {
  const names = ordered(schema);
  const required = new Set(schema.required ?? []);
  const fields = new Map();
  let others = {}; // keys that no field has: kept as the JSON view gave them
  for (const name of names) {
    const resolved = context.resolve(schema.properties[name]);
    if (resolved.ui?.hidden) continue;
    fields.set(name, fieldOf(context, name, schema.properties[name], required.has(name)));
  }
  const main = mainFields(fields);
  const rest = [...fields].filter(([name]) => !main.has(name));
  const shown = [...fields].filter(([name]) => main.has(name)).sort(([a], [b]) => required.has(b) - required.has(a));
  const folded = rest.length
    ? h("details", { class: "more" }, h("summary", {}, isRoot ? "More settings" : "More", h("span", { class: "count" }, String(rest.length))), h("div", { class: "fields" }, rest.map(([, field]) => field.node)))
    : undefined;
  const node = h("div", { class: isRoot ? "fields" : "fields nested" }, shown.map(([, field]) => field.node), folded);
  if (isRoot && !fields.size) node.append(h("p", { class: "hint" }, "This endpoint takes no input."));
  return {
    kind: "object",
    group: true,
    node,
    child: (name) => fields.get(name),
    get() {
      const value = { ...others };
      for (const [name, { control, schema: field, required: needed }] of fields) {
        const own = control.get();
        if (own === undefined) continue;
        if (!needed && !main.has(name) && equal(own, field.default)) continue;
        value[name] = own;
      }
      return value;
    },
    set(value) {
      const given = isObject(value) ? value : {};
      others = Object.fromEntries(Object.entries(given).filter(([name]) => !fields.has(name)));
      for (const [name, { control, schema: field }] of fields) {
        control.set(value === undefined ? initial(field) : name in given ? given[name] : (field.default ?? undefined));
      }
      if (folded && rest.some(([name, { schema: field }]) => name in given && !equal(given[name], field.default))) folded.open = true;
    },
  };
}

/** What stands in sight: what is required or important, and prompts; where nothing is, the first fields. */
function mainFields(fields) {
  const chosen = [...fields].filter(([, { schema, required }]) => required || schema.ui?.important);
  const first = chosen.length ? chosen : [...fields].slice(0, FIRST);
  return new Set([...first.map(([name]) => name), ...[...fields.keys()].filter((name) => /(^|_)prompt$/.test(name))]);
}

/** An object inside another. One that may be left out is drawn once somebody adds it. */
function nestedControl(context, schema, id, name, required) {
  if (required || isObject(schema.default)) return objectControl(context, schema);
  let inner;
  const node = h("div", { class: "nested-slot" });
  const add = h("button", { type: "button", class: "quiet", onclick: () => put({}) }, icon(GLYPHS.plus), `Add ${words(String(name)).toLowerCase()}`);
  const remove = h("button", { type: "button", class: "quiet", onclick: () => put(undefined) }, icon(GLYPHS.close), "Leave out");
  function put(value, byHand = true) {
    inner = value === undefined ? undefined : objectControl(context, schema);
    inner?.set(Object.keys(value).length ? value : undefined);
    node.replaceChildren(...(inner ? [inner.node, remove] : [add]));
    if (byHand) context.changed();
  }
  return {
    kind: "object",
    group: true,
    node,
    child: (part) => inner?.child(part),
    get: () => inner?.get(),
    set: (value) => put(isObject(value) ? value : undefined, false),
  };
}

// --- texts, numbers, choices

const textOf = (value) => (value === undefined || value === null ? "" : typeof value === "string" ? value : JSON.stringify(value));

function textControl(context, schema, id, name, required) {
  const node = h("input", { id, type: "text", placeholder: placeholder(schema), autocomplete: "off", spellcheck: false, oninput: context.changed });
  return texts(node, schema, required);
}

function textareaControl(context, schema, id, name, required) {
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

const placeholder = (schema) => (schema.format ? schema.format : "");

function presetsControl(context, schema, id) {
  const listId = `${id}-list`;
  const node = h("input", { id, type: "text", list: listId, autocomplete: "off", spellcheck: false, oninput: context.changed });
  const options = h("datalist", { id: listId }, schema.examples.map((example) => h("option", { value: example })));
  return { node: h("div", {}, node, options), get: () => node.value || undefined, set: (value) => (node.value = textOf(value)) };
}

function numberInput(context, schema, id) {
  const whole = schema.type === "integer";
  return h("input", {
    id, type: "number", inputMode: whole ? "numeric" : "decimal", autocomplete: "off", oninput: context.changed,
    step: String(schema.multipleOf ?? (whole ? 1 : "any")), min: String(schema.minimum ?? ""), max: String(schema.maximum ?? ""),
  });
}

const numberOf = (input) => (input.value.trim() === "" ? undefined : Number(input.value));

function numberControl(context, schema, id) {
  const node = numberInput(context, schema, id);
  return { node, get: () => numberOf(node), set: (value) => (node.value = textOf(value)) };
}

function sliderControl(context, schema, id, name) {
  const { low, high, step } = bounds(schema);
  const input = numberInput(context, schema, id);
  const slider = h("input", { type: "range", min: String(low), max: String(high), step: String(step), "aria-label": `${schema.title ?? words(String(name))}, slider` });
  const fill = () => slider.style.setProperty("--part", `${(100 * (Number(slider.value) - low)) / (high - low || 1)}%`);
  slider.addEventListener("input", () => {
    input.value = slider.value;
    fill();
    context.changed();
  });
  const follow = () => {
    slider.value = input.value === "" ? String(low) : input.value;
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

function seedControl(context, schema, id) {
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

function toggleControl(context, schema, id) {
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

function selectControl(context, schema, id, name, required) {
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

function checksControl(context, schema) {
  const options = context.resolve(schema.items).enum;
  const boxes = options.map((value) => h("input", { type: "checkbox", onchange: context.changed }));
  const node = h("div", { class: "checks" }, boxes.map((box, i) => h("label", {}, box, textOf(options[i]))));
  return {
    group: true,
    node,
    get() {
      const chosen = options.filter((value, i) => boxes[i].checked);
      return chosen.length || schema.default !== undefined ? chosen : undefined;
    },
    set: (value) => boxes.forEach((box, i) => (box.checked = Array.isArray(value) && value.some((one) => equal(one, options[i])))),
  };
}

function constantControl(context, schema, id) {
  const node = h("input", { id, type: "text", readOnly: true, value: textOf(schema.const) });
  return { node, get: () => schema.const, set: () => {} };
}

function colorControl(context, schema, id) {
  const node = h("input", { id, type: "color", oninput: context.changed });
  return {
    node,
    get: () => ({ r: channel(1), g: channel(3), b: channel(5) }),
    set(value) {
      const hex = (part) => Math.max(0, Math.min(255, Math.round(part ?? 0))).toString(16).padStart(2, "0");
      node.value = `#${hex(value?.r)}${hex(value?.g)}${hex(value?.b)}`;
    },
  };
  function channel(at) {
    return parseInt(node.value.slice(at, at + 2), 16);
  }
}

// --- lists, unions, and what is left

function listControl(context, schema, id, name) {
  const single = String(name).replace(/s$/, "");
  let fields = [];
  const items = h("div", { class: "items" });
  const add = h("button", { type: "button", class: "quiet", onclick: () => put([...value(), undefined], true) }, icon(GLYPHS.plus), "Add");
  const value = () => fields.map((field) => field.control.get() ?? null);
  function put(values, byHand) {
    fields = values.map((one, i) => {
      const field = fieldOf(context, single, schema.items, true, `${words(single)} ${i + 1}`);
      if (one !== undefined) field.control.set(one);
      const drop = () => put(value().filter((_, at) => at !== i), true);
      field.node.append(h("button", { type: "button", class: "quiet icon drop", "aria-label": `Remove ${words(single).toLowerCase()} ${i + 1}`, onclick: drop }, icon(GLYPHS.close)));
      return field;
    });
    items.replaceChildren(...fields.map((field) => field.node));
    if (byHand) {
      context.changed();
      fields.at(-1)?.node.querySelector("input, textarea, select")?.focus();
    }
  }
  return {
    kind: "list",
    group: true,
    node: h("div", { class: "list" }, items, add),
    child: (at) => fields[at],
    get: () => (fields.length || schema.default !== undefined || (schema.minItems ?? 0) > 0 ? value() : undefined),
    set: (values) => put(Array.isArray(values) ? values : [], false),
  };
}

function unionControl(context, schema, id, name, required) {
  const variants = schema.variants;
  const empty = schema.nullable || !required;
  const titles = variants.map((variant, i) => variant.title ?? variant.component ?? (variant.enum ? "One of" : words(variant.type ?? `Kind ${i + 1}`)));
  const kind = h("select", { "aria-label": `${schema.title ?? words(String(name))}, kind`, onchange: () => choose(kind.value, undefined, true) },
    empty ? h("option", { value: "" }, "–") : undefined, titles.map((title, i) => h("option", { value: String(i) }, title)));
  const slot = h("div", { class: "slot" });
  let inner;
  function choose(at, value, byHand) {
    kind.value = at;
    inner = at === "" ? undefined : controlOf(context, name, variants[Number(at)], newId("field"), true);
    if (value !== undefined) inner?.set(value);
    slot.replaceChildren(...(inner ? [inner.node] : []));
    if (inner && !inner.group) {
      const target = inner.node.matches("input, textarea, select") ? inner.node : inner.node.querySelector("input, textarea, select");
      target?.setAttribute("aria-label", schema.title ?? words(String(name)));
    } else inner?.node.setAttribute("role", "group");
    if (byHand) context.changed();
  }
  return {
    kind: "union",
    group: true,
    node: h("div", { class: "union" }, kind, slot),
    child: (part) => inner?.child?.(part),
    get: () => inner?.get(),
    set(value) {
      if (value === undefined || value === null) return choose(empty ? "" : "0", undefined, false);
      const at = variants.findIndex((variant) => fits(variant, value));
      choose(String(Math.max(0, at)), value, false);
    },
  };
}

function jsonControl(context, schema, id) {
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

function oneMedium(context, schema, id, name) {
  const textual = schema.type === "string" || schema.variants?.some((one) => one.type === "string");
  const medium = isMask(name) ? "mask" : mediumOfField(name, schema);
  return mediumControl({ ...context, medium, wrap: (url) => (textual ? url : { url }), camera: /face_image_url$/.test(name) }, id);
}

function manyMedia(context, schema, id, name) {
  const items = context.resolve(schema.items ?? {});
  const wrap = (url) => (items.type === "string" ? url : { url });
  return mediaControl({ ...context, medium: mediumOfField(String(name).replace(/s$/, ""), items), wrap }, id, schema.default !== undefined);
}

const CONTROLS = {
  text: textControl, textarea: textareaControl, presets: presetsControl, number: numberControl, slider: sliderControl,
  seed: seedControl, toggle: toggleControl, select: selectControl, checks: checksControl, constant: constantControl,
  color: colorControl, list: listControl, union: unionControl, json: jsonControl, object: nestedControl,
  medium: oneMedium, media: manyMedia,
};
