// Runs that were, kept in this browser: the newest first, within bounds. And the link that restores an input.

const MOST_RUNS = 60;
const MOST_CHARACTERS = 30_000; // of one input or result; larger ones are left out
const LONGEST_LINK = 16_000;

export function makeHistory(app) {
  const stored = `runner-runs ${app} ${location.pathname}`;
  let runs = read();

  function read() {
    try {
      return JSON.parse(localStorage.getItem(stored)) ?? [];
    } catch {
      return [];
    }
  }
  function write() {
    for (;;) {
      try {
        return localStorage.setItem(stored, JSON.stringify(runs));
      } catch {
        if (!runs.length) return; // no room at all, or none is given
        runs.pop();
      }
    }
  }
  const small = (value) => ((JSON.stringify(value) ?? "").length <= MOST_CHARACTERS ? value : undefined);

  return {
    all: () => runs,
    add(run) {
      const { endpoint, mode, state, status, at, id, timings, problem, stopping, logs } = run;
      runs.unshift({
        path: endpoint.path, kind: endpoint.kind, mode, state, status, at, id, timings, problem, stopping,
        input: small(run.input), value: small(run.value), items: small(run.items) ?? [], logs: small(logs) ?? [],
      });
      runs = runs.slice(0, MOST_RUNS);
      write();
    },
    clear() {
      runs = [];
      write();
    },
  };
}

/** The page's address with an endpoint, a way to run it and an input in it. Undefined when the input is too long for one. */
export function linkTo({ path, mode, input }) {
  const hash = new URLSearchParams({ endpoint: path, mode, input: JSON.stringify(input) }).toString();
  return hash.length > LONGEST_LINK ? undefined : `#${hash}`;
}

/** What a link asks for. The input is data for the form, which the person sends, or not. */
export function fromLink(hash) {
  const told = new URLSearchParams(hash.replace(/^#/, ""));
  if (!told.has("endpoint")) return undefined;
  let input;
  try {
    input = told.has("input") ? JSON.parse(told.get("input")) : undefined;
  } catch {
    input = undefined; // somebody cut the link
  }
  return { path: told.get("endpoint"), mode: told.get("mode") ?? undefined, input };
}
