/* The table of jobs: its columns, the filters, the order, the pages. What it shows is one page of the server's listing. */

import { byId, el, reconcile, say, setText } from "./dom.js";
import { bytes, clock, DASH, duration, instant, isNumber, number, plural } from "./format.js";
import { colour, GROUPS, progress, STATES } from "./jobs.js";
import { jobLink, progressBar, setProgress, setState, stateMark } from "./parts.js";

const PAGE_SIZE = 100;

/* One per column: its title, what it sorts by, how its cell is made and kept up to date. */
const COLUMNS = [
  { key: "plot", title: "", unseen: "In the chart", make: plotBox, update: updatePlotBox },
  { key: "state", title: "State", by: (job) => STATES.indexOf(job.state), make: stateMark, update: (cell, job) => setState(cell, job.state) },
  { key: "name", title: "Job", by: (job) => job.name.toLowerCase(), make: nameCell, update: updateName },
  { key: "user", title: "Owner", by: (job) => job.user, text: (job) => job.user || DASH },
  { key: "reason", title: "Why", by: (job) => job.reason, text: (job) => job.reason },
  { key: "steps", title: "Progress", by: progress, make: progressBar, update: setProgress },
  { key: "eta", title: "ETA", by: (job) => job.eta_seconds, text: (job) => duration(job.eta_seconds) },
  { key: "loss", title: "Loss", by: (job) => job.loss, text: (job) => number(job.loss) },
  { key: "memory", title: "Memory", by: (job) => job.memory_bytes, text: (job) => bytes(job.memory_bytes) },
  { key: "submitted", title: "Submitted", by: (job) => instant(job.submit_time), text: (job) => clock(instant(job.submit_time)) },
];

export class QueueTable {
  #jobs = [];
  #group = GROUPS[0];
  #sort = { key: null, isDown: false };
  #cursors = [null];
  #next = null;
  #plots;
  #onChange;
  #isLoaded = false;

