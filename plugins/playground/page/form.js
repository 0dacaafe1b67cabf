// A form made from a schema. Every widget is a control: `{node, get, set, child?, group?}`, where
// `get()` gives the JSON value or undefined for nothing, and `set(undefined)` goes back to the start.

import { colorControl, paletteControl, sizeControl, tilesControl } from "./choices.js";
import { checksControl, constantControl, jsonControl, numberControl, presetsControl, seedControl, selectControl, sliderControl, textControl, textareaControl, toggleControl } from "./controls.js";
import { GLYPHS, h, icon, newId } from "./dom.js";
import { bundleControl, mediaControl, mediumControl } from "./media.js";
import { fits, initial, isMask, isMotion, mediumOfField, ordered, titleOf, widgetOf, words } from "./schema.js";
import { equal, isObject } from "./values.js";

const DEEPEST = 8; // nested objects drawn as forms; deeper ones are edited as JSON
const CHOSEN = ["union", "size"]; // kinds of controls whose value is of one kind or another
const FIRST = 4; // fields in sight of an object that requires none

/** The form of one endpoint. `changed()` is called after every edit. */
export function makeForm(endpoint, changed) {
  const context = { resolve: endpoint.resolve, changed, depth: 0, values: () => root.get(), field: fieldOf };
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

/** Put each fault at the field it is about, and go to the first. Of a union only what is wrong with its chosen kind is told. */
function showFaults(root, faults) {
  const found = new Map(); // field nodes, and what is wrong with them
  for (const fault of faults) {
    let control = root;
    let field;
    for (const part of (fault.loc ?? []).slice(1)) {
      const next = control?.child?.(part);
      if (!next) continue; // validators name the variants of a union, too
      field = next;
      control = next.control;
    }
    if (field) found.set(field.node, { kind: control.kind, text: fault.msg ?? String(fault.type) });
  }
  const nodes = [...found.keys()];
  const within = (node) => nodes.some((other) => other !== node && node.contains(other));
  const told = nodes.filter((node) => !(CHOSEN.includes(found.get(node).kind) && within(node)));
  for (const node of told) node.fault(found.get(node).text);
  const first = told.find((node) => !within(node));
  for (let box = first?.closest("details"); box; box = box.parentElement.closest("details")) box.open = true;
  first?.enter();
}

// --- a field: label, control, hint, fault

function fieldOf(context, name, given, required, label) {
  const schema = context.resolve(given);
  const id = newId("field");
  const control = controlOf(context, name, schema, id, required);
  const title = label ?? titleOf(String(name), given); // a reference has the title of its type, not of the field
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
  const widget = widgetOf(name, schema, context.resolve);
  const drawn = widget === "select" && (context.motion || isMotion(name, schema)) ? "tiles" : widget;
  const make = context.depth > DEEPEST ? jsonControl : CONTROLS[drawn];
  const motion = drawn === "object" && isMotion(name, schema); // its kinds of movement are drawn, too
  const control = make({ ...context, depth: context.depth + 1, motion }, schema, id, name, required);
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
    const field = fieldOf(context, name, schema.properties[name], required.has(name));
    field.node.hidden = Boolean(context.variant) && "const" in resolved; // the kind of a union says it
    fields.set(name, field);
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
  const add = h("button", { type: "button", class: "plain", onclick: () => put({}) }, icon(GLYPHS.plus), `Add ${words(String(name)).toLowerCase()}`);
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

// --- lists, unions, media

function listControl(context, schema, id, name, required) {
  const single = String(name).replace(/s$/, "");
  let fields = [];
  const items = h("div", { class: "items" });
  const add = h("button", { type: "button", class: "plain", onclick: () => put([...value(), undefined], true) }, icon(GLYPHS.plus), "Add");
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
    get: () => (fields.length || required || Array.isArray(schema.default) ? value() : undefined),
    set: (values) => put(Array.isArray(values) ? values : [], false),
  };
}

function unionControl(context, schema, id, name, required) {
  const variants = schema.variants;
  const empty = schema.nullable || !required;
  const titles = variants.map((variant, i) => variant.title ?? variant.component ?? (variant.enum ? "A choice" : words(variant.type ?? `Kind ${i + 1}`)));
  const kind = h("select", { "aria-label": `${titleOf(String(name), schema)}, kind`, onchange: () => choose(kind.value, undefined, true) },
    empty ? h("option", { value: "" }, "–") : undefined, titles.map((title, i) => h("option", { value: String(i) }, title)));
  const slot = h("div", { class: "slot" });
  let inner;
  function choose(at, value, byHand) {
    kind.value = at;
    inner = at === "" ? undefined : controlOf({ ...context, variant: true }, name, variants[Number(at)], newId("field"), true);
    if (value !== undefined) inner?.set(value);
    slot.replaceChildren(...(inner ? [inner.node] : []));
    if (inner && !inner.group) {
      const target = inner.node.matches("input, textarea, select") ? inner.node : inner.node.querySelector("input, textarea, select");
      target?.setAttribute("aria-label", titleOf(String(name), schema));
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

function oneMedium(context, schema, id, name) {
  const textual = schema.type === "string" || schema.variants?.some((one) => one.type === "string");
  const medium = isMask(name) ? "mask" : mediumOfField(name, schema);
  return mediumControl({ ...context, medium, wrap: (url) => (textual ? url : { url }), camera: /face_image_url$/.test(name) }, id);
}

/** Many files as one URL: an archive, or files that are packed into one. */
function bundle(context, schema, id, name) {
  const textual = schema.type === "string" || schema.variants?.some((one) => one.type === "string");
  return bundleControl({ ...context, medium: "bundle", wrap: (url) => (textual ? url : { url }) }, id);
}

function manyMedia(context, schema, id, name, required) {
  const items = context.resolve(schema.items ?? {});
  const wrap = (url) => (items.type === "string" ? url : { url });
  return mediaControl({ ...context, medium: mediumOfField(String(name).replace(/s$/, ""), items), wrap }, id, required || Array.isArray(schema.default));
}

const CONTROLS = {
  text: textControl, textarea: textareaControl, presets: presetsControl, number: numberControl, slider: sliderControl,
  seed: seedControl, toggle: toggleControl, select: selectControl, checks: checksControl, constant: constantControl,
  tiles: tilesControl, size: sizeControl, color: colorControl, palette: paletteControl,
  list: listControl, union: unionControl, json: jsonControl, object: nestedControl,
  medium: oneMedium, media: manyMedia, bundle,
};
