/* A job's panel: what it is, how it stands, its curves, its log, its result, its history. */

import { Actions } from "./actions.js";
import { getJson, jobPath, Problem } from "./api.js";
import { Curves } from "./curves.js";
import { el, reconcile, say, setText } from "./dom.js";
import { showFiles } from "./downloads.js";
import { bytes, clock, DASH, duration, instant, number, plural } from "./format.js";
import { LogView } from "./log.js";
import { progressBar, setProgress, setState, stateMark } from "./parts.js";

/* Label and text of each fact of a job, in the order of reading. */
const FACTS = [
  ["Owner", (job) => job.user || DASH],
  ["Slot", (job) => (job.slot === null ? DASH : String(job.slot))],
  ["ETA", (job) => duration(job.eta_seconds)],
  ["Loss", (job) => number(job.loss)],
  ["Metrics", (job) => Object.entries(job.metrics ?? {}).map(([name, value]) => `${name} ${number(value)}`).join(", ") || DASH],
  ["Memory", (job) => bytes(job.memory_bytes)],
  ["Step", (job) => (job.step_seconds === null ? DASH : `${number(job.step_seconds * 1000)} ms`)],
  ["Trained", (job) => duration(job.training_seconds)],
  ["Waited", (job) => duration(job.waiting_seconds)],
  ["Priority", (job) => String(job.priority)],
  ["Threads", (job) => (job.num_threads === null ? DASH : String(job.num_threads))],
  ["Attempts", (job) => (job.attempts ? String(job.attempts.length) : String(job.epoch))],
  ["Failures", (job) => `${job.num_job_failures} own, ${job.num_infra_failures} of workers`],
  ["Submitted", (job) => clock(instant(job.submit_time), true)],
  ["Started", (job) => clock(instant(job.started_time), true)],
  ["Ended", (job) => clock(instant(job.finished_time), true)],
];

export class JobPanel {
  #box;
  #store;
  #onAsked;
  #parts = null;
  #shown = "";
  #opener = null;
  id = null;

