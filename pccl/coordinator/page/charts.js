// charts.js - elements made from words, and small curves over time. Text becomes textContent, never markup: names and
// reasons come from peers.
"use strict";

const SVG = "http://www.w3.org/2000/svg";

/** An element of HTML: a class, then texts and elements. */
function make(tag, kind, ...parts) {
  const found = document.createElement(tag);
  if (kind) found.className = kind;
  found.append(...parts.map((part) => (part instanceof Node ? part : String(part))));
  return found;
}

/** An element of SVG. */
function draw(tag, attributes, ...parts) {
  const found = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) found.setAttribute(name, String(value));
  found.append(...parts.map((part) => (part instanceof Node ? part : String(part))));
  return found;
}

// -- figures in words -----------------------------------------------------------------------------------------

/** Three digits: 1234567 -> "1.23 M". */
function short(value, unit) {
  const steps = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];
  const [size, prefix] = steps.find(([step]) => Math.abs(value) >= step) || [1, ""];
  const scaled = value / size;
  const digits = scaled >= 100 || (size === 1 && Number.isInteger(scaled)) ? 0 : scaled >= 10 ? 1 : 2;
  return `${scaled.toFixed(digits)} ${prefix}${unit}`.trim();
}

function seconds(value) {
  if (value < 1e-3) return `${(value * 1e6).toFixed(0)} µs`;
  if (value < 1) return `${(value * 1e3).toPrecision(3)} ms`;
  return `${value.toPrecision(3)} s`;
}

function age(value) {
  if (value < 60) return `${Math.max(0, value).toFixed(0)} s`;
  if (value < 3600) return `${Math.floor(value / 60)} min ${Math.floor(value % 60)} s`;
  return `${Math.floor(value / 3600)} h ${Math.floor((value % 3600) / 60)} min`;
}

// -- a curve --------------------------------------------------------------------------------------------------

const WIDE = 600;
const HIGH = 72;

/** One figure over time; `words` says a value, `stepped` figures jump. Marks are moments, good or bad. */
class Chart {
  constructor(title, words, stepped) {
    this.words = words;
    this.stepped = stepped;
    this.now = make("b", "");
    this.svg = draw("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, preserveAspectRatio: "none" });
    this.cursor = null;
    const head = make("div", "head", make("span", "", title), this.now);
    this.element = make("div", "chart", head, this.svg);
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.point(null));
  }

  /** points: [time, value], oldest first, in seconds; from .. to: what is shown. */
  show(points, marks, from, to) {
    this.points = points;
    this.marks = marks;
    this.from = from;
    this.to = to;
    this.redraw();
  }

  point(event) {
    const box = this.svg.getBoundingClientRect();
    this.cursor = event ? (event.clientX - box.left) / box.width : null;
    if (this.points) this.redraw();
  }

  x(time) {
    return ((time - this.from) / Math.max(1e-9, this.to - this.from)) * WIDE;
  }

  redraw() {
    const top = Math.max(1e-9, ...this.points.map(([, value]) => value)) * 1.12;
    const y = (value) => HIGH - 1 - (value / top) * (HIGH - 6);
    const line = this.points.map(([time, value], index) => {
      const step = this.stepped && index ? `H${this.x(time).toFixed(1)}V` : "";
      return step ? `${step}${y(value).toFixed(1)}` : `${index ? "L" : "M"}${this.x(time).toFixed(1)} ${y(value).toFixed(1)}`;
    }).join("");
    const parts = [draw("path", { class: "base", d: `M0 ${HIGH - 1}H${WIDE}` })];
    if (this.points.length > 1) {
      const [first] = this.points[0];
      const [last] = this.points[this.points.length - 1];
      parts.push(draw("path", { class: "area", d: `${line}L${this.x(last)} ${HIGH - 1}L${this.x(first)} ${HIGH - 1}Z` }));
      parts.push(draw("path", { class: "curve", d: line }));
    }
    for (const [time, kind] of this.marks) {
      if (time > this.from) parts.push(draw("path", { class: `mark ${kind}`, d: `M${this.x(time)} 0V${HIGH}` }));
    }
    this.svg.replaceChildren(...parts, ...this.underCursor());
  }

  underCursor() {
    const last = this.points[this.points.length - 1];
    if (this.cursor === null || !last) {
      this.now.textContent = last ? this.words(last[1]) : "";
      return [];
    }
    const at = this.from + this.cursor * (this.to - this.from);
    const near = this.points.reduce((best, point) => (Math.abs(point[0] - at) < Math.abs(best[0] - at) ? point : best));
    this.now.textContent = `${this.words(near[1])}, ${age(this.to - near[0])} ago`;
    return [draw("path", { class: "cursor", d: `M${this.x(near[0])} 0V${HIGH}` })];
  }
}
