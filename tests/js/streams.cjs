// The stock client in Node: streams. Prints one JSON line per case.
const { createFalClient } = require("@fal-ai/client");

const [url, proxy] = process.argv.slice(2);
const fal = createFalClient({
  credentials: "any:thing",
  ...(proxy
    ? { proxyUrl: { url: proxy, when: "always" } }
    : { requestMiddleware: async (request) => ({ ...request, url: request.url.replace("https://fal.run", `${url}/run`) }) }),
});

async function streamed(endpoint, input) {
  const got = [];
  try {
    const stream = await fal.stream(endpoint, { input });
    const done = stream.done();
    done.catch(() => {});
    for await (const event of stream) got.push(event);
    return { got, done: await done };
  } catch (error) {
    return { got, error: error.message, status: error.status, body: error.body };
  }
}

(async () => {
  const cases = {
    sync: await streamed("local/streams", { n: 3 }),
    named: await streamed("local/streams/told/stream", {}),
    failing: await streamed("local/streams/fails/stream", {}),
    failing_async: await streamed("local/streams/fails-async/stream", {}),
    list: (await fal.run("local/streams/stream", { input: { n: 2 } })).data,
  };
  console.log(JSON.stringify(cases));
})();
