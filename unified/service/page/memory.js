/* Memory over time, one line per slot, from what the page has seen; kept over a reload of the tab. */

import { LineChart } from "./chart.js";
import { setText } from "./dom.js";
import { bytes, clock, isNumber } from "./format.js";
import { byteTicks, timeTicks } from "./scale.js";

const KEPT = "unified-memory";
const MOST = 900;
const KEEP_EVERY = 10;

export class MemoryHistory {
  #chart;
  #hint;
  #samples;

  constructor(parent, hint) {
    this.#chart = new LineChart(parent, { height: 120, label: "memory over time" });
    this.#hint = hint;
    this.#samples = restore();
  }

  /** Take in the memory of all slots at `now` and draw. */
  add(slots, total, now) {
    const sizes = slots.map((slot) => slot.memory_bytes ?? null);
    if (sizes.some(isNumber) && this.#samples.at(-1)?.[0] !== now) this.#keep([now, ...sizes]);
    this.#show(total);
  }

  #keep(sample) {
    this.#samples.push(sample);
    if (this.#samples.length > MOST) this.#samples = this.#samples.filter((_, index) => index % 2 === 0 || index > MOST / 2);
    if (this.#samples.length % KEEP_EVERY === 0) sessionStorage.setItem(KEPT, JSON.stringify(this.#samples));
  }

  #show(total) {
    const numSlots = Math.max(0, ...this.#samples.map((sample) => sample.length - 1));
    const series = Array.from({ length: numSlots }, (_, slot) => ({
      key: slot, label: `slot ${slot}`, colour: `c${(slot + 7) % 8}`, isDashed: slot % 2 === 1,
      points: this.#samples.filter((sample) => isNumber(sample[slot + 1])).map((sample) => [sample[0], sample[slot + 1]]),
    }));
    const axes = {
      x: { ticks: timeTicks, format: (value) => clock(value, true), label: "at" },
      y: { ticks: byteTicks, format: bytes, startsAtZero: true },
    };
    const since = this.#samples.length ? `per slot, since ${clock(this.#samples[0][0])}` : "";
    setText(this.#hint, [since, isNumber(total) && since ? `of ${bytes(total)}` : ""].filter(Boolean).join(", "));
    this.#chart.show(series, axes, { empty: "No slot holds memory.", label: `Memory over time ${since}` });
  }
}

function restore() {
  try {
    return JSON.parse(sessionStorage.getItem(KEPT) ?? "[]");
  } catch {
    return [];
  }
}
