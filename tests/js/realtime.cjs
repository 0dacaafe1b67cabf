// The stock client in Node: realtime, its fixed host rewritten where it opens its socket.
const { createFalClient } = require("@fal-ai/client");
const Socket = require("ws");

const url = process.argv[2];
const opened = [];
globalThis.WebSocket = class extends Socket {
  constructor(address) {
    opened.push(address);
    super(address.replace("wss://fal.run", `${url}/run`));
  }
};
const fal = createFalClient({ credentials: "any:thing" });

function talk(path, inputs, answers) {
  return new Promise((resolve) => {
    const got = [];
    const connection = fal.realtime.connect("local/talks", {
      path,
      connectionKey: `${path}${opened.length}`,
      throttleInterval: 0,
      tokenProvider: async () => "token",
      onResult: (result) => {
        got.push({ ...result, data: result.data && Array.from(result.data) });
        if (got.length === answers) {
          connection.close();
          resolve({ got });
        } else if (inputs.length) connection.send(inputs.shift());
      },
      onError: (error) => resolve({ got, error: error.message, status: error.status }),
    });
    connection.send(inputs.shift());
  });
}

(async () => {
  const bytes = new Uint8Array([0, 255]);
  const cases = {
    unary: await talk("/realtime", [1, 2, 3].map((n) => ({ n, data: bytes, text: "né 😀" })), 3),
    async: await talk("/async", [{ n: 4 }], 1),
    server: await talk("/server", [{ n: 3 }], 3),
    bidi: await talk("/bidi", [{ n: 1 }], 2),
    invalid: await talk("/realtime", [{ m: 1 }], 1),
    failing: await talk("/fails", [{ n: 1 }], 1),
    opened: opened.length,
  };
  console.log(JSON.stringify(cases));
  process.exit(0);
})();
