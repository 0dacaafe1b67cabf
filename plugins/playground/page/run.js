// One run: an input on its way to an endpoint and what comes back, by one of three ways.
//
//   direct   one POST, one answer
//   stream   one POST, an answer in server-sent events
//   queue    a submit, then the job's status and its event log, then the result

import { call, events, problemText } from "./server.js";

const LANE_LOOK_MS = 25; // between looks at whether the place is free
const LANE_PATIENCE_MS = 3000;

/** Start a run. `changed(run)` is called whenever something is known that was not before. */
export function startRun({ endpoint, mode, input, links }, changed) {
  const run = {
    endpoint, mode, input, links,
    at: Date.now(),
    began: performance.now(),
    state: "sent", // then queued, running, and at last done, failed or stopped
    id: undefined,
    timings: {}, // milliseconds: wait, run, first, total
    items: [],
    logs: [],
    aborting: new AbortController(),
    get over() {
      return ["done", "failed", "stopped"].includes(this.state);
    },
    tell: inFrames(() => changed(run)),
  };
  run.stop = () => stop(run);
  run.finished = drive(run);
  return run;
}

/** `draw`, at most once per frame: a stream may bring thousands of events between two. */
function inFrames(draw) {
  let due = false;
  const put = () => {
    if (due) draw();
    due = false;
  };
  return () => {
    if (due) return;
    due = true;
    requestAnimationFrame(put);
    setTimeout(put, 100); // a tab that nobody looks at has no frames
  };
}

async function drive(run) {
  try {
    await { direct, stream: direct, queue }[run.mode](run);
  } catch (error) {
    if (!run.over) fail(run, 0, run.aborting.signal.aborted ? "The page hung up." : `The server cannot be reached: ${error.message}`);
  }
  run.timings.total ??= performance.now() - run.began;
  if (run.stopping) run.stopping.answered ??= performance.now() - run.stopping.asked;
  run.tell();
  return run;
}

/** Where an input goes: path parameters into the path, others into the query or headers, the rest is the body. */
export function requestOf(endpoint, input) {
  const plain = typeof input !== "object" || input === null || Array.isArray(input);
  const query = new URLSearchParams();
  const headers = {};
  let path = endpoint.path;
  const body = plain ? input : {};
  for (const [name, value] of plain ? [] : Object.entries(input)) {
    const source = endpoint.sources[name];
    if (source === "path") path = path.replace(`{${name}}`, encodeURIComponent(String(value)));
    else if (source === "header") headers[name] = String(value);
    // Plain parameters may come in a JSON body as well; it keeps their types. With a body beside them they cannot.
    else if (source === "query" && endpoint.hasBody) [value].flat().forEach((one) => query.append(name, String(one)));
    else body[name] = value;
  }
  const search = query.size ? `?${query}` : "";
  return { path: path + search, headers, body, bare: path };
}

// --- direct and stream

async function direct(run) {
  const { path, headers, body } = requestOf(run.endpoint, run.input);
  run.id = newRequestId();
  run.state = "running";
  run.tell();
  const response = await call(path, {
    method: "POST",
    signal: run.aborting.signal,
    body: JSON.stringify(body),
    headers: {
      ...headers, "content-type": "application/json", accept: run.mode === "stream" ? "text/event-stream" : "application/json",
      "x-fal-request-id": run.id, "x-runner-timings": "1",
    },
  });
  run.id = response.headers.get("x-fal-request-id") ?? run.id;
  run.timings.first = performance.now() - run.began;
  readServerTiming(run, response);
  if (!(response.headers.get("content-type") ?? "").startsWith("text/event-stream")) return settle(run, response);
  delete run.timings.run; // as far as the head of the answer: a stream goes on
  for await (const { data } of events(response)) {
    const item = parsed(data);
    run.timings.item ??= performance.now() - run.began;
    if (isProblem(item)) return fail(run, response.status, item.detail, item.error_type);
    run.items.push(item);
    run.tell();
  }
  // A stream that was cut has no last word in it when the cut came between two of its parts.
  if (run.stopping) return finish(run, "stopped");
  run.value = run.items.at(-1);
  finish(run, "done");
}

