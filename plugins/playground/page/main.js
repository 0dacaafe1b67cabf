// The page: asks the server what it serves, draws one endpoint at a time, and lets a person run it.

import { samples } from "./code.js";
import { GLYPHS, byId, choice, copy, h, icon, say, tabs } from "./dom.js";
import { makeForm } from "./form.js";
import { watchHealth } from "./health.js";
import { fromLink, linkTo, makeHistory } from "./history.js";
import { makeConsole } from "./realtime.js";
import { makeResult } from "./result.js";
import { startRun } from "./run.js";
import { endpointsOf } from "./schema.js";
import { base, json, mayAskAgain } from "./server.js";
import { duration, pretty } from "./values.js";

const RESULT = 0;
const SOON_MS = 250; // after a run began, when a place is taken

start().catch(showTrouble);

async function start() {
  themes();
  const [about, document_] = await Promise.all([json("/"), json("/openapi.json")]);
  const endpoints = endpointsOf(document_);
  document.title = `${about.app} playground`;
  byId("app").textContent = about.app;
  byId("app-id").textContent = about.app_id;
  const lookAtHealth = watchHealth(byId("health"), endpoints.map(({ path }) => path));
  const page = makePage(about, endpoints, lookAtHealth);
  const wanted = fromLink(location.hash);
  page.open(endpoints.find(({ path }) => path === wanted?.path) ?? endpoints[0], wanted);
  window.addEventListener("hashchange", () => {
    const next = fromLink(location.hash);
    const endpoint = next && endpoints.find(({ path }) => path === next.path);
    if (endpoint) page.open(endpoint, next);
  });
}

function showTrouble(error) {
  const again = () => {
    mayAskAgain();
    location.reload();
  };
  byId("main").replaceChildren(h("div", { class: "notice", role: "alert" }, h("h2", {}, "The app cannot be shown"), h("p", {}, error.message), h("button", { type: "button", class: "primary", onclick: again }, "Try again")));
}

/** Everything below the header. Owns which endpoint is open and the run that is going on. */
function makePage(about, endpoints, lookAtHealth) {
  const views = new Map();
  const history = makeHistory(about.app_id);
  const nav = byId("endpoints");
  const buttons = endpoints.map((endpoint) =>
    h("button", { type: "button", onclick: () => open(endpoint) }, endpoint.title, h("small", {}, endpoint.path)),
  );
  nav.hidden = endpoints.length < 2;
  nav.replaceChildren(...buttons);
  let current;

  function open(endpoint, wanted) {
    if (!views.has(endpoint)) views.set(endpoint, endpointView(endpoint, { about, history, repeat, lookAtHealth }));
    const next = views.get(endpoint);
    current?.node.remove();
    current = next;
    byId("main").replaceChildren(current.node);
    buttons.forEach((button, i) => (endpoints[i] === endpoint ? button.setAttribute("aria-current", "page") : button.removeAttribute("aria-current")));
    const open_ = buttons[endpoints.indexOf(endpoint)];
    nav.scrollTo({ left: open_.offsetLeft - nav.offsetLeft - 16 }); // on a phone the others are beside the screen
    if (wanted) current.restore(wanted);
    current.refresh();
  }

  function repeat(kept, again) {
    const endpoint = endpoints.find(({ path }) => path === kept.path);
    if (!endpoint) return say("The app has no such endpoint any more");
    open(endpoint, kept);
    if (again) current.run();
    else current.look({ ...kept, endpoint, over: true });
  }

  document.addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]")) return;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      current?.run();
    } else if (event.key === "Escape") current?.stop();
  });
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length || event.defaultPrevented || document.querySelector("dialog[open]")) return;
    const zones = [...document.querySelectorAll(".card.in .zone")].filter((zone) => zone.checkVisibility());
    const zone = zones.find((one) => !one.closest("[data-filled]")) ?? zones[0];
    if (!zone) return;
    event.preventDefault();
    zone.receive(files);
  });
  return { open };
}

