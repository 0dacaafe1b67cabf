// How the server is, in one line: read from /health/ready, which costs it nothing, and from /metrics.

import { h, svg } from "./dom.js";
import { call } from "./server.js";
import { bytes } from "./values.js";

const HEALTH_MS = 2000;
const METRICS_EVERY = 3; // healths
const POINTS = 40;

/** Keep `strip` up to date while the page is looked at. `paths` are those of the endpoints. */
export function watchHealth(strip, paths) {
  const rates = [];
  let turn = 0;
  let before;
  const state = h("span", { class: "state" });
  const parts = h("span", { class: "gauges" });
  const plot = svg("svg", { class: "plot", viewBox: `0 0 ${POINTS} 16`, preserveAspectRatio: "none", role: "img", "aria-label": "Requests per minute, lately" }, svg("polyline", { points: "" }));
  strip.replaceChildren(state, parts, plot);
  let lanes;
  let gauges = [];

  async function look() {
    if (document.hidden) return;
    try {
      const response = await call("/health/ready", { background: true });
      const health = await response.json();
      if (response.status === 401) return show("locked", "a key is needed");
      lanes = health.lanes;
      show(health.status, health.reason);
    } catch {
      lanes = undefined;
      return show("gone", "the server does not answer");
    }
    if (turn++ % METRICS_EVERY === 0) await readMetrics();
    draw();
  }

  async function readMetrics() {
    const response = await call("/metrics", { background: true }).catch(() => undefined);
    if (!response?.ok) return;
    const metrics = parse(await response.text());
    const total = sum(metrics.http_requests_total?.filter(({ labels }) => paths.some((path) => labels.includes(`path="${path}"`))));
    const now = performance.now();
    if (before) rates.push(Math.max(0, ((total - before.total) * 60_000) / (now - before.at)));
    if (rates.length > POINTS) rates.shift();
    before = { total, at: now };
    const memory = metrics.process_resident_memory_bytes?.[0]?.value;
    const cuda = sum(metrics.runner_cuda_memory_allocated_bytes);
    gauges = [
      memory && ["memory", bytes(memory)],
      metrics.runner_cuda_memory_allocated_bytes && ["GPU", bytes(cuda)],
      rates.length && ["per minute", String(Math.round(rates.at(-1)))],
    ].filter(Boolean);
  }

  function show(status, reason) {
    state.replaceChildren(h("span", { class: `dot ${status}`, "aria-hidden": "true" }), status);
    state.title = reason ?? "";
    strip.dataset.state = status;
  }

  function draw() {
    const told = [
      lanes && ["running", `${lanes.running} of ${lanes.places}`],
      lanes && lanes.waiting > 0 && ["waiting", String(lanes.waiting)],
      lanes && lanes.ghosts > 0 && ["stuck", String(lanes.ghosts)],
      ...gauges,
    ].filter(Boolean);
    parts.replaceChildren(...told.map(([name, value]) => h("span", { class: "gauge" }, h("b", {}, value), ` ${name}`)));
    const highest = Math.max(1, ...rates);
    const points = rates.map((rate, i) => `${POINTS - rates.length + i},${15 - (14 * rate) / highest}`);
    plot.firstChild.setAttribute("points", points.join(" "));
    plot.toggleAttribute("hidden", rates.length < 2);
  }

  look();
  setInterval(look, HEALTH_MS);
  document.addEventListener("visibilitychange", look);
  return look;
}

/** Prometheus' text: `{name: [{labels, value}]}`. */
function parse(text) {
  const found = {};
  for (const [, name, labels, value] of text.matchAll(/^([a-zA-Z_:]+)(\{[^}]*\})? ([^ \n]+)/gm)) (found[name] ??= []).push({ labels: labels ?? "", value: Number(value) });
  return found;
}

const sum = (samples) => (samples ?? []).reduce((total, { value }) => total + value, 0);
