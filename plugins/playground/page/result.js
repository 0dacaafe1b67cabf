// A run as a person reads it: how it goes, what it gave, what it printed.

import { GLYPHS, copy, h, icon } from "./dom.js";
import { tree } from "./json.js";
import { ordered, words } from "./schema.js";
import { duration, isObject, mediumOf, pretty } from "./values.js";
import { mediaGrid } from "./viewers.js";

const STATES = { sent: "Sending", queued: "In the queue", running: "Running", done: "Done", failed: "Failed", stopped: "Stopped" };
const MOST_ROWS = 200;
const MOST_EVENTS = 200; // of a stream, shown one by one
const LONG_TEXT = 20_000;
const TICK_MS = 100;
const NEAR_END = 80; // pixels from the end of what streams in, where a reader follows it

/** The place where a run is shown. `show(run)` may be called as often as something changes. */
export function makeResult() {
  const status = h("div", { class: "run-status", role: "status", "aria-live": "polite" });
  const facts = h("dl", { class: "facts" });
  const bar = h("progress", { class: "bar", hidden: true, "aria-label": "Progress" });
  const note = h("p", { class: "hint", hidden: true });
  const preview = h("img", { class: "live", alt: "Preview", hidden: true });
  const body = h("div", { class: "shown", tabIndex: -1 });
  const raw = h("details", { class: "raw" });
  const logs = h("details", { class: "logs" });
  const node = h("div", { class: "result" }, h("div", { class: "run-head" }, status, facts), bar, note, preview, body, raw, logs);
  const stream = streamView();
  let shown; // what is drawn: redrawn only when it is another value
  let current;
  let told; // the facts as they stand
  const ticking = h("dd", {});
  const tick = () => {
    if (!current || current.over || !node.isConnected) return;
    ticking.textContent = duration(performance.now() - current.began);
    setTimeout(tick, TICK_MS);
  };

  function show(run) {
    if (current !== run) {
      current = run;
      shown = undefined;
      stream.begin();
      body.replaceChildren();
      raw.replaceChildren();
      raw.open = logs.open = false;
      if (!run.over) setTimeout(tick);
    }
    showStatus(run);
    showFacts(run);
    showProgress(run);
    showBody(run);
    showLogs(run);
  }

  function showStatus(run) {
    let text = STATES[run.state];
    if (run.state === "queued" && run.position !== undefined) text += run.position ? `, ${run.position} before it` : ", next";
    if (run.stopping && !run.over) text = "Stopping";
    if (run.state === "failed" && run.status) text += `, ${run.status}`;
    if (run.state === "stopped" && run.stopping?.answered !== undefined) text = `Stopped in ${duration(run.stopping.answered)}`;
    if (status.textContent !== text) status.replaceChildren(h("span", { class: `dot ${run.state}`, "aria-hidden": "true" }), text);
    node.dataset.state = run.state;
  }

  function showFacts(run) {
    const { timings, stopping } = run;
    const known = [
      ["wait", timings.wait], ["run", timings.run], ["first event", timings.item], ["total", run.over ? timings.total : undefined],
      ["place free after", stopping?.free],
    ].filter(([, ms]) => ms !== undefined).map(([name, ms]) => [name, duration(ms)]);
    if (run.items.length && run.mode === "stream") known.push(["events", String(run.items.length)]);
    const now = JSON.stringify([known, run.id, run.over]);
    if (told === now) return; // who has the focus in them keeps it
    told = now;
    const id = run.id && h("div", {}, h("dt", {}, "request"), h("dd", {}, h("button", { type: "button", class: "id", title: "Copy the request id", onclick: () => copy(run.id, "Request id") }, run.id.slice(0, 8))));
    const elapsed = run.over ? "" : h("div", { "data-fact": "elapsed" }, h("dt", {}, "elapsed"), ticking);
    facts.replaceChildren(...known.map(([name, value]) => h("div", { "data-fact": name }, h("dt", {}, name), h("dd", {}, value))), elapsed, id ?? "");
  }

  function showProgress(run) {
    const { progress } = run;
    bar.hidden = run.over || !["running", "queued", "sent"].includes(run.state);
    if (progress?.total) {
      bar.max = progress.total;
      bar.value = progress.done;
    } else bar.removeAttribute("value");
    const text = progress && !run.over ? [progress.message, progress.total ? `${progress.done} of ${progress.total}` : progress.done].filter((part) => part !== undefined).join(" · ") : "";
    note.textContent = text;
    note.hidden = !text;
    preview.hidden = run.over || !run.preview;
    if (run.preview && preview.src !== run.preview) preview.src = run.preview;
  }

  function showBody(run) {
    if (run.problem && run.over) {
      if (shown === run.problem) return;
      shown = run.problem;
      const kept = stream.drawn ? [stream.node] : [];
      body.replaceChildren(...kept, problemView(run));
      return;
    }
    const streaming = run.mode === "stream" || (run.items.length > 0 && run.endpoint.kind === "stream");
    if (streaming) {
      if (run.items.length && stream.node.parentNode !== body) body.replaceChildren(stream.node);
      stream.show(run.items, run.over);
      if (run.over && !run.items.length) body.replaceChildren(h("p", { class: "hint" }, run.state === "stopped" ? "Stopped before the first event." : "The stream ended without an event."));
      if (run.over) showRaw(run.items);
      return;
    }
    if (!run.over || shown === run) return;
    shown = run;
    if (run.state === "stopped") return body.replaceChildren(h("p", { class: "hint" }, "Stopped before there was an answer."));
    body.replaceChildren(...view(run.value, run.endpoint.output));
    showRaw(run.value);
  }

  function showRaw(value) {
    if (raw.firstChild) return;
    const copyAll = h("button", { type: "button", class: "quiet small", onclick: () => copy(pretty(value), "JSON") }, icon(GLYPHS.copy), "Copy");
    raw.append(h("summary", {}, "JSON"), copyAll, h("div", { class: "tree" }, tree(value)));
  }

  function showLogs(run) {
    logs.hidden = !run.logs.length;
    if (!run.logs.length) return;
    if (!logs.firstChild || logs.dataset.of !== String(run.at)) {
      logs.replaceChildren(h("summary", {}, "Logs", h("span", { class: "count" })), h("pre", { class: "log", tabIndex: 0, role: "log", "aria-label": "Log lines" }));
      logs.dataset.of = String(run.at);
      logs.dataset.lines = "0";
      logs.open = true;
    }
    const pre = logs.querySelector("pre");
    for (const line of run.logs.slice(Number(logs.dataset.lines))) pre.append(h("span", { class: `level ${String(line.level).toLowerCase()}` }, `${clock(line.timestamp)} `), `${line.message}\n`);
    logs.dataset.lines = String(run.logs.length);
    logs.querySelector(".count").textContent = String(run.logs.length);
    pre.scrollTop = pre.scrollHeight;
  }

  return { node, show };
}

