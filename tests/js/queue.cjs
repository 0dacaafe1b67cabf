// The stock client in Node through the runner's proxy: run, queue, subscribe, stream, realtime by JWT.
const { createFalClient } = require("@fal-ai/client");
const Socket = require("ws");
const fs = require("fs");

const [url, key, gate] = process.argv.slice(2);
globalThis.WebSocket = class extends Socket {
  constructor(address) {
    super(address.replace("wss://fal.run", `${url.replace("http", "ws")}/run`));
  }
};
const client = (credentials) => createFalClient({ credentials, proxyUrl: { url: `${url}/api/fal/proxy`, when: "always" } });
const fal = client(key);
const failed = (error) => ({ name: error.name, status: error.status, body: error.body });

function talk() {
  return new Promise((resolve) => {
    const connection = fal.realtime.connect("local/sdk", {
      connectionKey: "one",
      throttleInterval: 0,
      onResult: (result) => { connection.close(); resolve(result); },
      onError: (error) => resolve({ error: error.message, status: error.status }),
    });
    connection.send({ n: 21 });
  });
}

(async () => {
  const found = {};
  const run = await fal.run("local/sdk", { input: { prompt: "né" } });
  found.run = { data: run.data, hasId: !!run.requestId };

  const updates = [];
  const subscribed = await fal.subscribe("local/sdk", {
    input: { prompt: "b" }, logs: true, pollInterval: 20, onQueueUpdate: (update) => updates.push(update),
  });
  found.subscribe = { data: subscribed.data, id: subscribed.requestId === updates[0].request_id };
  found.logs = updates.at(-1).logs.map((line) => line.message);

  const streamed = [];
  const streaming = await fal.subscribe("local/sdk", {
    input: { prompt: "c" }, mode: "streaming", logs: true, onQueueUpdate: (update) => streamed.push(update.status),
  });
  found.streaming = { data: streaming.data, last: streamed.at(-1) };

  const gated = await fal.queue.submit("local/sdk/gate", { input: { path: gate }, priority: "low" });
  const early = await fal.queue.status("local/sdk", { requestId: gated.request_id });
  found.early = early.status;
  const following = await fal.queue.streamStatus("local/sdk", { requestId: gated.request_id, logs: true });
  fs.writeFileSync(gate, "");
  found.done = (await following.done()).status;
  found.result = (await fal.queue.result("local/sdk", { requestId: gated.request_id })).data;

  const unending = await fal.queue.submit("local/sdk/gate", { input: { path: `${gate}-never` } });
  while ((await fal.queue.status("local/sdk", { requestId: unending.request_id })).status === "IN_QUEUE");
  await fal.queue.cancel("local/sdk", { requestId: unending.request_id });
  await fal.queue.subscribeToStatus("local/sdk", { requestId: unending.request_id, pollInterval: 20 });
  found.cancelled = await fal.queue.result("local/sdk", { requestId: unending.request_id }).catch(failed);

  found.invalid = await fal.subscribe("local/sdk", { input: { promt: "x" }, pollInterval: 20 }).catch(failed);
  found.bad = await fal.run("local/sdk/bad", { input: {} }).catch(failed);
  found.wrongKey = await client("wrong:key").run("local/sdk", { input: { prompt: "x" } }).catch(failed);

  const events = [];
  const stream = await fal.stream("local/sdk", { input: { n: 3 } });
  for await (const event of stream) events.push(event.i);
  found.stream = { events, done: (await stream.done()).i };

  found.realtime = await talk();

  found.uploads = [];
  for (const size of [5, 91 * 1024 * 1024]) {
    const url = await fal.storage.upload(new Blob(["x".repeat(size)], { type: "text/plain" }));
    found.uploads.push((await fal.subscribe("local/sdk/size", { input: { url }, pollInterval: 20 })).data);
  }
  console.log(JSON.stringify(found));
  process.exit(0);
})();