function newRequestId() {
  return crypto.randomUUID?.() ?? Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** How long it waited and ran, as the server saw it. */
function readServerTiming(run, response) {
  for (const [, name, ms] of (response.headers.get("server-timing") ?? "").matchAll(/(\w+);dur=([\d.]+)/g)) run.timings[name] = Number(ms);
}

/** The last event of a stream that failed carries `error_type` beside `detail`. */
const isProblem = (item) => typeof item === "object" && item !== null && "detail" in item && "error_type" in item;

async function settle(run, response) {
  run.status = response.status;
  const type = response.headers.get("content-type") ?? "";
  if (!response.ok) {
    const body = parsed(await response.text());
    return fail(run, response.status, body?.detail ?? body, response.headers.get("x-fal-error-type") ?? undefined);
  }
  if (type.startsWith("text/event-stream")) {
    // A job of a stream keeps what it sent. The event log may have brought some of it already.
    run.items = [];
    for await (const { data } of events(response)) run.items.push(parsed(data));
    run.value = run.items.at(-1);
  } else if (type.includes("json") || type === "") run.value = parsed(await response.text());
  else if (type.startsWith("text/")) run.value = await response.text();
  else {
    const blob = await response.blob();
    run.value = { url: URL.createObjectURL(blob), content_type: type, file_size: blob.size };
  }
  finish(run, "done");
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

function finish(run, state) {
  run.state = state;
  run.timings.total = performance.now() - run.began;
}

function fail(run, status, detail, type) {
  run.status = status;
  run.problem = { detail, type };
  finish(run, status === 499 || type === "client_cancelled" || (run.stopping && status === 0) ? "stopped" : "failed");
}

// --- the queue

async function queue(run) {
  const { path, headers, body } = requestOf(run.endpoint, run.input);
  const submitted = await call(`${run.links.queue}${path === "/" ? "" : path}`, {
    method: "POST", body: JSON.stringify(body), signal: run.aborting.signal, headers: { ...headers, "content-type": "application/json" },
  });
  if (!submitted.ok) return settle(run, submitted);
  const job = await submitted.json();
  run.id = job.request_id;
  run.job = `${run.links.queue}/requests/${run.id}`;
  run.state = "queued";
  run.position = job.queue_position;
  run.tell();
  if (run.stopping) await cancel(run); // asked for before there was anything to cancel
  const listening = new AbortController();
  const log = followLog(run, listening.signal);
  await followStatus(run);
  await Promise.race([log, new Promise((resolve) => setTimeout(resolve, 500))]); // its last lines
  listening.abort();
  const kept = { ...run.timings };
  await settle(run, await call(run.job, { headers: { accept: "application/json" } }));
  run.timings = { ...run.timings, ...kept, total: run.timings.total };
}

async function followStatus(run) {
  const response = await call(`${run.job}/status/stream?logs=1`, { signal: run.aborting.signal });
  if (!response.ok) throw new Error(await problemText(response));
  for await (const { data } of events(response)) {
    const status = JSON.parse(data);
    if (status.status === "IN_QUEUE") run.position = status.queue_position;
    else {
      run.timings.wait ??= performance.now() - run.began;
      run.position = undefined;
      if (run.state === "queued") run.state = "running";
      run.logs.push(...(status.logs ?? []));
    }
    if (status.status === "COMPLETED") run.timings.run = (status.metrics?.inference_time ?? 0) * 1000;
    run.tell();
  }
}

/** Progress and previews come in the event log; without it the run goes on all the same. */
async function followLog(run, signal) {
  try {
    const response = await call(run.links.events.replace("{id}", run.id), { signal, background: true });
    if (!response.ok) return;
    for await (const { event, data } of events(response)) {
      const told = JSON.parse(data);
      if (event === "progress" && told.preview) run.preview = told.preview;
      else if (event === "progress") run.progress = told;
      else if (event === "output") run.items.push(told);
      else continue;
      run.tell();
    }
  } catch {
    // aborted, or the plugin is not there
  }
}

// --- stopping

/** Ask the server to stop, and find out when it has: the answer, and then the place in the lane. */
async function stop(run) {
  if (run.over || run.stopping) return;
  run.stopping = { asked: performance.now() };
  run.tell();
  const before = occupied();
  await cancel(run);
  await run.finished;
  await untilFree(run, await before);
  run.tell();
}

async function cancel(run) {
  try {
    if (run.job) await call(`${run.job}/cancel`, { method: "PUT" });
    else if (run.mode !== "queue") {
      const { bare, headers } = requestOf(run.endpoint, run.input);
      const answer = await call(`${bare.replace(/\/$/, "")}/cancel`, { method: "POST", headers: { ...headers, "x-fal-request-id": run.id } });
      if (answer.status === 404) run.aborting.abort(); // it is not there yet: to hang up stops it too
    }
  } catch {
    run.aborting.abort();
  }
}

async function occupied() {
  try {
    const response = await call("/health/ready", { background: true });
    return (await response.json()).lanes;
  } catch {
    return undefined;
  }
}

async function untilFree(run, before) {
  if (!before) return;
  const until = performance.now() + LANE_PATIENCE_MS;
  while (performance.now() < until) {
    const lanes = await occupied();
    if (!lanes) return;
    // With others in the line the place is taken again at once: then nobody can tell from here.
    if (lanes.running < Math.max(1, before.running)) {
      run.stopping.free = performance.now() - run.stopping.asked;
      return;
    }
    if (before.waiting > 0) return;
    await new Promise((resolve) => setTimeout(resolve, LANE_LOOK_MS));
  }
}
