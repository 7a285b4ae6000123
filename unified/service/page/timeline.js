/* Who trained when, one lane per slot. A column of pixels shows each job's share of that moment, so that turns of
   milliseconds and turns of minutes read alike: a full column is one job's, a broken one was shared, a gap was idle. */

import { el, setText, svg } from "./dom.js";
import { clock, plural } from "./format.js";
import { colour } from "./jobs.js";
import { makeScale, timeTicks } from "./scale.js";

const COLUMN = 2;
const LANE = 26;
const BAR = 20;
const LEFT = 54;
const AXIS = 18;

export class Timeline {
  #box;
  #svg;
  #readout;
  #empty;
  #turns = [];
  #names = new Map();
  #ongoing = [];
  #seen = new Map();
  #drawn = null;

  constructor(box, { hint }) {
    this.#box = box;
    this.hint = hint;
    this.#svg = svg("svg", { class: "chart lanes", role: "img", "aria-label": "timeline" });
    this.#readout = el("div", { class: "readout", hidden: true });
    this.#empty = el("p", { class: "empty" });
    box.append(this.#svg, this.#readout, this.#empty);
    this.#svg.addEventListener("pointermove", (event) => this.#point(event));
    this.#svg.addEventListener("pointerleave", () => (this.#readout.hidden = true));
    new ResizeObserver(() => this.#draw()).observe(box);
  }

  /** When the next turns are to be asked for: the end of the last one known, or the start of the window. */
  since(now, window) {
    const last = this.#turns.at(-1);
    return last && this.window === window ? last.end - 0.001 : now - window;
  }

  /** Take turns in, drop what left the window, draw. `slots` are those of the server now, `names` maps ids to names. */
  show(turns, { now, window, slots, names }) {
    const all = this.window === window ? [...this.#turns, ...this.#unknown(turns)] : turns;
    this.window = window;
    this.now = now;
    this.#names = names;
    this.#turns = all.filter((turn) => turn.end > now - window);
    this.numSlots = this.#turns.reduce((most, turn) => Math.max(most, turn.slot + 1), slots.length);
    this.#ongoing = slots.map((slot) => this.#ongoingTurn(slot)).filter(Boolean);
    this.#draw();
  }

  /* A turn is told when it has ended; until then it is drawn from the last one's end, or from when we first saw it. */
  #ongoingTurn(slot) {
    const last = this.#turns.findLast((turn) => turn.slot === slot.index);
    const seen = this.#seen.get(slot.index);
    const first = seen ? this.now : (last?.end ?? this.now);
    if (seen?.job !== slot.running) this.#seen.set(slot.index, { job: slot.running, start: first });
    if (!slot.running) return null;
    const start = Math.max(this.#seen.get(slot.index).start, last?.end ?? 0);
    return { job: slot.running, slot: slot.index, start, end: this.now };
  }

  #unknown(turns) {
    const known = new Set(this.#turns.slice(-500).map(turnKey));
    return turns.filter((turn) => !known.has(turnKey(turn)));
  }

  #draw() {
    const width = this.#box.clientWidth;
    const isEmpty = !this.#turns.length && !this.#ongoing.length;
    this.#empty.hidden = !isEmpty;
    setText(this.#empty, isEmpty ? "Nothing trained in this time." : "");
    this.#svg.toggleAttribute("hidden", isEmpty);
    if (isEmpty || !width) return;
    const height = this.numSlots * LANE + AXIS;
    this.#svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.#svg.setAttribute("height", height);
    const x = makeScale({ low: this.now - this.window, high: this.now, from: LEFT, to: width, isLog: false });
    const lanes = Array.from({ length: this.numSlots }, (_, slot) => this.#columns(slot, x, width));
    this.#drawn = { x, lanes };
    this.#svg.replaceChildren(this.#axis(x, width), ...lanes.flatMap((columns, slot) => this.#lane(columns, slot, width)));
    this.#summarise();
  }

  /* For each column of the lane: job -> share of the column's time. */
  #columns(slot, x, width) {
    const columns = Array.from({ length: Math.ceil((width - LEFT) / COLUMN) }, () => new Map());
    for (const turn of [...this.#turns, ...this.#ongoing]) {
      if (turn.slot !== slot) continue;
      const start = Math.max(0, (x(turn.start) - LEFT) / COLUMN);
      const end = Math.min(columns.length, (x(turn.end) - LEFT) / COLUMN);
      for (let index = Math.floor(start); index < end; index += 1) {
        const share = Math.min(end, index + 1) - Math.max(start, index);
        columns[index].set(turn.job, (columns[index].get(turn.job) ?? 0) + share);
      }
    }
    return columns;
  }

  #lane(columns, slot, width) {
    const top = slot * LANE + (LANE - BAR) / 2;
    const paths = new Map();
    columns.forEach((shares, index) => {
      let base = top + BAR;
      for (const [job, share] of [...shares].sort(([one], [other]) => (one < other ? -1 : 1))) {
        const size = Math.min(share, 1) * BAR;
        base -= size;
        const left = LEFT + index * COLUMN;
        paths.set(job, `${paths.get(job) ?? ""}M${left} ${base.toFixed(1)}h${COLUMN}v${size.toFixed(1)}h-${COLUMN}z`);
      }
    });
    return [
      svg("text", { x: 0, y: top + BAR / 2 + 4 }, `slot ${slot}`),
      svg("rect", { class: "lane", x: LEFT, y: top, width: width - LEFT, height: BAR }),
      ...[...paths].map(([job, d]) => svg("path", { class: `turns ${colour(job)}`, d })),
    ];
  }

  #axis(x, width) {
    const bottom = this.numSlots * LANE;
    const marks = timeTicks(this.now - this.window, this.now, Math.floor((width - LEFT) / 90));
    return svg("g", { class: "axis" }, ...marks.filter((at) => x(at) > LEFT + 16 && x(at) < width - 20).flatMap((at) => [
      svg("line", { x1: x(at), x2: x(at), y1: 0, y2: bottom }),
      svg("text", { x: x(at), y: bottom + 13, "text-anchor": "middle" }, clock(at, this.window <= 300)),
    ]));
  }

  #point(event) {
    const slot = Math.floor(event.offsetY / LANE);
    const shares = this.#drawn?.lanes[slot]?.[Math.floor((event.offsetX - LEFT) / COLUMN)];
    this.#readout.hidden = !shares;
    if (!shares) return;
    const at = clock(this.#drawn.x.invert(event.offsetX), true);
    const lines = [...shares].sort((one, other) => other[1] - one[1]).slice(0, 6).map(([job, share]) =>
      el("span", {}, el("i", { class: `swatch ${colour(job)}` }), el("span", {}, this.#name(job)), el("b", {}, percent(share))));
    this.#readout.classList.toggle("left", event.offsetX > this.#box.clientWidth / 2);
    this.#readout.replaceChildren(el("b", {}, `slot ${slot} at ${at}`), ...(lines.length ? lines : [el("span", {}, "idle")]));
  }

  #name(job) {
    return this.#names.get(job) ?? job;
  }

  #summarise() {
    const busy = this.#turns.reduce((sum, turn) => sum + turn.end - Math.max(turn.start, this.now - this.window), 0);
    const jobs = new Set(this.#turns.map((turn) => turn.job)).size;
    const share = percent(busy / (this.window * Math.max(1, this.numSlots)));
    const text = `${plural(jobs, "job")} took turns · slots trained ${share} of the time`;
    setText(this.hint, text);
    this.#svg.setAttribute("aria-label", `Timeline: ${text}`);
  }
}

function turnKey(turn) {
  return `${turn.slot} ${turn.start} ${turn.job}`;
}

function percent(share) {
  return `${Math.round(Math.min(1, share) * 100)} %`;
}
