// The very call of the form, as programs write it. Keys are never in it: they come from the environment.

import { requestOf } from "./run.js";
import { key } from "./server.js";
import { isObject } from "./values.js";

/** Samples for one call: `[{title, language, text}]`. */
export function samples({ endpoint, mode, input, base, links, appId }) {
  const request = requestOf(endpoint, input);
  const root = base.href.replace(/\/$/, "");
  const call = {
    ...request, mode, appId, root,
    streams: endpoint.kind === "stream",
    url: root + request.path,
    submit: root + links.queue + (request.path === "/" ? "" : request.path),
    proxy: `${root}/api/fal/proxy`,
    id: appId + (request.path === "/" ? "" : request.path),
    secure: base.protocol === "https:",
    host: base.host,
    keyed: Boolean(key()),
  };
  if (mode === "realtime") return [
    { title: "Python, fal_client", text: pythonFal(call) },
    { title: "Python, websockets", text: pythonSocket(call) },
    { title: "JavaScript, WebSocket", text: javascriptSocket(call) },
  ];
  return [
    { title: "curl", text: curl(call) },
    { title: "Python, fal_client", text: pythonFal(call) },
    { title: "Python, httpx", text: pythonHttpx(call) },
    { title: "JavaScript, @fal-ai/client", text: javascriptFal(call) },
    { title: "JavaScript, fetch", text: javascriptFetch(call) },
  ];
}

// --- literals

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** A JSON value as a Python literal; JSON's escapes in strings are Python's as well. */
function python(value, indent = "") {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const one = Array.isArray(value)
    ? `[${value.map((item) => python(item)).join(", ")}]`
    : `{${Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${python(item)}`).join(", ")}}`;
  if (one.length + indent.length <= 72 && !one.includes("\n")) return one;
  const inner = `${indent}    `;
  const lines = Array.isArray(value) ? value.map((item) => inner + python(item, inner)) : Object.entries(value).map(([name, item]) => `${inner}${JSON.stringify(name)}: ${python(item, inner)}`);
  return Array.isArray(value) ? `[\n${lines.join(",\n")},\n${indent}]` : `{\n${lines.join(",\n")},\n${indent}}`;
}

function javascript(value, indent = "") {
  if (typeof value !== "object" || value === null) return JSON.stringify(value ?? null);
  const name = (text) => (/^[A-Za-z_$][\w$]*$/.test(text) && text !== "__proto__" ? text : JSON.stringify(text));
  const one = Array.isArray(value)
    ? `[${value.map((item) => javascript(item)).join(", ")}]`
    : Object.keys(value).length ? `{ ${Object.entries(value).map(([key, item]) => `${name(key)}: ${javascript(item)}`).join(", ")} }` : "{}";
  if (one.length + indent.length <= 72) return one;
  const inner = `${indent}  `;
  const lines = Array.isArray(value) ? value.map((item) => inner + javascript(item, inner)) : Object.entries(value).map(([key, item]) => `${inner}${name(key)}: ${javascript(item, inner)}`);
  return Array.isArray(value) ? `[\n${lines.join(",\n")},\n${indent}]` : `{\n${lines.join(",\n")},\n${indent}}`;
}

/** What an answer is asked for as: a stream's events, or all that it would send as one list. */
function accepting(call) {
  if (call.mode === "stream") return { accept: "text/event-stream" };
  return call.streams ? { accept: "application/json" } : {};
}

// --- curl

function curl(call) {
  const headers = { "content-type": "application/json", ...call.headers, ...accepting(call) };
  const lines = Object.entries(headers).map(([name, value]) => `  -H ${quoted(`${name}: ${value}`)}`);
  const auth = call.keyed ? ['  -H "authorization: Key $FAL_KEY"'] : [];
  const data = `  -d ${quoted(JSON.stringify(call.body))}`;
  if (call.mode !== "queue") return [`curl ${call.mode === "stream" ? "-N " : ""}${quoted(call.url)}`, ...lines, ...auth, data].join(" \\\n");
  const submit = [`curl -s ${quoted(call.submit)}`, ...lines, ...auth, data, `  | sed -E 's/.*"response_url":"([^"]+)".*/\\1/'`].join(" \\\n");
  const again = call.keyed ? ' -H "authorization: Key $FAL_KEY"' : "";
  return `job=$(${submit})\n\n# ends when the job does; each line says how it goes\ncurl -sN${again} "$job/status/stream?logs=1" >/dev/null\n\ncurl -s${again} "$job"`;
}

