// The network: params in the training step's memory, batches, accuracy. No page in here.
"use strict";

const [PIXELS, HIDDEN, CLASSES, BATCH, IMAGES] = [64, 128, 10, 64, 60];
const LESSON_SHARE = BATCH / 8;
const PARAMS = ["params.layer0.w", "params.layer0.b", "params.layer1.w", "params.layer1.b"];

/** Digits from data.js: `{ image, label }`, pixels from 0 to 1. */
function readDigits() {
  return DIGITS.trim()
    .split("\n")
    .map((line) => ({
      label: Number(line[0]),
      image: Float32Array.from(line.slice(1), (c) => (c.charCodeAt(0) - 97) / 16),
    }));
}

class Model {
  /** Loads both modules. `train` and `predict` are the globals of train.js and predict.js. */
  static async load() {
    const [step, network] = await Promise.all([train.load(), predict.load()]);
    return new Model(step, network, readDigits());
  }

  constructor(step, network, digits) {
    this.step = step;
    this.network = network;
    this.training = digits.slice(0, TRAINING_DIGITS);
    this.heldOut = digits.slice(TRAINING_DIGITS);
    this.yours = [];
    this.reset();
  }

  /** New weights (He's initialisation, always the same), and no moments. */
  reset() {
    const random = generator(1);
    for (const array of Object.values(this.step.arrays)) array.fill(0);
    for (const [name, inputs] of [[PARAMS[0], PIXELS], [PARAMS[2], HIDDEN]]) {
      const weights = this.step.arrays[name];
      for (let i = 0; i < weights.length; i++) weights[i] = normal(random) * Math.sqrt(2 / inputs);
    }
    this.random = generator(2);
    this.count = 0;
    this.order = [];
  }

  /** One training step on a batch of digits, some of which are yours. `lesson` takes an eighth of it. Returns the loss. */
  train(rate, lesson = null) {
    const { x, y } = this.step.arrays;
    const own = Math.min(this.yours.length * 2, 8);
    for (let i = 0; i < BATCH; i++) {
      let digit;
      if (lesson && i < LESSON_SHARE) digit = i ? this.moved(lesson) : lesson;
      else if (i >= LESSON_SHARE && i < LESSON_SHARE + own) digit = this.moved(this.pick(this.yours));
      else digit = this.next();
      x.set(digit.image, PIXELS * i);
      y[i] = digit.label;
    }
    this.count += 1;
    // `x` and `y` were written where they lie: nothing is copied.
    return this.step.run({ lr: rate, step: this.count }).loss;
  }

  /** Probabilities of the classes, for each of up to 60 images. */
  classify(images) {
    const { x } = this.network.arrays;
    images.forEach((image, i) => x.set(image, PIXELS * i));
    const params = Object.fromEntries(PARAMS.map((name) => [name, this.step.arrays[name]]));
    const { logits } = this.network.run(params);
    return images.map((_, i) => softmax(logits.subarray(CLASSES * i, CLASSES * (i + 1))));
  }

  /** The held-out digits with what the network says of each. */
  test() {
    const said = [];
    for (let i = 0; i < this.heldOut.length; i += IMAGES) {
      const part = this.heldOut.slice(i, i + IMAGES);
      const answers = this.classify(part.map((digit) => digit.image));
      part.forEach((digit, k) => said.push({ ...digit, answer: best(answers[k]), sure: Math.max(...answers[k]) }));
    }
    return said;
  }

  pick(list) {
    return list[Math.floor(this.random() * list.length)];
  }

  /** The next training digit: all of them in a random order, again and again. */
  next() {
    if (!this.order.length) {
      this.order = [...this.training];
      for (let i = this.order.length - 1; i > 0; i--) {
        const k = Math.floor(this.random() * (i + 1));
        [this.order[i], this.order[k]] = [this.order[k], this.order[i]];
      }
    }
    return this.order.pop();
  }

  /** A digit as it might have been drawn another time: a pixel to the side or not, a little lighter or darker. */
  moved({ image, label }) {
    const [side, ink] = [Math.floor(this.random() * 3) - 1, 0.85 + 0.3 * this.random()];
    const moved = new Float32Array(PIXELS);
    for (let row = 0; row < 8; row++) {
      for (let column = 0; column < 8; column++) {
        const from = column - side;
        if (from >= 0 && from < 8) moved[8 * row + column] = Math.min(1, ink * image[8 * row + from]);
      }
    }
    return { image: moved, label };
  }
}

function softmax(logits) {
  const top = Math.max(...logits);
  const powers = Array.from(logits, (x) => Math.exp(x - top));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((p) => p / sum);
}

function best(numbers) {
  return numbers.indexOf(Math.max(...numbers));
}

/** Random numbers in [0, 1) from a seed (mulberry32). */
function generator(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

function normal(random) {
  return Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
}
