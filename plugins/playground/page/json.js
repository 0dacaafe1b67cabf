// JSON with folding. Branches are drawn when they are opened, so that a large value costs nothing at first.

import { h } from "./dom.js";
import { isObject } from "./values.js";

const OPEN_DEPTH = 2;
const OPEN_ENTRIES = 40;
const LONG = 240; // characters of a text that are shown at once
const AT_ONCE = 200; // entries of a list that are shown at once

export function tree(value, name, depth = 0, opened = depth < OPEN_DEPTH) {
  const label = name === undefined ? [] : [h("span", { class: "key" }, String(name)), ": "];
  if (!Array.isArray(value) && !isObject(value)) return h("div", { class: "leaf" }, label, leaf(value));
  const entries = Array.isArray(value) ? value.map((item, i) => [i, item]) : Object.entries(value);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  if (!entries.length) return h("div", { class: "leaf" }, label, open + close);
  const count = `${entries.length} ${Array.isArray(value) ? (entries.length === 1 ? "item" : "items") : entries.length === 1 ? "key" : "keys"}`;
  const body = h("div", { class: "branch" });
  const node = h("details", { class: "node" }, h("summary", {}, label, open, h("span", { class: "fold" }, ` ${count} `), close), body);
  let drawn = 0;
  const draw = () => {
    const more = entries.slice(drawn, drawn + AT_ONCE);
    drawn += more.length;
    body.append(...more.map(([key, item]) => tree(item, key, depth + 1)));
    if (drawn < entries.length) {
      const rest = h("button", { type: "button", class: "quiet", onclick: () => { rest.remove(); draw(); } }, `${entries.length - drawn} more`);
      body.append(rest);
    }
  };
  node.addEventListener("toggle", () => node.open && !drawn && draw());
  if (opened && entries.length <= OPEN_ENTRIES) {
    node.open = true;
    draw();
  }
  return node;
}

function leaf(value) {
  const text = JSON.stringify(value) ?? "null";
  const kind = value === null ? "null" : typeof value;
  const node = h("span", { class: `value ${kind}` }, text.length > LONG ? `${text.slice(0, LONG)}…` : text);
  if (text.length <= LONG) return node;
  const all = h("button", { type: "button", class: "quiet small", onclick: () => { node.textContent = text; all.remove(); } }, `all ${text.length}`);
  return h("span", {}, node, all);
}
