/* Small pieces that several parts of the page show. */

import { el, setText } from "./dom.js";
import { bytes, DASH, isNumber } from "./format.js";
import { colour, progress } from "./jobs.js";

/** A state as a coloured mark and its word. */
export function stateMark() {
  return el("span", { class: "state" }, el("i", { class: "dot" }), el("span", { class: "word" }));
}

/** Bring a state mark up to date. */
export function setState(mark, state) {
  mark.dataset.state = state;
  setText(mark.querySelector(".word"), state);
}

/** A bar with its numbers: steps done of planned. */
export function progressBar() {
  return el("span", { class: "progress" }, el("progress", { max: 1, value: 0 }), el("span", { class: "numbers" }));
}

/** Bring a progress bar up to date. */
export function setProgress(box, job) {
  const share = progress(job);
  const [bar, numbers] = box.children;
  bar.value = share ?? 0;
  bar.dataset.state = job.state;
  bar.setAttribute("aria-label", `progress of ${job.name}`);
  const steps = `${job.steps_done} / ${job.steps_total ?? "?"}`;
  setText(numbers, share === null && !job.steps_done ? DASH : steps);
  box.title = share === null ? "not checked yet" : `${(share * 100).toFixed(1)} %`;
}

/** A link that opens a job's panel. */
export function jobLink(id, name) {
  return el("a", { class: "job-link", href: `#/jobs/${encodeURIComponent(id)}`, title: id }, name);
}

/** A bar of memory, one segment per `{ id, name, bytes }`, against `total`. */
export function memoryBar() {
  return el("div", { class: "memory-bar", role: "img" });
}

/** Bring a memory bar up to date; `rest` is what the process takes beside its members. */
export function setMemory(bar, segments, rest, total) {
  const known = segments.filter((one) => isNumber(one.bytes));
  const sum = known.reduce((all, one) => all + one.bytes, 0) + rest;
  const scale = 100 / Math.max(total || 0, sum, 1);
  const parts = known.map((one) => memoryPart(colour(one.id), one.bytes * scale, `${one.name}: ${bytes(one.bytes)}`));
  if (rest > 0) parts.push(memoryPart("rest", rest * scale, `process: ${bytes(rest)}`));
  bar.replaceChildren(...parts);
  bar.setAttribute("aria-label", `${bytes(sum)} of ${bytes(total)}`);
}

function memoryPart(kind, width, title) {
  const part = el("span", { class: kind, title });
  part.style.width = `${width.toFixed(2)}%`;
  return part;
}