// --- Python

function falNote(call) {
  if (call.secure) return [
    "# Before it starts:",
    `#     export FAL_RUN_HOST=${call.host}/run FAL_QUEUE_RUN_HOST=${call.host}/queue`,
    `#     export FAL_KEY=${call.keyed ? "..." : "any:thing"}    (and SSL_CERT_FILE, if the authority is your own)`,
  ];
  return [
    "# fal_client speaks https to fal's own hosts: start the runner with --fal-gateway 8443,",
    `# run the three export lines that it prints${call.keyed ? ", FAL_KEY being your key" : ""}, and then this.`,
  ];
}

function pythonFal(call) {
  const shown = python(call.body, "    ");
  const headers = { ...call.headers, ...(call.mode === "queue" ? accepting(call) : {}) };
  const extra = Object.keys(headers).length ? `\n    headers=${python(headers, "    ")},` : "";
  const head = [...falNote(call), "import fal_client", ""];
  if (call.mode === "realtime") {
    return [...head, `with fal_client.realtime("${call.appId}", path="${call.bare}") as connection:`, `    connection.send(${shown})`, "    print(connection.recv())"].join("\n");
  }
  if (call.mode === "queue") {
    return [
      ...head, "def told(update):", "    for line in getattr(update, \"logs\", None) or []:", "        print(line[\"message\"], file=sys.stderr)", "",
      "result = fal_client.subscribe(", `    "${call.id}",`, `    arguments=${shown},${extra}`, "    with_logs=True,", "    on_queue_update=told,", ")", "print(result)",
    ].join("\n").replace("import fal_client", "import sys\n\nimport fal_client");
  }
  if (call.mode === "stream" || call.streams) {
    const args = `\n    "${call.appId}",\n    arguments=${shown},\n    path="${call.path}",\n`;
    if (call.mode === "stream") return [...head, `for event in fal_client.stream(${args}):`, "    print(event)"].join("\n");
    return [...head, `result = list(fal_client.stream(${args}))`, "print(result)"].join("\n");
  }
  return [...head, `result = fal_client.run(\n    "${call.id}",\n    arguments=${shown},${extra}\n)`, "print(result)"].join("\n");
}

function pythonHttpx(call) {
  const headers = { ...call.headers, ...accepting(call) };
  const entries = Object.entries(headers).map(([name, value]) => `${JSON.stringify(name)}: ${JSON.stringify(value)}`);
  if (call.keyed) entries.push('"authorization": f"Key {os.environ[\'FAL_KEY\']}"');
  const imports = [call.keyed && "import os", ["stream"].includes(call.mode) && "import json", call.mode === "queue" && "import time"].filter(Boolean).sort();
  const head = [...imports, ...(imports.length ? [""] : []), "import httpx", ""];
  const given = entries.length ? [`    headers={${entries.join(", ")}},`] : [];
  const body = `    json=${python(call.body, "    ")},`;
  if (call.mode === "stream") {
    return [...head, "with httpx.stream(", '    "POST",', `    ${JSON.stringify(call.url)},`, body, ...given, "    timeout=None,", ") as response:", "    response.raise_for_status()", "    for line in response.iter_lines():", '        if line.startswith("data: "):', "            print(json.loads(line[6:]))"].join("\n");
  }
  if (call.mode === "queue") {
    const client = call.keyed ? 'client = httpx.Client(headers={"authorization": f"Key {os.environ[\'FAL_KEY\']}"})' : "client = httpx.Client()";
    const own = Object.keys(headers).length ? [`    headers=${python(headers, "    ")},`] : [];
    return [...head, client, "job = client.post(", `    ${JSON.stringify(call.submit)},`, body, ...own, ").raise_for_status().json()", 'while client.get(job["status_url"]).json()["status"] != "COMPLETED":', "    time.sleep(0.2)", 'response = client.get(job["response_url"]).raise_for_status()', "print(response.json())"].join("\n");
  }
  return [...head, "response = httpx.post(", `    ${JSON.stringify(call.url)},`, body, ...given, "    timeout=None,", ")", "response.raise_for_status()", "print(response.json())"].join("\n");
}

