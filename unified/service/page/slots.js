/* The slots: who trains there, who is parked, and whose memory it is. */

import { el, reconcile, setText } from "./dom.js";
import { bytes, duration, isNumber, plural } from "./format.js";
import { colour } from "./jobs.js";
import { jobLink, memoryBar, progressBar, setMemory, setProgress, setState, stateMark } from "./parts.js";

/** Show the slots of `/v1/slots`; `jobs` maps the ids of residents to jobs, as far as they are known. */
export function showSlots(box, answer, jobs) {
  reconcile(box, answer.slots, {
    key: (slot) => slot.index,
    make: makeSlot,
    update: (card, slot) => updateSlot(card, slot, jobs, answer.memory_total_bytes),
  });
}

function makeSlot(slot) {
  return el("article", { class: "slot", "aria-label": `Slot ${slot.index}` },
    el("header", {}, el("h3", {}, `slot ${slot.index}`), el("span", { class: "where" }), stateMark(), el("span", { class: "size" })),
    memoryBar(),
    el("ul", { class: "members" }),
    el("p", { class: "others" }));
}

function updateSlot(card, slot, jobs, total) {
  const members = slot.residents.map((id) => jobs.get(id) ?? { id, name: id, state: "running", steps_done: 0, steps_total: null });
  const isBusy = slot.is_busy ?? Boolean(slot.running);
  setText(card.querySelector(".where"), [slot.device, slot.threads ? plural(slot.threads, "thread") : ""].filter(Boolean).join(" · "));
  setState(card.querySelector(".state"), slot.state === "idle" && isBusy ? "training" : slot.state);
  setText(card.querySelector(".size"), isNumber(slot.memory_bytes) ? `${bytes(slot.memory_bytes)} of ${bytes(total)}` : "");
  updateMemory(card.querySelector(".memory-bar"), slot, members, total);
  updateMembers(card.querySelector(".members"), slot, members);
  const others = (slot.num_residents ?? members.length) - members.length;
  setText(card.querySelector(".others"), others > 0 ? `and ${plural(others, "job")} of others` : members.length ? "" : "empty");
}

function updateMemory(bar, slot, members, total) {
  const segments = members.map((job) => ({ id: job.id, name: job.name, bytes: job.memory_bytes }));
  const held = segments.reduce((sum, one) => sum + (one.bytes ?? 0), 0);
  setMemory(bar, segments, Math.max(0, (slot.memory_bytes ?? 0) - held), total);
}

function updateMembers(list, slot, members) {
  const isRunning = (job) => job.id === slot.running;
  const ordered = [...members].sort((one, other) => isRunning(other) - isRunning(one));
  reconcile(list, ordered, {
    key: (job) => job.id,
    make: (job) => el("li", {}, el("i", { class: `swatch ${colour(job.id)}` }), jobLink(job.id, job.name),
      el("span", { class: "turn" }), progressBar(), el("span", { class: "eta" })),
    update: (item, job) => {
      setText(item.querySelector(".job-link"), job.name);
      item.classList.toggle("training", isRunning(job));
      setText(item.querySelector(".turn"), isRunning(job) ? "training" : job.state === "running" ? "parked" : job.state);
      setProgress(item.querySelector(".progress"), job);
      setText(item.querySelector(".eta"), isNumber(job.eta_seconds) ? duration(job.eta_seconds) : "");
    },
  });
}