  /** `onAsked` is called after something was asked of the job. */
  constructor(box, { store, onAsked }) {
    this.#box = box;
    this.#store = store;
    this.#onAsked = onAsked;
    addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.id && !document.querySelector("dialog[open]")) location.hash = "";
    });
  }

  /** Open the panel of this job; with null, close it and give the focus back. */
  open(id) {
    if (id === this.id) return;
    if (!this.id) this.#opener = document.activeElement;
    this.#parts?.log.close();
    this.#parts = null;
    this.#shown = "";
    this.id = id;
    this.#box.hidden = !id;
    document.body.classList.toggle("has-panel", Boolean(id));
    this.#box.replaceChildren();
    if (id) this.#make(id);
    else this.#opener?.focus();
  }

  /** Bring everything up to date. */
  async update() {
    const id = this.id;
    if (!id) return;
    try {
      const job = await getJson(jobPath(id));
      const isMoved = this.#shown !== `${job.id} ${job.state} ${job.epoch}`;
      const [history, files] = isMoved ? await Promise.all([fetchHistory(id), fetchFiles(job)]) : [];
      await this.#store.fetch(job);
      if (this.id === id) this.#show(job, history, files);
    } catch (error) {
      if (!(error instanceof Problem) || this.id !== id) throw error;
      say(this.#parts.problem, error.status === 404 ? `There is no job ${id}, or it is not yours.` : error.message);
    }
  }

  #make(id) {
    const title = el("h2", { id: "panel-title", tabindex: -1 }, id);
    const state = stateMark();
    const close = el("button", { class: "quiet close", type: "button", "aria-label": "Close this panel (Esc)",
      onclick: () => (location.hash = "") }, "×");
    const head = el("header", {}, state, title, close);
    const problem = el("p", { class: "problem", role: "alert", hidden: true });
    const [reason, progress, facts] = [el("p", { class: "reason" }), progressBar(), el("dl", { class: "facts" })];
    const code = el("code", { class: "id" }, id);
    this.#box.append(head, problem, code, reason, progress);
    this.#parts = { title, state, problem, reason, progress, facts, actions: new Actions(this.#box, this.#onAsked) };
    this.#box.append(facts);
    this.#makeSections(id);
    title.focus();
  }

  #makeSections(id) {
    const [tools, chart] = [el("span", { class: "tools" }), el("div", { class: "panel-curves" })];
    const parts = this.#parts;
    parts.files = el("div");
    parts.history = el("ol", { class: "history" });
    parts.checkpoints = el("ul", { class: "checkpoints" });
    parts.spec = el("pre", { class: "spec", tabindex: 0 });
    parts.filesSection = section("Result", parts.files);
    parts.filesSection.hidden = true;
    parts.checkpointsSection = section("Checkpoints", parts.checkpoints);
    const log = el("div");
    this.#box.append(section("Curves", chart, tools), section("Log", log), parts.filesSection,
      section("History", parts.history), parts.checkpointsSection, el("details", {}, el("summary", {}, "job.json"), parts.spec));
    parts.curves = new Curves(chart, tools, { store: this.#store, height: 170, empty: "Nothing measured yet." });
    parts.log = new LogView(log, id);
  }

  #show(job, history, files) {
    const parts = this.#parts;
    say(parts.problem, "");
    setText(parts.title, job.name);
    setState(parts.state, job.state);
    setText(parts.reason, job.reason);
    setProgress(parts.progress, job);
    parts.actions.show(job);
    showFacts(parts.facts, job);
    parts.curves.show([job]);
    showCheckpoints(parts, job.checkpoints ?? []);
    setText(parts.spec, JSON.stringify(job.spec, null, 2));
    if (!history) return;
    showHistory(parts.history, history);
    parts.filesSection.hidden = !files.length;
    setText(parts.filesSection.querySelector("h3"), job.state === "dead" ? "What is left of it" : "Result");
    if (files.length) showFiles(parts.files, job.id, files);
    this.#shown = `${job.id} ${job.state} ${job.epoch}`;
  }
}

function section(title, content, tools = null) {
  return el("section", { "aria-label": title }, el("header", {}, el("h3", {}, title), el("span", { class: "grow" }), tools), content);
}

async function fetchHistory(id) {
  return (await getJson(jobPath(id, "/transitions"))).transitions;
}

async function fetchFiles(job) {
  if (!job.result && job.state !== "dead") return [];
  return (await getJson(jobPath(job.id, "/artifacts"))).files;
}

function showFacts(box, job) {
  reconcile(box, FACTS, {
    key: ([label]) => label,
    make: ([label]) => el("div", {}, el("dt", {}, label), el("dd")),
    update: (item, [, text]) => setText(item.querySelector("dd"), text(job)),
  });
}

function showHistory(box, transitions) {
  reconcile(box, [...transitions].reverse(), {
    key: (move) => move.sequence,
    make: (move) => {
      const mark = stateMark();
      setState(mark, move.new);
      const who = move.by ? `by ${move.by}` : "";
      return el("li", {}, el("time", {}, clock(instant(move.time), true)), mark, el("span", { class: "why" }, move.reason),
        el("span", { class: "who" }, who));
    },
    update: () => {},
  });
}

function showCheckpoints(parts, checkpoints) {
  parts.checkpointsSection.hidden = !checkpoints.length;
  setText(parts.checkpointsSection.querySelector("h3"), plural(checkpoints.length, "checkpoint"));
  reconcile(parts.checkpoints, checkpoints, {
    key: (one) => `${one.epoch}-${one.step}`,
    make: (one) => el("li", {}, el("span", {}, `step ${one.step}`), el("span", {}, bytes(one.bytes)),
      el("time", {}, clock(instant(one.time), true)), el("code", { title: one.sha256 }, (one.sha256 ?? "").slice(0, 12))),
    update: () => {},
  });
}