const clock = (stamp) => new Date(stamp).toLocaleTimeString(undefined, { hour12: false });

function problemView(run) {
  const { detail, type } = run.problem;
  const faults = Array.isArray(detail) ? detail : [{ msg: typeof detail === "string" ? detail : pretty(detail) }];
  if (run.state === "stopped") return h("p", { class: "hint" }, "The work was stopped at your wish.");
  const lines = faults.map((fault) => h("li", {}, fault.loc ? h("code", {}, fault.loc.slice(1).join(".") || "body") : undefined, fault.loc ? " " : "", fault.msg));
  return h("div", { class: "problem", role: "alert" }, h("h3", {}, run.status === 422 ? "The input was not accepted" : "It did not work"), h("ul", {}, lines), type ? h("p", { class: "hint" }, type) : undefined);
}

// --- values

/** What shows `value`: media first, texts as texts, rows as a table, the rest as JSON. */
export function view(value, schema = {}) {
  const medium = mediumOf(value);
  if (medium) return [mediaGrid([medium])];
  if (typeof value === "string") return [textView(value)];
  if (!isObject(value)) return [tableOf(value) ?? gallery(value) ?? plain(value)];
  const order = ordered(schema).filter((name) => name in value);
  const names = [...order, ...Object.keys(value).filter((name) => !order.includes(name))];
  const parts = [];
  const rest = [];
  for (const name of names) {
    const item = value[name];
    const unsafe = name === "images" ? value.has_nsfw_concepts : undefined;
    const one = mediumOf(item, name);
    const part = one ? mediaGrid([one]) : (gallery(item, name, unsafe) ?? (typeof item === "string" ? textView(item) : tableOf(item)));
    if (part) parts.push(h("section", { class: "part" }, h("h3", {}, words(name)), part));
    else rest.push([name, item]);
  }
  const scalars = rest.filter(([, item]) => typeof item !== "object" || item === null);
  const deep = rest.filter(([, item]) => typeof item === "object" && item !== null);
  if (scalars.length) parts.push(h("dl", { class: "pairs" }, scalars.map(([name, item]) => h("div", {}, h("dt", {}, words(name)), h("dd", {}, item === null ? "–" : String(item))))));
  if (deep.length) parts.push(h("div", { class: "tree" }, deep.map(([name, item]) => tree(item, name, 1))));
  return parts.length ? parts : [h("p", { class: "hint" }, "The answer is empty.")];
}