function pythonSocket(call) {
  const url = call.url.replace(/^http/, "ws");
  const auth = call.keyed ? ', additional_headers={"authorization": f"Key {os.environ[\'FAL_KEY\']}"}' : "";
  return [...(call.keyed ? ["import json", "import os"] : ["import json"]), "", "from websockets.sync.client import connect", "", `with connect(${JSON.stringify(url)}${auth}) as socket:`, `    socket.send(json.dumps(${python(call.body, "    ")}))`, "    print(json.loads(socket.recv()))"].join("\n");
}

// --- JavaScript

function javascriptFal(call) {
  const credentials = call.keyed ? "process.env.FAL_KEY" : '"any:thing"';
  const head = ['import { fal } from "@fal-ai/client";', "", "fal.config({", `  credentials: ${credentials},`, `  proxyUrl: { url: ${JSON.stringify(call.proxy)}, when: "always" },`, "});", ""];
  const input = javascript(call.body, "  ");
  if (call.mode === "queue") {
    return [...head, `const result = await fal.subscribe(${JSON.stringify(call.id)}, {`, `  input: ${input},`, "  logs: true,", "  onQueueUpdate: (update) => console.error(update.status),", "});", "console.log(result.data);"].join("\n");
  }
  // This client's stream asks for JSON as well (1.10), which an endpoint with one answer then gives: run it.
  if (call.streams) {
    const own = call.path.endsWith("/stream") ? [] : [`  url: ${JSON.stringify(`https://fal.run/${call.id}`)},`];
    const id = call.path.endsWith("/stream") ? call.id : call.appId;
    const open = [...head, `const stream = await fal.stream(${JSON.stringify(id)}, {`, ...own, `  input: ${input},`, "});"];
    if (call.mode === "stream") return [...open, "for await (const event of stream) console.log(event);", "await stream.done();"].join("\n");
    return [...open, "const result = [];", "for await (const event of stream) result.push(event);", "console.log(result);"].join("\n");
  }
  return [...head, `const result = await fal.run(${JSON.stringify(call.id)}, {`, `  input: ${input},`, "});", "console.log(result.data);"].join("\n");
}

function javascriptFetch(call) {
  const headers = { "content-type": "application/json", ...call.headers, ...accepting(call) };
  const entries = Object.entries(headers).map(([name, value]) => `${JSON.stringify(name)}: ${JSON.stringify(value)}`);
  if (call.keyed) entries.push("authorization: `Key ${process.env.FAL_KEY}`");
  const post = (url) => [`await fetch(${JSON.stringify(url)}, {`, '  method: "POST",', `  headers: { ${entries.join(", ")} },`, `  body: JSON.stringify(${javascript(call.body, "  ")}),`, "})"].join("\n");
  const check = "if (!response.ok) throw new Error(await response.text());";
  if (call.mode === "stream") {
    return [`const response = ${post(call.url)};`, check, 'let rest = "";', "for await (const part of response.body.pipeThrough(new TextDecoderStream())) {", '  const events = (rest + part).split("\\n\\n");', "  rest = events.pop();", '  for (const event of events) if (event.startsWith("data: ")) console.log(JSON.parse(event.slice(6)));', "}"].join("\n");
  }
  if (call.mode === "queue") {
    const given = call.keyed ? ", { headers: { authorization: `Key ${process.env.FAL_KEY}` } }" : "";
    return [`const submitted = ${post(call.submit)};`, "const job = await submitted.json();", "const look = async (url) => (await fetch(url" + given + ")).json();", 'while ((await look(job.status_url)).status !== "COMPLETED") await new Promise((resolve) => setTimeout(resolve, 200));', "console.log(await look(job.response_url));"].join("\n");
  }
  return [`const response = ${post(call.url)};`, check, "console.log(await response.json());"].join("\n");
}

function javascriptSocket(call) {
  const url = call.url.replace(/^http/, "ws");
  const body = javascript(isObject(call.body) ? call.body : {}, "");
  const open = call.keyed
    ? [`const asked = await fetch(${JSON.stringify(`${call.root}/tokens/`)}, {`, '  method: "POST",', "  headers: { authorization: `Key ${process.env.FAL_KEY}` },", "});", `const socket = new WebSocket(\`${url}?fal_jwt_token=\${await asked.json()}\`);`]
    : [`const socket = new WebSocket(${JSON.stringify(url)});`];
  return [...open, `socket.onopen = () => socket.send(JSON.stringify(${body}));`, "socket.onmessage = (message) => {", "  console.log(JSON.parse(message.data));", "  socket.close();", "};"].join("\n");
}