  /** `plots` says which jobs are in the chart; `onChange` is called when another page of the server's is wanted. */
  constructor({ plots, onChange }) {
    this.#plots = plots;
    this.#onChange = onChange;
    this.#makeHead();
    this.#makeGroups();
    byId("find").addEventListener("input", () => this.#show());
    for (const id of ["owner", "order"]) byId(id).addEventListener("change", () => this.#restart());
    byId("first").addEventListener("click", () => this.#restart());
    byId("back").addEventListener("click", () => this.#turnTo(this.#cursors.slice(0, -1)));
    byId("more").addEventListener("click", () => this.#turnTo([...this.#cursors, this.#next]));
    byId("jobs").tBodies[0].addEventListener("click", openClicked);
    byId("jobs").tBodies[0].addEventListener("keydown", moveByArrow);
  }

  /** Address of the page that is shown. */
  get path() {
    const query = new URLSearchParams({ limit: PAGE_SIZE });
    for (const state of this.#group.states) query.append("state", state);
    if (byId("owner").value.trim()) query.set("user", byId("owner").value.trim());
    if (byId("order").value === "newest") query.set("newest", "1");
    if (this.#cursors.at(-1)) query.set("cursor", this.#cursors.at(-1));
    return `v1/jobs?${query}`;
  }

  /** Take in what the server answered for `path`. */
  receive(answer) {
    this.#jobs = answer.jobs;
    this.#next = answer.cursor;
    this.#isLoaded = true;
    const owners = [...new Set(answer.jobs.map((job) => job.user).filter(Boolean))].sort();
    reconcile(byId("owners"), owners, { key: (name) => name, make: (name) => el("option", { value: name }), update: () => {} });
    this.#show();
  }

  /** Draw the table again: the panel or the chart shows another job. */
  refresh(opened) {
    this.opened = opened;
    if (this.#isLoaded) this.#show();
  }

  #restart() {
    this.#turnTo([null]);
  }

  #turnTo(cursors) {
    this.#cursors = cursors;
    this.#onChange();
  }

  #makeHead() {
    const heads = COLUMNS.map((column) => el("th", { scope: "col", class: `col-${column.key}` },
      column.by ? el("button", { type: "button", onclick: () => this.#sortBy(column.key) }, column.title)
        : el("span", { class: "unseen" }, column.unseen)));
    byId("jobs").tHead.append(el("tr", {}, ...heads));
  }

  #makeGroups() {
    const choices = GROUPS.map((group) => {
      const input = el("input", { type: "radio", name: "group", value: group.key, checked: group === this.#group,
        onchange: () => this.#choose(group) });
      return el("label", { title: group.states.join(", ") || null }, input, el("span", {}, group.label));
    });
    byId("groups").append(...choices);
  }

  #choose(group) {
    this.#group = group;
    this.#restart();
  }

  #sortBy(key) {
    const isSame = this.#sort.key === key;
    if (isSame && this.#sort.isDown) this.#sort = { key: null, isDown: false };
    else this.#sort = { key, isDown: isSame };
    this.#show();
  }

  #show() {
    const jobs = this.#sorted(this.#jobs.filter(matches(byId("find").value)));
    reconcile(byId("jobs").tBodies[0], jobs, { key: (job) => job.id, make: (job) => this.#makeRow(job), update: (row, job) => this.#updateRow(row, job) });
    this.#showHead();
    this.#showPager(jobs.length);
  }

  #sorted(jobs) {
    const column = COLUMNS.find((one) => one.key === this.#sort.key);
    if (!column) return jobs;
    const sign = this.#sort.isDown ? -1 : 1;
    return [...jobs].sort((one, other) => compare(column.by(one), column.by(other), sign));
  }

  #makeRow(job) {
    const cells = COLUMNS.map((column) => el("td", { class: `col-${column.key}` }, column.make ? column.make(job, this.#plots) : null));
    return el("tr", { "data-id": job.id }, ...cells);
  }

  #updateRow(row, job) {
    COLUMNS.forEach((column, index) => {
      const cell = row.cells[index];
      if (column.update) column.update(cell.firstElementChild, job, this.#plots);
      else {
        setText(cell, column.text(job));
        if (column.key === "reason") cell.title = job.reason;
      }
    });
    row.classList.toggle("open", job.id === this.opened);
  }

  #showHead() {
    COLUMNS.forEach((column, index) => {
      const order = this.#sort.isDown ? "descending" : "ascending";
      byId("jobs").tHead.rows[0].cells[index].setAttribute("aria-sort", column.key === this.#sort.key ? order : "none");
    });
  }

  #showPager(numShown) {
    const isPlain = !byId("find").value && this.#group.key === "all" && !byId("owner").value;
    const empty = isPlain ? "No jobs yet. Hand one in with “unified submit FOLDER”, or copy its folder into incoming/." : "No job here matches.";
    say(byId("jobs-empty"), numShown ? "" : empty);
    byId("jobs").hidden = !numShown;
    const isOnePage = this.#cursors.length === 1 && !this.#next;
    const place = isOnePage ? "" : " on this page; finding and sorting look at this page alone";
    const shown = numShown === this.#jobs.length ? plural(numShown, "job") : `${numShown} of ${plural(this.#jobs.length, "job")}`;
    setText(byId("count"), shown + place);
    for (const id of ["first", "back", "more", "page-number"]) byId(id).hidden = isOnePage;
    setText(byId("page-number"), `page ${this.#cursors.length}`);
    byId("first").disabled = byId("back").disabled = this.#cursors.length === 1;
    byId("more").disabled = !this.#next;
  }
}

function matches(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  return (job) => words.every((word) => `${job.id} ${job.name} ${job.user} ${job.state} ${job.reason}`.toLowerCase().includes(word));
}

/* Unknown values are last, whichever way it is sorted. */
function compare(one, other, sign) {
  const [isMissing, isOtherMissing] = [one, other].map((value) => value === null || value === undefined);
  if (isMissing || isOtherMissing) return isMissing - isOtherMissing;
  if (isNumber(one) && isNumber(other)) return sign * (one - other);
  return sign * String(one).localeCompare(String(other));
}

function plotBox(job, plots) {
  return el("input", { type: "checkbox", onchange: () => plots.toggle(job.id) });
}

function updatePlotBox(box, job, plots) {
  box.checked = plots.has(job.id);
  if (box.checked) box.className = colour(job.id);
  box.setAttribute("aria-label", `${job.name} in the chart`);
}

function nameCell(job) {
  return el("span", { class: "name-cell" }, jobLink(job.id, job.name), el("code", {}, ""));
}

function updateName(cell, job) {
  setText(cell.querySelector(".job-link"), job.name);
  setText(cell.querySelector("code"), job.id.startsWith(`${job.name}-`) ? job.id.slice(job.name.length + 1) : job.id === job.name ? "" : job.id);
}

/* A click anywhere in a row opens the job, unless text is being selected or something else was meant. */
function openClicked(event) {
  const row = event.target.closest("tr");
  if (!row || event.target.closest("a, input, button") || String(getSelection())) return;
  row.querySelector(".job-link").click();
}

function moveByArrow(event) {
  const moves = { ArrowUp: "previousElementSibling", ArrowDown: "nextElementSibling" };
  if (!(event.key in moves) || !event.target.matches(".job-link")) return;
  const row = event.target.closest("tr")[moves[event.key]];
  if (!row) return;
  event.preventDefault();
  row.querySelector(".job-link").focus();
}
