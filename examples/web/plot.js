// Curves that grow: SVG, with at most a few hundred points however long it goes on.
"use strict";

const [LEFT, RIGHT, TOP, BOTTOM] = [46, 352, 8, 164];
const MOST_POINTS = 400;

class Plot {
  /** `ticks` are the values with a line; `scale` maps a value to [0, 1] from below. */
  constructor(svg, { ticks, scale, label, second = false, raw = false }) {
    Object.assign(this, { svg, scale, raw, ticks, label });
    this.curve = element("path", { class: second ? "curve second" : "curve" });
    this.faint = element("path", { class: "faint" });
    this.marks = element("g", {});
    this.end = element("text", { x: RIGHT, y: BOTTOM + 18, "text-anchor": "end" });
    svg.append(...ticks.flatMap((tick) => this.#line(tick)), this.faint, this.marks, this.curve, this.end);
    svg.append(element("text", { x: LEFT, y: BOTTOM + 18 }, "0"));
    this.clear();
  }

  clear() {
    this.points = [];
    this.every = 1;
    this.noted = [];
    this.mean = null;
    this.draw();
  }

  /** A value at a step. Curves of raw values are drawn faintly below their running mean. */
  add(step, value) {
    this.mean = this.mean === null ? value : this.mean + 0.06 * (value - this.mean);
    this.last = [step, value, this.mean];
    if (this.count++ % this.every === 0) this.points.push(this.last);
    if (this.points.length > MOST_POINTS) {
      this.points = this.points.filter((_, i) => i % 2 === 0);
      this.every *= 2;
    }
  }

  /** A mark at a step. */
  note(step) {
    this.noted.push(step);
  }

  draw() {
    if (!this.points.length) {
      this.count = 0;
      this.last = null;
    }
    const points = this.last ? [...this.points, this.last] : [];
    const most = Math.max(1, this.last?.[0] ?? 1);
    const x = (step) => (LEFT + (step / most) * (RIGHT - LEFT)).toFixed(1);
    const y = (value) => (BOTTOM - Math.min(1, Math.max(0, this.scale(value))) * (BOTTOM - TOP)).toFixed(1);
    const path = (column) => points.map((p, i) => `${i ? "L" : "M"}${x(p[0])} ${y(p[column])}`).join("");
    this.curve.setAttribute("d", path(this.raw ? 2 : 1));
    this.faint.setAttribute("d", this.raw ? path(1) : "");
    this.marks.replaceChildren(
      ...this.noted.map((step) => element("line", { class: "mark", x1: x(step), x2: x(step), y1: TOP, y2: BOTTOM })),
    );
    this.end.textContent = `${most} step${most === 1 ? "" : "s"}`;
  }

  #line(tick) {
    const y = BOTTOM - this.scale(tick) * (BOTTOM - TOP);
    return [
      element("line", { class: "grid", x1: LEFT, x2: RIGHT, y1: y, y2: y }),
      element("text", { x: LEFT - 8, y: y + 4, "text-anchor": "end" }, this.label(tick)),
    ];
  }
}

function element(name, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}
