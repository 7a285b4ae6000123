/* The page of a queue: asks the server what is going on and hands the answers to the parts that show it. */

import { getJson, hasToken, NeedsToken, Problem, setToken, Unreachable } from "./api.js";
import { Curves } from "./curves.js";
import { askToken } from "./dialogs.js";
import { byId, el, reconcile, say, setText } from "./dom.js";
import { bytes, clock, duration, instant, isNumber, plural } from "./format.js";
import { LIVE, setCurrent } from "./jobs.js";
import { MemoryHistory } from "./memory.js";
import { MetricStore } from "./metrics.js";
import { JobPanel } from "./panel.js";
import { Plots } from "./plots.js";
import { Poller } from "./poll.js";
import { QueueTable } from "./queue.js";
import { showSlots } from "./slots.js";
import { Timeline } from "./timeline.js";

const LIVE_PATH = `v1/jobs?limit=200&${LIVE.map((state) => `state=${state}`).join("&")}`;

const notices = new Map();
const known = new Map();
const metrics = new MetricStore();
const plots = new Plots(() => drawPlots());
const poller = new Poller(tick, 1, showAway);
const table = new QueueTable({ plots, onChange: askNow });
const panel = new JobPanel(byId("panel"), { store: metrics, onAsked: askNow });
const timeline = new Timeline(byId("timeline"), { hint: byId("timeline-hint") });
const memory = new MemoryHistory(byId("memory"), byId("memory-hint"));
const curves = new Curves(byId("curves"), byId("curves-tools"), {
  store: metrics, height: 240, empty: "Tick a job of the table to see its curves.", onRemove: (id) => plots.toggle(id),
});

const SLOW = 2; // what changes less is asked every so many rounds

const SILENT_SECONDS = 15;

let round = 0;
let heard = { time: null, at: 0 };
let isKnown = false;
let problemOfToken = "";

/* One round of questions. A part of the page that fails says so and leaves the others alone. */
async function tick() {
  try {
    if (!isKnown) await meet();
    const slots = await getJson("v1/slots");
    const isSlowTurn = round % SLOW === 0;
    round += 1;
    await part("live", () => updateLive(slots));
    await Promise.all([
      isSlowTurn && part("table", updateTable),
      isSlowTurn && part("timeline", () => updateTimeline(slots)),
      part("panel", () => panel.update()),
    ]);
    await part("curves", updateCurves);
    notify("server", "");
  } catch (error) {
    if (error instanceof NeedsToken) await signIn();
    else if (error instanceof Problem) notify("server", `The server refuses: ${error.message}`, "bad");
    else if (error instanceof Unreachable) throw error;
    else showFault(error);
  }
}

function showFault(error) {
  console.error(error);
  notify("server", `A fault of this page: ${error.message}. Please reload it.`, "bad");
}

async function part(name, update) {
  try {
    await update();
    notify(name, "");
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    notify(name, `${name}: ${[error.message, ...error.problems].join(" ")}`, "bad");
  }
}

async function meet() {
  const me = await getJson("v1/whoami");
  isKnown = true;
  problemOfToken = "";
  setText(byId("who"), [me.user, me.is_operator && me.user ? "operator" : ""].filter(Boolean).join(", "));
  byId("owner-tool").hidden = !me.is_operator;
  byId("sign-out").hidden = !hasToken();
}

async function signIn() {
  isKnown = false;
  if (hasToken()) problemOfToken = "The server does not know this token. Is it complete, and of this queue?";
  setToken("");
  const token = await askToken(problemOfToken);
  setToken(token);
  askNow();
}

async function updateLive(slots) {
  const { jobs } = slots.slots.length ? await getJson(LIVE_PATH) : { jobs: [] };
  remember(jobs);
  setCurrent(jobs.map((job) => job.id));
  plots.offer(jobs);
  showHealth(slots, jobs.length);
  showSlots(byId("slots"), slots, known);
  say(byId("slots-empty"), slots.slots.length ? "" : "No slots: nothing trains until a supervisor runs.");
  memory.add(slots.slots, slots.memory_total_bytes, instant(slots.time) ?? Date.now() / 1000);
}

async function updateTable() {
  const { path } = table;
  const answer = await getJson(path);
  remember(answer.jobs);
  if (path === table.path) table.receive(answer);
}

