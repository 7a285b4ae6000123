/* The rows of metrics.jsonl that the page has fetched, per job, brought up to date only when a job has moved on. */

import { getJson, jobPath, Problem } from "./api.js";
import { instant, isNumber } from "./format.js";

const MOST_ROWS = 20000;
const MOST_JOBS = 24;

/* What can be drawn, in the order offered; the metrics of the job itself come after the loss. */
const FIELDS = { lr: "learning rate", step_seconds: "seconds per step", samples_per_second: "samples per second", memory_bytes: "memory" };

export class MetricStore {
  #jobs = new Map();

  /** Bring the rows of a job up to date; resolves to them. A job that went back to a checkpoint is read anew. */
  async fetch(job) {
    const known = this.#jobs.get(job.id) ?? { rows: [], steps: -1, epoch: job.epoch, state: "" };
    if (known.steps === job.steps_done && known.epoch === job.epoch && known.state === job.state) return known.rows;
    const isBack = known.epoch !== job.epoch || job.steps_done < known.steps;
    // From its last step on, inclusive: that step may have got another row, such as an evaluation, since we looked.
    const since = isBack || !known.rows.length ? 0 : known.rows.at(-1).step;
    const rows = await fetchRows(job.id, since);
    const all = [...known.rows.filter((row) => row.step < since), ...rows];
    this.#jobs.delete(job.id);
    this.#jobs.set(job.id, { rows: all.slice(-MOST_ROWS), steps: job.steps_done, epoch: job.epoch, state: job.state });
    if (this.#jobs.size > MOST_JOBS) this.#jobs.delete(this.#jobs.keys().next().value);
    return this.rows(job.id);
  }

  /** The rows fetched so far. */
  rows(id) {
    return this.#jobs.get(id)?.rows ?? [];
  }
}

async function fetchRows(id, since) {
  try {
    return (await getJson(jobPath(id, since ? `/metrics?since=${since}` : "/metrics"))).rows;
  } catch (error) {
    if (error instanceof Problem && error.status === 404) return [];
    throw error;
  }
}

/** Return what can be drawn of these rows as `[key, label]`. */
export function quantities(rows) {
  const names = new Set(rows.flatMap((row) => Object.keys(row.metrics ?? {})));
  const fields = Object.entries(FIELDS).filter(([key]) => rows.some((row) => isNumber(row[key])));
  return [["loss", "loss"], ...[...names].sort().map((name) => [`metrics.${name}`, name]), ...fields];
}

/** Return the points of one quantity of one split, `[x, y]`, by step or by time. */
export function points(rows, quantity, split, by) {
  const read = quantity.startsWith("metrics.") ? (row) => row.metrics?.[quantity.slice(8)] : (row) => row[quantity];
  return rows
    .filter((row) => (row.split ?? "train") === split)
    .map((row) => [by === "time" ? instant(row.time) : row.step, read(row)])
    .filter(([x, y]) => isNumber(x) && isNumber(y));
}
