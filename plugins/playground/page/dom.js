// Elements, made in one line. Text is always a text node: nothing here reads markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element. Properties that begin with "on" are listeners, those the element knows are set, the rest are attributes. */
export function h(tag, properties = {}, ...children) {
  return filled(document.createElement(tag), properties, children);
}

export function svg(tag, properties = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), properties, children);
}

function filled(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    const known = name in element && element.namespaceURI !== SVG && !name.startsWith("aria") && name !== "list";
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (known && name !== "class") element[name] = value;
    else if (value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== undefined && child !== null && child !== false));
  return element;
}

export const byId = (id) => document.getElementById(id);

let last = 0;
/** An id that no other element has. */
export const newId = (stem = "e") => `${stem}-${++last}`;

/** A small drawing, one path on a 20 x 20 field. */
export function icon(path) {
  return svg("svg", { viewBox: "0 0 20 20", class: "glyph", "aria-hidden": "true" }, svg("path", { d: path }));
}

export const GLYPHS = {
  play: "M6 4l10 6-10 6z",
  stop: "M5 5h10v10H5z",
  dice: "M3 6.5L10 3l7 3.5v7.5L10 17l-7-3zM3 6.5L10 10l7-3.5M10 10v7M6.5 11.5v1.5M13.5 11v.5M13.5 13.5v.5M10 6.2v.2",
  close: "M5 5l10 10M15 5L5 15",
  copy: "M7 7h9v9H7zM4 13V4h9",
  link: "M8 12l4-4M7 9L4.5 11.5a2.8 2.8 0 004 4L11 13M9 7l2.5-2.5a2.8 2.8 0 014 4L13 11",
  down: "M10 3v10M6 9l4 4 4-4M4 17h12",
  file: "M5 2.5h6.5L16 7v10.5H5zM11.5 2.5V7H16",
  plus: "M10 4v12M4 10h12",
  minus: "M4 10h12",
  swap: "M4 7h12M13 4l3 3-3 3M16 13H4M7 10l-3 3 3 3",
  sun: "M10 6.5a3.5 3.5 0 100 7 3.5 3.5 0 000-7M10 2v1.5M10 16.5V18M2 10h1.5M16.5 10H18M4.5 4.5l1 1M14.5 14.5l1 1M15.5 4.5l-1 1M5.5 14.5l-1 1",
  moon: "M16 11.5A6.5 6.5 0 118.5 4a5 5 0 007.5 7.5z",
  auto: "M10 3a7 7 0 100 14zM10 3a7 7 0 010 14",
  repeat: "M4 10a6 6 0 0110-4.5L16 7M16 3v4h-4M16 10a6 6 0 01-10 4.5L4 13M4 17v-4h4",
  camera: "M3 6h3l1.5-2h5L14 6h3v10H3zM10 8.5a2.5 2.5 0 100 5 2.5 2.5 0 000-5",
  microphone: "M10 3a2.5 2.5 0 00-2.5 2.5v4a2.5 2.5 0 005 0v-4A2.5 2.5 0 0010 3zM5 9.5a5 5 0 0010 0M10 14.5V17",
  brush: "M16 4l-7 8M9 12c-2-1-4 0-4 2s-1 2-2 2c2 2 7 1 7-2z",
};

let quiet;
/** Say something for a moment, to eyes and to screen readers. */
export function say(text) {
  byId("said").textContent = text;
  clearTimeout(quiet);
  quiet = setTimeout(() => (byId("said").textContent = ""), 2500);
}

export async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without a secure context there is no clipboard; the old way still works there.
    const area = h("textarea", { value: text, class: "offscreen" });
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  say(`${what} copied`);
}

/** Buttons of which one is chosen, as radio buttons are: arrows move, one stop for the Tab key. */
export function choice(label, options, chosen, choose) {
  const buttons = options.map(([value, text, title, drawing]) =>
    h("button", { type: "button", role: "radio", title: title ?? "", value, onclick: () => pick(value) }, drawing, text),
  );
  const group = h("div", { class: "choice", role: "radiogroup", "aria-label": label }, buttons);
  group.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const open = buttons.filter((button) => !button.disabled);
    const next = open[(open.indexOf(document.activeElement) + step + open.length) % open.length];
    next.focus();
    pick(next.value);
  });
  function show(value) {
    for (const button of buttons) {
      button.setAttribute("aria-checked", String(button.value === value));
      button.tabIndex = button.value === value ? 0 : -1;
    }
  }
  function pick(value) {
    show(value);
    choose(value);
  }
  show(chosen);
  return { node: group, show, buttons };
}

/** Panels of which one is shown, chosen by tabs. */
export function tabs(label, panels, chosen = 0, changed = () => {}) {
  const ids = panels.map(() => newId("tab"));
  for (const [i, [, body]] of panels.entries()) body.id ||= `${ids[i]}-panel`;
  const heads = panels.map(([text, body], i) =>
    h("button", { type: "button", role: "tab", id: ids[i], "aria-controls": body.id, onclick: () => show(i) }, text),
  );
  const bodies = panels.map(([, body], i) => {
    body.setAttribute("role", "tabpanel");
    body.setAttribute("aria-labelledby", ids[i]);
    return body;
  });
  const list = h("div", { role: "tablist", class: "tabs", "aria-label": label }, heads);
  list.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const at = (heads.indexOf(document.activeElement) + step + heads.length) % heads.length;
    heads[at].focus();
    show(at);
  });
  function show(at) {
    heads.forEach((head, i) => {
      head.setAttribute("aria-selected", String(i === at));
      head.tabIndex = i === at ? 0 : -1;
      bodies[i].hidden = i !== at;
    });
    changed(at);
  }
  show(chosen);
  return { list, bodies, show, heads };
}
