/* A line chart: axes, lines, and what the lines say under the pointer or the arrow keys. Drawn as SVG. */

import { el, say, setText, svg } from "./dom.js";
import { isNumber } from "./format.js";
import { makeScale, thin } from "./scale.js";

const MARGIN = { top: 8, right: 10, bottom: 20, left: 54 };
const TICK_WIDTH = 78;
const TICK_HEIGHT = 34;

/**
 * A series is `{ key, label, colour, isDashed, points }`, colour a class `c0` … `c7`, points `[x, y]` in order of x.
 * An axis is `{ ticks(low, high, count), format(value), isLog, startsAtZero, label }`.
 */
export class LineChart {
  #box;
  #svg;
  #empty;
  #readout;
  #series = [];
  #axes;
  #height;
  #scales = null;
  #at = null;

  constructor(parent, { height, label }) {
    this.#height = height;
    this.#svg = svg("svg", { class: "chart", role: "img", tabindex: 0, "aria-label": label, height });
    this.#readout = el("div", { class: "readout", hidden: true });
    this.#empty = el("p", { class: "empty" });
    this.#box = el("div", { class: "chart-box" }, this.#svg, this.#readout, this.#empty);
    parent.append(this.#box);
    this.#svg.addEventListener("pointermove", (event) => this.#point(event.offsetX));
    this.#svg.addEventListener("pointerleave", () => this.#point(null));
    this.#svg.addEventListener("blur", () => this.#point(null));
    this.#svg.addEventListener("keydown", (event) => this.#onKey(event));
    new ResizeObserver(() => this.#draw()).observe(this.#box);
  }

  /** Show these series; `empty` is said if there is nothing to draw. */
  show(series, axes, { empty, label }) {
    this.#series = series;
    this.#axes = axes;
    const hasPoints = series.some((one) => one.points.length);
    say(this.#empty, hasPoints ? "" : empty);
    this.#svg.toggleAttribute("hidden", !hasPoints);
    this.#svg.setAttribute("aria-label", label);
    this.#draw();
  }

  #draw() {
    const width = this.#box.clientWidth;
    if (!this.#axes || !width || this.#svg.hasAttribute("hidden")) return;
    const bounds = extent(this.#visible(), this.#axes);
    if (!bounds) return;
    this.#svg.setAttribute("viewBox", `0 0 ${width} ${this.#height}`);
    const { x, y } = this.#axes;
    this.#scales = {
      x: makeScale({ low: bounds.x[0], high: bounds.x[1], from: MARGIN.left, to: width - MARGIN.right, isLog: false }),
      y: makeScale({ low: bounds.y[0], high: bounds.y[1], from: this.#height - MARGIN.bottom, to: MARGIN.top, isLog: y.isLog }),
    };
    const grid = svg("g", { class: "axis" }, ...this.#xTicks(x, bounds.x, width), ...this.#yTicks(y, bounds.y, width));
    this.#svg.replaceChildren(grid, ...this.#visible().map((one) => this.#line(one, width)), svg("g", { class: "cursor" }));
    this.#showCursor();
  }

  #visible() {
    return this.#axes.y.isLog
      ? this.#series.map((one) => ({ ...one, points: one.points.filter((point) => point[1] > 0) }))
      : this.#series;
  }

  #xTicks(axis, [low, high], width) {
    const bottom = this.#height - MARGIN.bottom;
    return axis.ticks(low, high, Math.floor((width - MARGIN.left) / TICK_WIDTH)).map((value) => {
      const place = this.#scales.x(value);
      const anchor = place > width - 24 ? "end" : "middle";
      return svg("text", { x: place, y: bottom + 14, "text-anchor": anchor }, axis.format(value));
    });
  }

  #yTicks(axis, [low, high], width) {
    return axis.ticks(low, high, Math.floor(this.#height / TICK_HEIGHT)).flatMap((value) => {
      const place = this.#scales.y(value);
      return [
        svg("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: place, y2: place }),
        svg("text", { x: MARGIN.left - 6, y: place + 3.5, "text-anchor": "end" }, axis.format(value)),
      ];
    });
  }

  #line(one, width) {
    const points = thin(one.points, this.#scales.x, width);
    const place = ([x, y]) => `${this.#scales.x(x).toFixed(1)} ${this.#scales.y(y).toFixed(1)}`;
    const kind = `${one.colour}${one.isDashed ? " dashed" : ""}`;
    const group = svg("g", { class: `line ${kind}` });
    if (points.length > 1) group.append(svg("path", { d: `M${points.map(place).join("L")}` }));
    if (points.length && points.length <= 24) {
      const dots = points.map(([x, y]) => svg("circle", { cx: this.#scales.x(x), cy: this.#scales.y(y), r: 2 }));
      group.append(...dots);
    }
    return group;
  }

  #onKey(event) {
    const moves = { ArrowLeft: -1, ArrowRight: 1 };
    if (!(event.key in moves) || !this.#scales) return;
    event.preventDefault();
    const width = this.#box.clientWidth;
    const start = this.#at === null ? width - MARGIN.right : this.#at;
    this.#point(Math.min(width - MARGIN.right, Math.max(MARGIN.left, start + (moves[event.key] * width) / 50)));
  }

  #point(pixel) {
    this.#at = pixel !== null && pixel >= MARGIN.left - 4 ? pixel : null;
    this.#showCursor();
  }

  #showCursor() {
    const group = this.#svg.querySelector(".cursor");
    if (!group) return;
    const near = this.#at === null ? [] : this.#nearest();
    this.#readout.hidden = near.length === 0;
    group.replaceChildren();
    if (!near.length) return;
    const x = this.#scales.x.invert(this.#at);
    group.append(svg("line", { x1: this.#at, x2: this.#at, y1: MARGIN.top, y2: this.#height - MARGIN.bottom }));
    group.append(...near.map(({ one, point }) => svg("circle", {
      class: one.colour, cx: this.#scales.x(point[0]), cy: this.#scales.y(point[1]), r: 3,
    })));
    this.#readout.classList.toggle("left", this.#at > this.#box.clientWidth / 2);
    this.#readout.replaceChildren(el("b", {}, `${this.#axes.x.label} ${this.#axes.x.format(x, true)}`), ...near.map(readoutLine(this.#axes.y)));
  }

  #nearest() {
    const x = this.#scales.x.invert(this.#at);
    return this.#visible()
      .filter((one) => one.points.length)
      .map((one) => ({ one, point: closest(one.points, x) }));
  }
}

function readoutLine(axis) {
  return ({ one, point }) => {
    const line = el("span", {}, el("i", { class: `swatch ${one.colour}${one.isDashed ? " dashed" : ""}` }), el("span"), el("b"));
    setText(line.children[1], one.label);
    setText(line.children[2], axis.format(point[1], true));
    return line;
  };
}

/* Bisection: points lie in order of x. */
function closest(points, x) {
  let [low, high] = [0, points.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < x) low = middle + 1;
    else high = middle;
  }
  const before = points[Math.max(0, low - 1)];
  return Math.abs(before[0] - x) <= Math.abs(points[low][0] - x) ? before : points[low];
}

function extent(series, axes) {
  let [left, right, low, high] = [Infinity, -Infinity, Infinity, -Infinity];
  for (const { points } of series) {
    for (const [x, y] of points) {
      if (x < left) left = x;
      if (x > right) right = x;
      if (y < low) low = y;
      if (y > high) high = y;
    }
  }
  if (!isNumber(left) || !isNumber(low)) return null;
  if (axes.x.startsAtZero) left = Math.min(left, 0);
  if (left === right) right = left + 1;
  return { x: [left, right], y: padded(low, high, axes.y) };
}

function padded(low, high, axis) {
  if (axis.isLog) return low === high ? [low / 2, high * 2] : [low / 1.05, high * 1.05];
  if (axis.startsAtZero) low = Math.min(0, low);
  const room = (high - low) * 0.05 || Math.abs(high) * 0.1 || 1;
  return [axis.startsAtZero && low === 0 ? 0 : low - room, high + room];
}
