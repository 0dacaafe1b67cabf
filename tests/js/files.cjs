// The stock client in Node through the runner's proxy: a Blob in an input, and one large enough for parts.
const { createFalClient } = require("@fal-ai/client");

const [url, key] = process.argv.slice(2);
const fal = createFalClient({ credentials: key, proxyUrl: { url: `${url}/api/fal/proxy`, when: "always" } });

(async () => {
  const found = {};
  const small = new Blob(["small"], { type: "text/plain" });
  found.read = (await fal.run("local/files/read-model", { input: { file: small } })).data;
  found.url = await fal.storage.upload(new Blob([Buffer.alloc(91 * 1024 * 1024)], { type: "application/octet-stream" }));
  found.length = (await fal.run("local/files/length", { input: { url: found.url } })).data;
  console.log(JSON.stringify(found));
  process.exit(0);
})();
