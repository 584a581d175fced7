// Optimizer updates: hyperparameters, one leaf at a time, and whole trees of leaves.
import { ArrayError, HyperparameterError, Tensor, arrayType, checkArray, checkOverlap } from "./memory.js";

// Stands for log 0: finite, so that 0 * log is 0, and so low that exp of any multiple is 0.
const LOG_OF_ZERO = -1e4;
const PARTS = {
  value: (x) => x,
  complement: (x) => 1 - x,
  log: (x) => (x > 0 ? Math.log(x) : LOG_OF_ZERO),
};

/** A compiled update rule. `rule` is what the package says of it, `run` its host program. */
export class Update {
  #library;
  #rule;
  #run;

  constructor(library, rule, run) {
    this.#library = library;
    this.#rule = rule;
    this.#run = run;
  }

  /** What the rule is: operands, hyperparameters with defaults, scalar state. */
  get rule() {
    return this.#rule;
  }

  /** Bytes of memory that the module holds. */
  get memoryBytes() {
    return this.#library.memory.buffer.byteLength;
  }

  /** Ends its threads, if it has any. It works on without them. */
  close() {
    this.#library.close();
  }

  /** An array of zeros in the module's memory, for `update` to work on without copying. */
  tensor(length, dtype = this.#rule.operands[0].dtype) {
    if (!Number.isInteger(length) || length < 0) throw new ArrayError(`'length' must be a whole number (got ${length})`);
    if (!arrayType(dtype)) throw new ArrayError(`'dtype' must be one that typed arrays hold (got '${dtype}')`);
    return new Tensor(this.#library.memory, dtype, [length]);
  }

  /** Updates one leaf in place, and returns the new scalar state.
   *
   * What is in the module's memory, tensors and views of them, is worked on where it is. Other typed arrays are copied
   * in, and what is written is copied back into them. Where anything is wrong nothing has been written. */
  update(arrays, hypers = {}) {
    const { operands } = this.#rule;
    for (const name of Object.keys(arrays)) {
      if (!operands.some((o) => o.name === name)) {
        throw new ArrayError(`there is no operand '${name}': there are ${operands.map((o) => o.name).join(", ")}`);
      }
    }
    const given = operands.map(({ name }) => (arrays[name] instanceof Tensor ? arrays[name].view : arrays[name]));
    const length = given[0]?.length;
    operands.forEach((o, i) => checkArray(given[i], o.dtype, i ? length : undefined, o.name));
    checkOverlapOf(given, operands);
    const numbers = this.numbers(hypers);
    const { memory } = this.#library;
    const inside = given.map((array) => array.buffer === memory.buffer);
    const addresses = given.map((array) => array.byteOffset);
    const sizes = given.map((array) => array.byteLength);
    const released = [];
    try {
      operands.forEach((_, i) => {
        if (inside[i]) return;
        addresses[i] = memory.allocate(sizes[i]);
        released.push([addresses[i], sizes[i]]);
      });
      const there = (i) => new given[i].constructor(memory.buffer, addresses[i], length);
      operands.forEach((_, i) => inside[i] || there(i).set(given[i]));
      const scalars = this.apply(addresses, length, numbers);
      operands.forEach((o, i) => inside[i] || !o.written || given[i].set(there(i)));
      return scalars;
    } finally {
      for (const [address, bytes] of released) memory.release(address, bytes);
    }
  }

  /** An optimizer of these params, a typed array for each name. They are copied into the module's memory. */
  optimizer(params, hypers = {}) {
    return new Optimizer(this, this.#library.memory, params, hypers);
  }

  /** The numbers that kernels are given: those of `hypers`, checked, and defaults for the rest. */
  numbers(hypers) {
    const known = this.#rule.hypers;
    for (const name of Object.keys(hypers)) {
      if (!(name in known) && !(name in this.#rule.scalars)) {
        const has = [...Object.keys(known), ...Object.keys(this.#rule.scalars)].join(", ") || "none";
        throw new HyperparameterError(`'${this.#rule.name}' has no hyperparameter '${name}' (it has ${has})`);
      }
    }
    return this.#rule.numbers.map(([name, part]) => {
      if (!(name in known)) return checkNumber(name, hypers[name] ?? this.#rule.scalars[name]);
      return PARTS[part](checkHyper(name, known[name], hypers[name] ?? known[name].default));
    });
  }

  /** The update itself, of `length` elements at each of `addresses`. */
  apply(addresses, length, numbers) {
    const extents = addresses.map(() => [length]);
    const results = this.#run(this.#library, addresses, extents, numbers);
    const scalars = Object.keys(this.#rule.scalars);
    const returned = results.slice(results.length - scalars.length); // after the arrays
    return Object.fromEntries(scalars.map((name, i) => [name, returned[i]]));
  }
}

/** A tree of leaves, all in the module's memory: params, grads and state, one block for each operand. */
export class Optimizer {
  #update;
  #tensors;
  #offsets = {};

  constructor(update, memory, params, hypers) {
    this.#update = update;
    const { rule } = update;
    const [first, ...rest] = rule.operands;
    for (const [name, array] of Object.entries(params)) checkArray(array, first.dtype, undefined, name);
    const numbers = initial(rule, hypers);
    let count = 0;
    for (const [name, array] of Object.entries(params)) {
      this.#offsets[name] = [count, count + array.length];
      count += array.length;
    }
    this.#tensors = Object.fromEntries(rule.operands.map((o) => [o.name, new Tensor(memory, o.dtype, [count])]));
    /** Updates made so far. */
    this.stepCount = 0;
    /** Scalar state by name. */
    this.scalars = { ...rule.scalars };
    /** Arrays by operand and leaf: `arrays.m.w1`. They are views of the module's memory. */
    this.arrays = Object.fromEntries(rule.operands.map((o) => [o.name, this.#leaves(o.name)]));
    for (const [name, array] of Object.entries(params)) this.arrays[first.name][name].set(array);
    for (const o of rest) {
      const start = numbers[o.name];
      if (start === "param") this.#copyParams(first, o);
      else if (start) this.#tensors[o.name].view.fill(start);
    }
  }

  /** The params, as they are now: views of the module's memory. */
  get params() {
    return this.arrays[this.#update.rule.operands[0].name];
  }

  /** Where grads may be written to, so that `step` need not copy them. */
  get grads() {
    return this.arrays[this.#update.rule.operands[1].name];
  }

  /** Updates the params in place. `grads` has an array for each leaf; `optimizer.grads` itself is not copied. */
  step(grads, hypers = {}) {
    const { rule } = this.#update;
    const target = rule.operands[1].name;
    if (grads !== this.arrays[target]) {
      for (const name of Object.keys(grads)) {
        if (!(name in this.#offsets)) throw new ArrayError(`'${name}' of the grads is no param`);
      }
      for (const [name, [start, end]] of Object.entries(this.#offsets)) {
        checkArray(grads[name], rule.operands[1].dtype, end - start, `grads.${name}`);
      }
    }
    if ("step" in hypers) throw new HyperparameterError("'step' is counted by the optimizer: set stepCount instead");
    const counted = "step" in rule.hypers ? { step: this.stepCount + 1 } : {};
    const numbers = this.#update.numbers({ ...hypers, ...counted, ...this.scalars });
    if (grads !== this.arrays[target]) {
      for (const name of Object.keys(this.#offsets)) {
        const view = this.arrays[target][name];
        if (grads[name].buffer !== view.buffer || grads[name].byteOffset !== view.byteOffset) view.set(grads[name]);
      }
    }
    // A rule that works on each element alone does not see where leaves end.
    const pieces = rule.leafwise ? Object.values(this.#offsets) : [[0, this.#tensors[target].length]];
    let scalars = this.scalars;
    for (const [start, end] of pieces) {
      const addresses = rule.operands.map((o) => {
        const tensor = this.#tensors[o.name];
        return tensor.address + start * tensor.view.BYTES_PER_ELEMENT;
      });
      scalars = this.#update.apply(addresses, end - start, numbers);
    }
    this.scalars = scalars;
    this.stepCount += 1;
  }

  /** Copies of everything that the next steps depend on, to be stored, and given to `restore`. */
  snapshot() {
    const kept = this.#update.rule.operands.filter((o) => o.written);
    const copy = (name) => Object.fromEntries(Object.keys(this.#offsets).map((k) => [k, this.arrays[name][k].slice()]));
    return {
      stepCount: this.stepCount,
      scalars: { ...this.scalars },
      arrays: Object.fromEntries(kept.map((o) => [o.name, copy(o.name)])),
    };
  }

  /** Goes back to what a snapshot holds. */
  restore(snapshot) {
    const kept = this.#update.rule.operands.filter((o) => o.written);
    const sources = [];
    for (const o of kept) {
      for (const [name, [start, end]] of Object.entries(this.#offsets)) {
        const source = snapshot.arrays?.[o.name]?.[name];
        checkArray(source, o.dtype, end - start, `${o.name}.${name}`);
        sources.push([o.name, name, source]);
      }
    }
    for (const [operand, name, source] of sources) this.arrays[operand][name].set(source);
    this.stepCount = snapshot.stepCount;
    this.scalars = { ...snapshot.scalars };
  }

  /** Hands its memory back to the module. Its arrays must not be used any more. */
  free() {
    for (const tensor of Object.values(this.#tensors)) tensor.free();
  }

  #leaves(operand) {
    const leaves = {};
    const views = {};
    for (const [name, [start, end]] of Object.entries(this.#offsets)) {
      Object.defineProperty(leaves, name, {
        enumerable: true,
        get: () => {
          const whole = this.#tensors[operand].view;
          if (views[name]?.buffer !== whole.buffer) views[name] = whole.subarray(start, end);
          return views[name];
        },
      });
    }
    return leaves;
  }

  #copyParams(first, target) {
    const [from, to] = [this.#tensors[first.name].view, this.#tensors[target.name].view];
    if (first.dtype === target.dtype) to.set(from);
    else to.set(Float64Array.from(from, DECODERS[first.dtype]));
  }
}

const DECODERS = {
  f32: (x) => x,
  f64: (x) => x,
  bf16: (bits) => new Float32Array(Uint32Array.of(bits << 16).buffer)[0],
  f16: (bits) => {
    const [sign, exponent, mantissa] = [bits & 0x8000 ? -1 : 1, (bits >> 10) & 31, bits & 1023];
    if (exponent === 31) return mantissa ? NaN : sign * Infinity;
    return sign * (exponent ? 2 ** (exponent - 25) * (1024 + mantissa) : 2 ** -24 * mantissa);
  },
};

/** What each state operand holds before the first step: a number, or "param". */
function initial(rule, hypers) {
  const start = {};
  for (const name of Object.keys(hypers)) {
    if (!Object.values(rule.init).includes(name)) {
      throw new HyperparameterError(`'${name}' must not be given here: no state of '${rule.name}' begins with it`);
    }
  }
  for (const [slot, first] of Object.entries(rule.init)) {
    const named = typeof first === "string" && first !== "param";
    start[slot] = named ? checkHyper(first, rule.hypers[first], hypers[first] ?? rule.hypers[first].default) : first;
  }
  return start;
}

function checkOverlapOf(arrays, operands) {
  const pieces = new Map();
  arrays.forEach((array, i) => {
    if (!pieces.has(array.buffer)) pieces.set(array.buffer, []);
    const { name, written } = operands[i];
    pieces.get(array.buffer).push({ name, address: array.byteOffset, bytes: array.byteLength, written });
  });
  for (const each of pieces.values()) checkOverlap(each);
}

function checkNumber(name, value) {
  if (typeof value !== "number" || !Number.isFinite(value)) {
    throw new HyperparameterError(`'${name}' must be a finite number (got ${value})`);
  }
  return value;
}

function checkHyper(name, hyper, value) {
  if (value === null || value === undefined) throw new HyperparameterError(`'${name}' must be given: it has no default`);
  checkNumber(name, value);
  if (hyper.kind === "step") {
    const least = hyper.closed ? 0 : 1;
    if (!Number.isInteger(value) || value < least) {
      throw new HyperparameterError(`'${name}' must be a whole number of at least ${least} (got ${value})`);
    }
  } else if (hyper.kind === "decay") {
    if (value < 0 || value > 1 || (value === 1 && !hyper.closed)) {
      throw new HyperparameterError(`'${name}' must be in [0, 1${hyper.closed ? "]" : ")"} (got ${value})`);
    }
  } else if (value < 0 && !hyper.signed) {
    throw new HyperparameterError(`'${name}' must be at least 0 (got ${value})`);
  }
  return value;
}
