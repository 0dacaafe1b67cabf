// A console for WebSockets: connect, send what the form says, see what comes and how long it took.
// Messages are JSON texts; the server answers in kind.

import { h } from "./dom.js";
import { tree } from "./json.js";
import { at, call, key } from "./server.js";
import { duration, isObject, mediumOf, pretty } from "./values.js";
import { view } from "./result.js";

const MOST_MESSAGES = 300;
const SHORT = 120; // characters of a message that stands on one line
const MOST_TRIPS = 100; // of which the median is told
const FRAME_SAMPLES = 4096; // of the microphone, per message

export function makeConsole(endpoint, getInput) {
  let socket;
  let sent = []; // when those were sent that have no answer yet
  let began = 0;
  let count = { out: 0, in: 0 };
  let faulty = false; // the server said so, and then it hangs up
  let trips = []; // milliseconds from a message to its answer
  const state = h("div", { class: "run-status", role: "status" });
  const facts = h("dl", { class: "facts" });
  const list = h("ol", { class: "messages", "aria-label": "Messages", tabIndex: 0 });
  const connectButton = h("button", { type: "button", class: "quiet", onclick: () => (socket ? socket.close(1000) : connect()) });
  const sendButton = h("button", { type: "button", class: "primary", title: "Ctrl + Enter", onclick: send }, "Send");
  const frame = frameField(endpoint);
  const microphone = frame && navigator.mediaDevices?.getUserMedia ? h("button", { type: "button", class: "quiet", onclick: () => speak() }, "Send microphone") : undefined;
  let listening;

  function tell(text, kind) {
    state.replaceChildren(h("span", { class: `dot ${kind}`, "aria-hidden": "true" }), text);
    connectButton.textContent = socket ? "Disconnect" : "Connect";
    const told = [["sent", String(count.out)], ["received", String(count.in)]];
    if (trips.length) told.push(["round trip, median", duration(trips.toSorted((a, b) => a - b)[trips.length >> 1])]);
    facts.replaceChildren(...told.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
  }

  async function connect() {
    const url = at(endpoint.path);
    url.protocol = url.protocol.replace("http", "ws");
    tell("Connecting", "running");
    if (key()) {
      const asked = await call("/tokens/", { method: "POST" });
      if (asked.ok) url.searchParams.set("fal_jwt_token", await asked.json());
    }
    socket = new WebSocket(url);
    socket.binaryType = "arraybuffer";
    const mine = socket;
    began = performance.now();
    sent = [];
    count = { out: 0, in: 0 };
    trips = [];
    faulty = false;
    mine.onmessage = ({ data }) => receive(data);
    mine.onclose = ({ code, reason }) => {
      if (socket === mine) socket = undefined;
      listening?.();
      if (faulty) return tell("Closed after an error", "failed");
      tell(code === 1000 ? "Closed" : `Closed, ${code}${reason ? ` ${reason}` : ""}`, code === 1000 ? "stopped" : "failed");
    };
    return new Promise((resolve, reject) => {
      mine.onopen = () => {
        tell(`Connected in ${duration(performance.now() - began)}`, "ready");
        resolve();
      };
      mine.onerror = () => reject(new Error("the server refused the connection"));
    });
  }

  async function send() {
    try {
      if (!socket) await connect();
    } catch {
      return;
    }
    put(getInput());
  }

  function put(value, shown = value) {
    if (socket?.readyState !== WebSocket.OPEN) return;
    socket.send(JSON.stringify(value));
    sent.push(performance.now());
    count.out += 1;
    add("out", shown);
  }

  function receive(data) {
    if (typeof data !== "string") return add("in", { bytes: data.byteLength }, undefined);
    let value = data;
    try {
      value = JSON.parse(data);
    } catch {
      // a text is a text
    }
    if (value?.type === "x-fal-error") {
      if (value.error === "TIMEOUT") return;
      faulty = true;
      return add("fault", value);
    }
    count.in += 1;
    const asked = endpoint.protocol?.realtimeMode === "unary" ? sent.shift() : sent.at(-1);
    const ms = asked === undefined ? undefined : performance.now() - asked;
    if (ms !== undefined) trips = [...trips.slice(1 - MOST_TRIPS), ms];
    add("in", value, ms);
  }

  function add(way, value, ms) {
    const name = { out: "Sent", in: "Received", fault: "Error" }[way];
    const media = way === "in" && isObject(value) && Object.entries(value).some(([field, item]) => mediumOf(item, field));
    const line = media ? "" : pretty(value);
    const shown = media ? view(value) : line.length <= SHORT && !line.includes("\n") ? line : tree(value, undefined, 1, true);
    list.append(h("li", { class: way }, h("span", { class: "way" }, name, h("small", {}, ms === undefined ? duration(performance.now() - began) : `after ${duration(ms)}`)), h("div", { class: "tree" }, shown)));
    while (list.childElementCount > MOST_MESSAGES) list.firstChild.remove();
    list.scrollTop = list.scrollHeight;
    if (socket) tell(state.textContent, "ready");
  }

  /** Each message is the form's input with the newest sound in its field of bytes: 16 bit, one channel. */
  async function speak() {
    if (listening) return listening();
    if (!socket) await connect().catch(() => {});
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    } catch (error) {
      return tell(`No microphone: ${error.message}`, "failed");
    }
    const context = new AudioContext({ sampleRate: 16_000 });
    await context.audioWorklet.addModule(new URL("microphone.js", import.meta.url));
    const source = context.createMediaStreamSource(stream);
    const node = new AudioWorkletNode(context, "frames", { processorOptions: { samples: FRAME_SAMPLES } });
    node.port.onmessage = ({ data }) => {
      const input = getInput();
      put({ ...input, [frame]: base64(data) }, { ...input, [frame]: `${data.byteLength} bytes of sound` });
    };
    source.connect(node);
    microphone.textContent = "Stop microphone";
    listening = () => {
      listening = undefined;
      stream.getTracks().forEach((track) => track.stop());
      context.close();
      microphone.textContent = "Send microphone";
    };
  }

  tell("Not connected", "stopped");
  return {
    node: h("div", { class: "result" }, h("div", { class: "run-head" }, state, facts), list),
    actions: [connectButton, microphone, sendButton].filter(Boolean),
    send,
    close: () => socket?.close(1000),
  };
}

/** The field of a message that takes bytes, if there is one. */
function frameField(endpoint) {
  const fields = Object.entries(endpoint.input.properties ?? {});
  return fields.find(([, schema]) => ["binary", "byte"].includes(schema.format) || schema.contentEncoding === "base64")?.[0];
}

function base64(buffer) {
  let text = "";
  for (const byte of new Uint8Array(buffer)) text += String.fromCharCode(byte);
  return btoa(text);
}