/** One endpoint: its form on one side, what came of it on the other. */
function endpointView(endpoint, { about, history, repeat, lookAtHealth }) {
  const { links, app_id: appId } = about;
  const socket = Boolean(endpoint.protocol);
  let input;
  let mode = socket ? "realtime" : endpoint.kind;
  let run;

  // --- the input, as a form and as JSON, in step

  const form = makeForm(endpoint, () => {
    take(form.get());
    text.value = pretty(input);
    faultOfText("");
  });
  const text = h("textarea", { class: "code json", spellcheck: false, rows: 12, "aria-label": "The input as JSON", "aria-describedby": "json-fault", oninput: readText });
  const textFault = h("p", { class: "error", id: "json-fault", hidden: true });
  const textPanel = h("div", { class: "panel" }, text, textFault);

  function take(value) {
    input = value;
    drawCode();
  }
  function readText() {
    try {
      const value = JSON.parse(text.value);
      faultOfText("");
      form.set(value);
      take(value);
    } catch (error) {
      faultOfText(`Not JSON yet: ${error.message}`);
    }
  }
  function faultOfText(fault) {
    textFault.textContent = fault;
    textFault.hidden = !fault;
    text.setAttribute("aria-invalid", String(Boolean(fault)));
  }
  function restore(wanted) {
    if (wanted.input !== undefined) {
      form.set(wanted.input);
      take(wanted.input);
      text.value = pretty(wanted.input);
      faultOfText("");
    }
    if (!socket && modes.some(([value]) => value === wanted.mode)) ways.show((mode = wanted.mode));
    drawCode();
  }

  // --- running

  const modes = [
    ["direct", "Direct", "One request, one answer"],
    ["stream", "Stream", "The answer in parts, as it is made"],
    ...(links.queue ? [["queue", "Queue", "A job that outlives this page, with progress and logs"]] : []),
  ];
  const ways = choice("Way to run", modes, mode, (value) => {
    mode = value;
    drawCode();
  });
  const runButton = h("button", { type: "button", class: "primary run", title: "Ctrl + Enter", onclick: go }, icon(GLYPHS.play), "Run");
  const stopButton = h("button", { type: "button", class: "danger", title: "Escape", hidden: true, onclick: halt }, icon(GLYPHS.stop), "Stop");
  const result = makeResult();
  const talk = socket ? makeConsole(endpoint, () => input) : undefined;

  function go() {
    if (socket) return talk.send();
    if (run && !run.over) return;
    form.clearFaults();
    right.show(RESULT);
    run = startRun({ endpoint, mode, input, links }, changed);
    keepLink();
    setTimeout(lookAtHealth, SOON_MS);
    run.finished.then(ended);
    changed(run);
  }
  function halt() {
    run?.stop();
  }
  function changed(which) {
    if (which !== run) return;
    result.show(run);
    const focused = document.activeElement === runButton || document.activeElement === stopButton;
    runButton.hidden = !run.over;
    stopButton.hidden = run.over;
    stopButton.setAttribute("aria-disabled", String(Boolean(run.stopping))); // a disabled one would lose the focus
    for (const button of ways.buttons) button.disabled = !run.over;
    if (focused && document.activeElement === document.body) (run.over ? runButton : stopButton).focus();
  }
  function ended(which) {
    history.add(which);
    drawRuns();
    lookAtHealth();
    if (which === run && run.status === 422 && Array.isArray(run.problem?.detail)) {
      left.show(0);
      form.showFaults(run.problem.detail);
    }
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (matchMedia("(max-width: 52rem)").matches) rightNode.scrollIntoView({ behavior: calm ? "auto" : "smooth", block: "start" });
  }
  function keepLink() {
    const link = linkTo({ path: endpoint.path, mode, input });
    if (link) window.history.replaceState(null, "", link);
  }
  function copyLink() {
    const link = linkTo({ path: endpoint.path, mode, input });
    if (!link) return say("The input is too long for a link");
    copy(new URL(link, document.baseURI).href, "Link");
  }

  // --- code and former runs

  const codePanel = h("div", { class: "code-panel" });
  let sample = 0;
  function drawCode() {
    if (codePanel.hidden || input === undefined) return;
    const found = samples({ endpoint, mode, input, base, links, appId });
    sample = Math.min(sample, found.length - 1);
    const shown = h("pre", { class: "code-text", tabIndex: 0, role: "region", "aria-label": "Code" }, found[sample].text);
    const pick = h("select", { "aria-label": "Language and client", onchange: () => {
      sample = Number(pick.value);
      shown.textContent = found[sample].text;
    } }, found.map(({ title }, i) => h("option", { value: String(i), selected: i === sample }, title)));
    const button = h("button", { type: "button", class: "quiet", onclick: () => copy(shown.textContent, "Code") }, icon(GLYPHS.copy), "Copy");
    codePanel.replaceChildren(h("div", { class: "row between" }, pick, button), shown);
  }

  const runsPanel = h("div", { class: "runs" });
  function drawRuns() {
    const runs = history.all();
    if (!runs.length) return runsPanel.replaceChildren(h("p", { class: "hint" }, "Runs are listed here, in this browser only."));
    const clear = () => {
      history.clear();
      drawRuns();
    };
    const items = runs.map((kept) => {
      const said = kept.input === undefined ? "a large input" : JSON.stringify(kept.input);
      const when = new Date(kept.at).toLocaleTimeString(undefined, { hour12: false });
      const look = h("button", { type: "button", class: "look", onclick: () => repeat(kept, false) },
        h("span", { class: `dot ${kept.state}`, "aria-hidden": "true" }), h("span", { class: "what" }, said.slice(0, 160)),
        h("small", {}, `${when} · ${kept.path} · ${kept.mode} · ${kept.state} · ${duration(kept.timings.total)}`));
      const again = h("button", { type: "button", class: "quiet icon", title: "Repeat", "aria-label": `Repeat the run of ${when}`, disabled: kept.input === undefined, onclick: () => repeat(kept, true) }, icon(GLYPHS.repeat));
      return h("li", {}, look, again);
    });
    runsPanel.replaceChildren(h("ol", {}, items), h("button", { type: "button", class: "quiet", onclick: clear }, "Forget all"));
  }

  // --- the whole

  const empty = h("div", { class: "empty" }, h("p", {}, "The result appears here."), h("p", { class: "hint" }, h("kbd", {}, "Ctrl"), " + ", h("kbd", {}, "Enter"), " runs, ", h("kbd", {}, "Esc"), " stops."));
  const resultPanel = h("div", {}, socket ? talk.node : [empty, result.node]);
  const formPanel = h("div", { class: "panel", id: "form" }, form.node);
  const left = tabs("Input", [["Form", formPanel], ["JSON", textPanel]]);
  const right = tabs("Output", [[socket ? "Messages" : "Result", resultPanel], ["Code", codePanel], ...(socket ? [] : [["Runs", runsPanel]])], 0, () => setTimeout(drawCode));
  const bar = socket
    ? h("div", { class: "run-bar" }, h("div", { class: "row end grow" }, talk.actions))
    : h("div", { class: "run-bar" }, ways.node, h("div", { class: "row end grow" }, runButton, stopButton));
  const share = h("button", { type: "button", class: "quiet icon", title: "Copy a link to this input", "aria-label": "Copy a link to this input", onclick: copyLink }, icon(GLYPHS.link));
  const method = h("span", { class: "path" }, h("b", {}, socket ? "WS" : "POST"), endpoint.path);
  const rightNode = h("section", { class: "card out", "aria-label": "Output" }, right.list, right.bodies);
  const node = h(
    "div",
    { class: "columns" },
    h("section", { class: "card in", "aria-label": endpoint.title },
      h("div", { class: "about" }, h("div", { class: "row between" }, h("h2", {}, endpoint.title), method), paragraphs(endpoint.description)),
      h("div", { class: "row between tab-row" }, left.list, share), left.bodies, bar),
    rightNode,
  );
  result.node.hidden = true;
  const show = result.show;
  result.show = (which) => {
    empty.remove();
    result.node.hidden = false;
    show(which);
  };
  input = form.get();
  text.value = pretty(input);
  return {
    node,
    restore,
    run: go,
    stop: halt,
    refresh() {
      drawRuns();
      drawCode();
    },
    look(kept) {
      if (run && !run.over) return;
      run = kept;
      right.show(RESULT);
      changed(run);
    },
  };
}

/** A docstring's paragraphs; where its author broke a line means nothing. */
const paragraphs = (text) => text.split(/\n\s*\n/).filter((part) => part.trim()).map((part) => h("p", {}, part.replace(/\s+/g, " ").trim()));

/** As the system has it, light, or dark: one button goes round. */
function themes() {
  const button = byId("theme");
  const names = ["auto", "light", "dark"];
  const glyphs = { auto: GLYPHS.auto, light: GLYPHS.sun, dark: GLYPHS.moon };
  let theme = localStorage.getItem("runner-theme") ?? "auto";
  const put = () => {
    document.documentElement.dataset.theme = theme;
    const said = `Colours: ${theme === "auto" ? "as the system" : theme}`;
    button.setAttribute("aria-label", said);
    button.title = said;
    button.replaceChildren(icon(glyphs[theme] ?? GLYPHS.auto));
  };
  button.addEventListener("click", () => {
    theme = names[(names.indexOf(theme) + 1) % names.length];
    localStorage.setItem("runner-theme", theme);
    put();
  });
  put();
}
