// The drawing area: strokes, and the 8 x 8 pixels that are made of them as those of the data set were.
"use strict";

class Drawing {
  /** `changed(image)` is called with 64 pixels from 0 to 1, or null where there is nothing. */
  constructor(canvas, changed) {
    this.canvas = canvas;
    this.changed = changed;
    this.strokes = [];
    this.shown = null;
    canvas.addEventListener("pointerdown", (event) => this.#begin(event));
    canvas.addEventListener("pointermove", (event) => this.#go(event));
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (this.pen = null));
    this.paint();
  }

  clear() {
    this.strokes = [];
    this.shown = null;
    this.#update();
  }

  /** Shows 8 x 8 pixels instead of strokes. */
  show(image) {
    this.strokes = [];
    this.shown = image;
    this.#update();
  }

  #begin(event) {
    event.preventDefault();
    this.canvas.setPointerCapture(event.pointerId);
    if (this.shown) this.strokes = [];
    this.shown = null;
    this.pen = event.pointerId;
    this.strokes.push([this.#point(event)]);
    this.#update();
  }

  #go(event) {
    if (this.pen !== event.pointerId) return;
    const events = event.getCoalescedEvents?.() ?? [];
    for (const each of events.length ? events : [event]) this.strokes.at(-1).push(this.#point(each));
    this.#update();
  }

  #point(event) {
    const { left, top, width, height } = this.canvas.getBoundingClientRect();
    return [(event.clientX - left) / width, (event.clientY - top) / height];
  }

  #update() {
    this.paint();
    this.changed(this.shown ?? (this.strokes.length ? pixels(this.strokes) : null));
  }

  paint() {
    const context = this.canvas.getContext("2d");
    const { width, height } = this.canvas;
    const ink = getComputedStyle(document.documentElement).getPropertyValue("--ink");
    context.clearRect(0, 0, width, height);
    if (this.shown) {
      paintPixels(context, this.shown, width / 8, ink);
      return;
    }
    context.strokeStyle = ink;
    stroke(context, this.strokes, ([x, y]) => [x * width, y * height], 0.075 * width);
  }
}

/** Paints 8 x 8 pixels of ink, squares of `size`. */
function paintPixels(context, image, size, ink) {
  context.fillStyle = ink;
  image.forEach((pixel, i) => {
    context.globalAlpha = pixel;
    context.fillRect((i % 8) * size, Math.floor(i / 8) * size, size, size);
  });
  context.globalAlpha = 1;
}

function stroke(context, strokes, place, width) {
  context.lineWidth = width;
  context.lineCap = context.lineJoin = "round";
  for (const points of strokes) {
    context.beginPath();
    points.forEach((point, i) => (i ? context.lineTo(...place(point)) : context.moveTo(...place(point))));
    if (points.length === 1) context.lineTo(...place(points[0]));
    context.stroke();
  }
}

/** The data set's own way: a bitmap of 32 x 32 that the digit fills, and how many of each 4 x 4 of it are black. */
function pixels(strokes) {
  const [SIDE, WIDTH] = [32, 4];
  const xs = strokes.flat().map(([x]) => x);
  const ys = strokes.flat().map(([, y]) => y);
  const [left, right] = [Math.min(...xs), Math.max(...xs)];
  const [top, bottom] = [Math.min(...ys), Math.max(...ys)];
  const scale = (SIDE - WIDTH) / Math.max(right - left, bottom - top, 0.25);
  const [x0, y0] = [(left + right) / 2, (top + bottom) / 2];
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SIDE;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  stroke(context, strokes, ([x, y]) => [SIDE / 2 + (x - x0) * scale, SIDE / 2 + (y - y0) * scale], WIDTH);
  const { data } = context.getImageData(0, 0, SIDE, SIDE);
  const image = new Float32Array(64);
  for (let i = 0; i < SIDE * SIDE; i++) {
    const [row, column] = [Math.floor(i / SIDE / 4), Math.floor((i % SIDE) / 4)];
    if (data[4 * i + 3] > 127) image[8 * row + column] += 1 / 16;
  }
  return image;
}
