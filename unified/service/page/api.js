/* Every word with the server: JSON, streams, downloads; the token; what can go wrong. Addresses are relative to the page,
   so it works below any prefix of a proxy. */

const TOKEN = "unified-token";
const PATIENCE_MS = 15000;

/** The server does not answer at all. */
export class Unreachable extends Error {}

/** The server wants a token, or another one. */
export class NeedsToken extends Error {}

/** The server refused, and says why (application/problem+json). */
export class Problem extends Error {
  constructor(status, body) {
    super(body.detail || body.title || `the server answered ${status}`);
    this.status = status;
    this.problems = (body.problems || []).map(problemText);
  }
}

function problemText(one) {
  return `${one.field || one.job || one.code}: expected ${one.expected}, got ${one.given}. ${one.remedy || ""}`;
}

export function hasToken() {
  return Boolean(sessionStorage.getItem(TOKEN));
}

export function setToken(token) {
  if (token) sessionStorage.setItem(TOKEN, token);
  else sessionStorage.removeItem(TOKEN);
}

/** Address of a job, or of something below it. */
export function jobPath(id, rest = "") {
  return `v1/jobs/${encodeURIComponent(id)}${rest}`;
}

/** Return the JSON at `path`. */
export async function getJson(path) {
  return read(await ask(path, { signal: AbortSignal.timeout(PATIENCE_MS) }));
}

/** Post JSON; return the JSON of the answer. */
export async function post(path, body = {}) {
  const headers = { "Content-Type": "application/json" };
  return read(await ask(path, { method: "POST", headers, body: JSON.stringify(body) }));
}

/** Return the answer's content as a Blob: a plain link could not carry the token. */
export async function getBlob(path) {
  return (await ask(path, {})).blob();
}

/**
 * Read the server-sent events at `path`, from behind the one with id `last`, until they or `signal` end.
 * `receive(event, data)` gets each; `setLast(id)` is told how far it came.
 */
export async function follow(path, { signal, last, receive, setLast }) {
  const headers = { Accept: "text/event-stream", ...(last ? { "Last-Event-ID": last } : {}) };
  const answer = await ask(path, { signal, headers });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await readPiece(reader);
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) receiveBlock(block, receive, setLast);
  }
}

async function readPiece(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Unreachable(error.message);
  }
}

function receiveBlock(block, receive, setLast) {
  let event = "message";
  const data = [];
  for (const line of block.split("\n")) {
    const value = line.slice(line.indexOf(":") + 1).replace(/^ /, "");
    if (line.startsWith("event:")) event = value;
    else if (line.startsWith("data:")) data.push(value);
    else if (line.startsWith("id:")) setLast(value);
  }
  if (data.length) receive(event, data.join("\n"));
}

async function ask(path, options) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Unreachable(error.message);
  }
  if (answer.status === 401) throw new NeedsToken("the server asks for a token");
  if (!answer.ok) throw new Problem(answer.status, await answer.json().catch(() => ({})));
  return answer;
}

async function read(answer) {
  try {
    return await answer.json();
  } catch (error) {
    throw new Unreachable(`an answer that is not JSON: ${error.message}`);
  }
}
