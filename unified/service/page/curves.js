/* Curves of one or several jobs in one chart: what is drawn, against what, linear or logarithmic; train solid, test dashed. */

import { LineChart } from "./chart.js";
import { el, reconcile, setText } from "./dom.js";
import { bytes, clock, number, plural } from "./format.js";
import { colour } from "./jobs.js";
import { points, quantities } from "./metrics.js";
import { byteTicks, logTicks, ticks, timeTicks } from "./scale.js";

const SPLITS = ["train", "test"];

export class Curves {
  #chart;
  #legend;
  #quantity;
  #by;
  #isLog;
  #jobs = [];
  #store;
  #empty;
  #onRemove;

  /** Put the chart into `parent` and its switches into `tools`. `onRemove(id)`, if given, takes a job out of the chart. */
  constructor(parent, tools, { store, height, empty, onRemove = null }) {
    this.#store = store;
    this.#empty = empty;
    this.#quantity = el("select", { onchange: () => this.#show() }, el("option", { value: "loss" }, "loss"));
    this.#by = el("select", { onchange: () => this.#show() },
      el("option", { value: "step" }, "by step"), el("option", { value: "time" }, "by time"));
    this.#isLog = el("input", { type: "checkbox", class: "log-scale", onchange: () => this.#show() });
    tools.append(
      el("label", { class: "tool" }, el("span", { class: "unseen" }, "Quantity"), this.#quantity),
      el("label", { class: "tool" }, el("span", { class: "unseen" }, "Against"), this.#by),
      el("label", { class: "tool" }, this.#isLog, "log"),
    );
    this.#chart = new LineChart(parent, { height, label: "curves" });
    this.#legend = el("ul", { class: "legend" });
    this.#onRemove = onRemove;
    parent.append(this.#legend);
  }

  /** Draw these jobs from what the store has of them. */
  show(jobs) {
    this.#jobs = jobs;
    this.#offer(quantities(jobs.flatMap((job) => this.#store.rows(job.id).slice(-50))));
    this.#show();
  }

  #offer(choices) {
    const known = [...this.#quantity.options].map((option) => option.value).join();
    if (known === choices.map(([key]) => key).join()) return;
    const chosen = this.#quantity.value;
    this.#quantity.replaceChildren(...choices.map(([key, label]) => el("option", { value: key }, label)));
    this.#quantity.value = choices.some(([key]) => key === chosen) ? chosen : "loss";
  }

  #show() {
    const series = this.#jobs.flatMap((job) => SPLITS.map((split) => this.#line(job, split))).filter((one) => one.points.length);
    const y = this.#yAxis();
    this.#chart.show(series, { x: this.#xAxis(), y }, { empty: this.#empty, label: this.#label(series, y) });
    this.#showLegend(series);
  }

  #line(job, split) {
    const rows = this.#store.rows(job.id);
    const label = `${job.name} ${split}`;
    const drawn = points(rows, this.#quantity.value, split, this.#by.value);
    return { key: `${job.id} ${split}`, job, split, label, colour: colour(job.id), isDashed: split === "test", points: drawn };
  }

  #xAxis() {
    if (this.#by.value === "time") return { ticks: timeTicks, format: (value, exact) => clock(value, exact), label: "at" };
    return { ticks, format: (value) => String(Math.round(value)), startsAtZero: true, label: "step" };
  }

  #yAxis() {
    const isBytes = this.#quantity.value === "memory_bytes";
    const isLog = this.#isLog.checked;
    const write = (value, exact) => (exact ? number(value) : shortNumber(value));
    return { ticks: isLog ? logTicks : isBytes ? byteTicks : ticks, format: isBytes ? bytes : write, isLog, startsAtZero: isBytes };
  }

  #label(series, axis) {
    const last = series.map((one) => `${one.label} ${axis.format(one.points.at(-1)[1], true)}`);
    return `${this.#quantity.selectedOptions[0].textContent} of ${plural(this.#jobs.length, "job")}. Latest: ${last.join("; ") || "none"}`;
  }

  #showLegend(series) {
    reconcile(this.#legend, this.#jobs, {
      key: (job) => job.id,
      make: (job) => this.#legendItem(job),
      update: (item, job) => setText(item.querySelector(".latest"), latest(series, job, this.#yAxis())),
    });
  }

  #legendItem(job) {
    const remove = this.#onRemove && el("button", {
      class: "quiet", type: "button", "aria-label": `Take ${job.name} out of the chart`, onclick: () => this.#onRemove(job.id),
    }, "×");
    return el("li", {}, el("i", { class: `swatch ${colour(job.id)}` }),
      el("a", { href: `#/jobs/${encodeURIComponent(job.id)}`, title: job.id }, job.name), el("span", { class: "latest" }), remove);
  }
}

function latest(series, job, axis) {
  return series
    .filter((one) => one.job.id === job.id)
    .map((one) => `${one.split} ${axis.format(one.points.at(-1)[1], true)}`)
    .join(" · ") || "nothing yet";
}

function shortNumber(value) {
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5)) return value.toExponential(0).replace("e+", "e");
  return String(Number(value.toPrecision(4)));
}
