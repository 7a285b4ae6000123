/* Which jobs are in the chart: those that train, until the reader chooses. */

const MOST = 6;

export class Plots {
  #chosen = null;
  #offered = [];
  #onChange;

  constructor(onChange) {
    this.#onChange = onChange;
  }

  /** The ids of the jobs in the chart. */
  get ids() {
    return this.#chosen ?? this.#offered;
  }

  has(id) {
    return this.ids.includes(id);
  }

  /** These train now. One that has just ended stays until another takes its place, so that its curve can be read to the end. */
  offer(jobs) {
    const live = jobs.map((job) => job.id);
    const gone = this.#offered.filter((id) => !live.includes(id));
    this.#offered = [...live.slice(0, MOST), ...gone.slice(0, Math.max(0, MOST - live.length))].sort();
  }

  /** Take a job in or out; from then on the choice is the reader's. */
  toggle(id) {
    this.#chosen = this.has(id) ? this.ids.filter((one) => one !== id) : [...this.ids, id];
    this.#onChange();
  }
}
