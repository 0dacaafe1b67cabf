// The one server this page talks to: the one it came from. Holds the key, for this tab only.

import { byId } from "./dom.js";

export const base = new URL(".", document.baseURI);
const STORED = `runner-key ${base.pathname}`;

/** The address of one of the server's own paths. */
export const at = (path) => new URL(path.replace(/^\//, ""), base);

export const key = () => sessionStorage.getItem(STORED) ?? "";

let asking;
let declined = false;

/** `fetch`, with the key; a 401 asks for one and tries again. */
export async function call(path, options = {}) {
  const sent = key();
  const headers = new Headers(options.headers);
  if (sent) headers.set("authorization", `Key ${sent}`);
  const response = await fetch(at(path), { ...options, headers, credentials: "omit" });
  if (response.status !== 401 || options.background || declined) return response;
  if (key() !== sent || (await askKey(sent))) return call(path, options);
  return response;
}

export async function json(path, options = {}) {
  const response = await call(path, { ...options, headers: { accept: "application/json", ...options.headers } });
  if (!response.ok) throw new Error(await problemText(response));
  return response.json();
}

/** What an error answer says, in one line. */
export async function problemText(response) {
  const text = await response.text();
  try {
    const { detail } = JSON.parse(text);
    return typeof detail === "string" ? detail : text;
  } catch {
    return text.slice(0, 300) || `HTTP ${response.status}`;
  }
}

/** Ask the person for a key. Those who ask meanwhile wait for the same answer. */
function askKey(wrong) {
  asking ??= new Promise((resolve) => {
    const dialog = byId("key");
    byId("key-error").textContent = wrong ? "The server does not know this key." : "";
    byId("key-value").value = "";
    dialog.returnValue = "";
    byId("key-later").onclick = () => dialog.close();
    dialog.showModal();
    dialog.addEventListener("close", () => {
      asking = undefined;
      const given = byId("key-value").value.trim();
      if (dialog.returnValue === "use" && given) {
        sessionStorage.setItem(STORED, given);
        return resolve(true);
      }
      declined = true;
      resolve(false);
    }, { once: true });
  });
  return asking;
}

/** Ask again although somebody said "not now". */
export const mayAskAgain = () => (declined = false);

/** The events of a server-sent stream: `{event, data, id}` each, as they come. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const block of blocks) {
      const event = { event: "message", data: [], id: "" };
      for (const line of block.split(/\r?\n/)) {
        const [, name, text] = /^([^:]*):? ?(.*)$/s.exec(line);
        if (name === "data") event.data.push(text);
        else if (name) event[name] = text;
      }
      if (event.data.length) yield { ...event, data: event.data.join("\n") };
    }
  }
}