async function updateTimeline(slots) {
  const window = Number(byId("timeline-window").value);
  const now = (slots.is_served && instant(slots.time)) || Date.now() / 1000;
  const { turns } = await getJson(`v1/timeline?since=${timeline.since(now, window).toFixed(3)}`);
  const names = new Map([...known].map(([id, job]) => [id, job.name]));
  timeline.show(turns, { now, window, slots: slots.is_served ? slots.slots : [], names });
}

async function updateCurves() {
  const jobs = plots.ids.map((id) => known.get(id)).filter(Boolean);
  await Promise.all(jobs.map((job) => metrics.fetch(job)));
  curves.show(jobs);
}

/* All of it at once: the reader did something. */
function askNow() {
  round = 0;
  poller.now();
}

function drawPlots() {
  table.refresh(panel.id);
  askNow();
}

function remember(jobs) {
  for (const job of jobs) known.set(job.id, job);
}

/* What the head of the page says */

function showHealth(slots, numLive) {
  const problem = supervisorProblem(slots);
  notify("supervisor", problem && sentence(problem), "warn");
  setHealth(problem ? "warn" : "good", problem.split(";")[0] || `${slots.scheduler} on ${plural(slots.slots.length, "slot")}`);
  const used = isNumber(slots.memory_bytes) ? `${bytes(slots.memory_bytes)} of ${bytes(slots.memory_total_bytes)}` : "";
  const facts = [
    ["running", String(numLive)],
    ["waiting", String(slots.queued)],
    ["memory", used],
    ["busy", slots.is_served && isNumber(slots.utilisation) ? `${Math.round(slots.utilisation)} %` : ""],
    ["disk free", isNumber(slots.disk_free_bytes) ? bytes(slots.disk_free_bytes) : ""],
  ].filter(([, text]) => text);
  reconcile(byId("vitals"), facts, {
    key: ([label]) => label,
    make: ([label]) => el("div", {}, el("dt", {}, label), el("dd")),
    update: (item, [, text]) => setText(item.querySelector("dd"), text),
  });
  document.title = `${numLive} running, ${slots.queued} waiting · unified`;
}

function supervisorProblem(slots) {
  if (slots.time !== heard.time) heard = { time: slots.time, at: Date.now() };
  const silent = (Date.now() - heard.at) / 1000;
  if (!slots.is_served) return "no supervisor is running: jobs wait; start one with “unified serve”";
  if (slots.is_draining) return "the supervisor is ending: jobs wait for the next one";
  return silent > SILENT_SECONDS ? `the supervisor has said nothing for ${duration(silent)}: what is shown may be old` : "";
}

function sentence(text) {
  return `${text[0].toUpperCase()}${text.slice(1)}.`;
}

function setHealth(kind, text) {
  byId("health").dataset.kind = kind;
  setText(byId("health").querySelector(".text"), text);
}

function showAway(since, seconds) {
  document.body.classList.toggle("away", since !== null);
  if (since === null) return notify("away", "");
  const text = `cannot reach the server since ${clock(since)}`;
  setHealth("bad", text);
  notify("away", sentence(`${text}; what is shown is from then; next try in ${duration(seconds)}`), "bad");
}

function notify(key, text, kind = "") {
  if (text) notices.set(key, { key, text, kind });
  else notices.delete(key);
  reconcile(byId("notices"), [...notices.values()], {
    key: (notice) => notice.key,
    make: (notice) => el("p", { class: `notice ${notice.kind}` }, el("span"), notice.key === "away" &&
      el("button", { type: "button", onclick: askNow }, "Try now")),
    update: (line, notice) => setText(line.firstElementChild, notice.text),
  });
}

/* What the reader does */

function onAddress() {
  const found = /^#\/jobs\/(.+)$/.exec(location.hash);
  panel.open(found ? decode(found[1]) : null);
  table.refresh(panel.id);
  askNow();
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // not written by this page
  }
}

function onKey(event) {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea")) return;
  event.preventDefault();
  byId("find").focus();
}

byId("sign-out").addEventListener("click", () => {
  setToken("");
  location.reload();
});
byId("timeline-window").addEventListener("change", askNow);
addEventListener("hashchange", onAddress);
addEventListener("keydown", onKey);
onAddress();
