// Optimizer updates: of one leaf at a time, and of whole trees.
import { checkCount, checkObject, checkScalars, initialOf, numbersOf } from "./hypers.js";
import { ArrayError, HyperparameterError, Tensor, arrayType, checkArray, checkOverlap, toNumber } from "./memory.js";

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
    const numbers = numbersOf(this.#rule, hypers);
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
    const numbers = initialOf(rule, hypers);
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
        if (!Object.hasOwn(this.#offsets, name)) throw new ArrayError(`'${name}' of the grads is no param`);
      }
      for (const [name, [start, end]] of Object.entries(this.#offsets)) {
        checkArray(grads[name], rule.operands[1].dtype, end - start, `grads.${name}`);
      }
    }
    checkObject(hypers);
    if (Object.hasOwn(hypers, "step")) throw new HyperparameterError("'step' is counted by the optimizer: set stepCount instead");
    checkCount(this.stepCount);
    const counted = Object.hasOwn(rule.hypers, "step") ? { step: this.stepCount + 1 } : {};
    const numbers = numbersOf(rule, { ...hypers, ...counted, ...this.scalars });
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
    checkCount(snapshot.stepCount);
    checkScalars(this.#update.rule, snapshot.scalars);
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
    else to.set(Float64Array.from(from, (x) => toNumber(x, first.dtype)));
  }
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