const plain = (value) => (value === null || value === undefined ? h("p", { class: "hint" }, "The answer is null.") : h("div", { class: "tree" }, tree(value)));

function textView(text) {
  const node = h("p", { class: "text" }, text.length > LONG_TEXT ? `${text.slice(0, LONG_TEXT)}…` : text);
  if (text.length <= LONG_TEXT) return node;
  const all = h("button", { type: "button", class: "quiet", onclick: () => { node.textContent = text; all.remove(); } }, `Show all ${text.length} characters`);
  return h("div", {}, node, all);
}

function gallery(value, name, unsafe) {
  if (!Array.isArray(value) || !value.length) return undefined;
  const media = value.map((item) => mediumOf(item, name));
  return media.every(Boolean) ? mediaGrid(media, unsafe) : undefined;
}

function tableOf(rows) {
  if (!Array.isArray(rows) || !rows.length || !rows.every(isObject)) return undefined;
  const names = [...new Set(rows.slice(0, MOST_ROWS).flatMap(Object.keys))];
  const flat = rows.slice(0, MOST_ROWS).every((row) => Object.values(row).every((cell) => typeof cell !== "object" || cell === null));
  if (!flat || names.length > 12) return undefined;
  const cell = (value) => (typeof value === "number" ? h("td", { class: "number" }, figure(value)) : h("td", {}, value === undefined || value === null ? "–" : String(value)));
  const table = h("table", {}, h("thead", {}, h("tr", {}, names.map((name) => h("th", { scope: "col" }, words(name))))), h("tbody", {}, rows.slice(0, MOST_ROWS).map((row) => h("tr", {}, names.map((name) => cell(row[name]))))));
  const more = rows.length > MOST_ROWS ? h("p", { class: "hint" }, `${rows.length - MOST_ROWS} more rows are in the JSON below.`) : undefined;
  return h("div", { class: "scroll", tabIndex: 0, role: "region", "aria-label": "Table" }, table, more);
}

const figure = (number) => (Number.isInteger(number) ? String(number) : String(Number(number.toPrecision(6))));

// --- streams

const TEXT_KEYS = ["text", "token", "delta", "content", "output_text", "generated_text"];

/** The text in one event of a stream, or undefined. */
function textOf(item) {
  if (typeof item === "string") return item;
  if (!isObject(item)) return undefined;
  const key = TEXT_KEYS.find((name) => typeof item[name] === "string");
  return key === undefined ? undefined : item[key];
}

/** Events as they come: texts run on, pictures replace each other, the rest is listed. */
function streamView() {
  const node = h("div", { class: "stream" });
  let written = ""; // since the text was last drawn
  const view = {
    node,
    drawn: 0,
    begin() {
      view.drawn = 0;
      written = "";
      view.text = view.whole = view.list = undefined;
      node.replaceChildren();
    },
    show(items, over) {
      if (items.length < view.drawn) view.begin();
      const box = node.closest(".card");
      const atEnd = box && box.scrollHeight - box.scrollTop - box.clientHeight < NEAR_END;
      for (; view.drawn < items.length; view.drawn++) add(items[view.drawn]);
      if (written) view.text.append(written);
      written = "";
      view.text?.toggleAttribute("data-writing", !over);
      if (atEnd && !over) box.scrollTop = box.scrollHeight; // who reads further up stays there
    },
  };
  function add(item) {
    const medium = mediumIn(item);
    const text = medium ? undefined : textOf(item);
    if (text !== undefined) {
      view.text ??= node.appendChild(h("p", { class: "text streaming", "aria-label": "Text of the stream" }));
      // Some models send what is new, others all there is so far.
      const soFar = view.whole ?? "";
      if (soFar.length > 3 && text.length > soFar.length && text.startsWith(soFar)) {
        view.text.textContent = view.whole = text;
        written = "";
      } else {
        view.whole = soFar + text;
        written += text;
      }
    } else if (medium) {
      node.querySelector(".media")?.remove();
      node.prepend(mediaGrid([medium]));
    } else {
      view.list ??= node.appendChild(h("div", { class: "tree" }));
      if (view.list.childElementCount < MOST_EVENTS) view.list.append(tree(item, view.drawn, 1, false));
    }
  }
  return view;
}

function mediumIn(item) {
  const direct = mediumOf(item);
  if (direct || !isObject(item)) return direct;
  for (const [name, value] of Object.entries(item)) {
    const found = mediumOf(Array.isArray(value) ? value[0] : value, name);
    if (found) return found;
  }
  return undefined;
}
