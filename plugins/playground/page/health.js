// How the server is, in one line: read from /health/ready, which costs it nothing, and from /metrics.

import { h, svg } from "./dom.js";
import { call } from "./server.js";
import { bytes } from "./values.js";

const HEALTH_MS = 2000;
const BAR_MS = 3000; // what one bar of the plot stands for
const BARS = 40;
const HIGH = 16;

/** Keep `strip` up to date while the page is looked at. `paths` are those of the endpoints. */
export function watchHealth(strip, paths) {
  const state = h("span", { class: "state" });
  const parts = h("span", { class: "gauges" });
  const traffic = makeTraffic();
  strip.replaceChildren(state, parts, traffic.node);
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
      parts.replaceChildren();
      return show("gone", "the server does not answer");
    }
    await readMetrics();
    draw();
  }

  async function readMetrics() {
    const response = await call("/metrics", { background: true }).catch(() => undefined);
    if (!response?.ok) return;
    const metrics = parse(await response.text());
    const ours = ({ labels }) => paths.some((path) => labels.includes(`path="${path}"`));
    traffic.count(sum(metrics.http_requests_total?.filter(ours)));
    const memory = metrics.process_resident_memory_bytes?.[0]?.value;
    gauges = [
      memory && ["memory", bytes(memory), "Memory of the server's process"],
      gpu(metrics),
      ["per minute", String(traffic.lastMinute()), "Requests that ended in the last minute, while this page was open"],
    ].filter(Boolean);
  }

  function show(status, reason) {
    state.replaceChildren(h("span", { class: `dot ${status}`, "aria-hidden": "true" }), status);
    if (reason) state.append(h("small", {}, ` · ${reason}`));
    state.title = reason ?? "";
    strip.dataset.state = status;
  }

  function draw() {
    const told = [
      lanes && ["running", `${lanes.running} of ${lanes.places}`, "Places that are taken"],
      lanes && lanes.waiting > 0 && ["waiting", String(lanes.waiting), "Requests in the line"],
      lanes && lanes.ghosts > 0 && ["stuck", String(lanes.ghosts), "Places held by work that outlived its cancel"],
      ...gauges,
    ].filter(Boolean);
    parts.replaceChildren(...told.map(([name, value, title]) => h("span", { class: "gauge", title }, h("b", {}, value), ` ${name}`)));
  }

  look();
  setInterval(look, HEALTH_MS);
  document.addEventListener("visibilitychange", look);
  return look;
}

/** What torch holds of all the devices, and of how much. */
function gpu(metrics) {
  const held = metrics.runner_cuda_memory_allocated_bytes;
  if (!held) return undefined;
  const total = sum(metrics.runner_cuda_memory_total_bytes);
  const devices = held.length > 1 ? `${held.length} GPUs` : "GPU";
  return [devices, total ? `${bytes(sum(held))} of ${bytes(total)}` : bytes(sum(held)), "Memory that torch holds on the GPU"];
}

/** Requests by the time at which they were counted, and their plot. */
function makeTraffic() {
  const bars = []; // {at, count}, the oldest first
  let before;
  const node = svg("svg", { class: "plot", viewBox: `0 0 ${BARS} ${HIGH}`, preserveAspectRatio: "none", role: "img", "aria-label": "Requests of the last two minutes" });
  const now = () => Math.floor(performance.now() / BAR_MS);
  return {
    node,
    lastMinute: () => bars.reduce((total, { at, count }) => total + (at > now() - 60_000 / BAR_MS ? count : 0), 0),
    count(total) {
      const more = before === undefined ? 0 : Math.max(0, total - before); // a server that began anew counts from 0
      before = total;
      if (bars.at(-1)?.at === now()) bars.at(-1).count += more;
      else bars.push({ at: now(), count: more });
      while (bars[0].at <= now() - BARS) bars.shift();
      const highest = Math.max(1, ...bars.map(({ count }) => count));
      node.replaceChildren(
        svg("rect", { x: 0, y: HIGH - 1, width: BARS, height: 1, class: "ground" }),
        ...bars.filter(({ count }) => count).map(({ at, count }) => svg("rect", { x: BARS - 1 - (now() - at), y: HIGH * (1 - count / highest), width: 0.8, height: (HIGH * count) / highest })),
      );
    },
  };
}

/** Prometheus' text: `{name: [{labels, value}]}`. */
function parse(text) {
  const found = {};
  for (const [, name, labels, value] of text.matchAll(/^([a-zA-Z_:][\w:]*)(\{(?:[^"}]|"(?:[^"\\]|\\.)*")*\})? ([^ \n]+)/gm)) (found[name] ??= []).push({ labels: labels ?? "", value: Number(value) });
  return found;
}

const sum = (samples) => (samples ?? []).reduce((total, { value }) => total + value, 0);
