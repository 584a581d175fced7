// Whole programs of fixed shapes, training steps above all: named arguments that stay in the module's memory.
import { checkElement, checkLimit, checkParts } from "./limits.js";
import { ArrayError, Tensor, checkArray } from "./memory.js";

/** A compiled program. `signature` is what the package says of it, `run` its host program. */
export class Step {
  #library;
  #signature;
  #run;
  #tensors;
  #given = new Set();

  constructor(library, signature, run) {
    this.#library = library;
    this.#signature = signature;
    this.#run = run;
    this.#tensors = Object.fromEntries(
      signature.arguments.map((a) => [a.name, a.shape ? new Tensor(library.memory, a.dtype, a.shape) : { value: 0 }]),
    );
    /** The arguments in the module's memory, by name, as flat typed arrays. They begin as zeros, numbers and state as
     * what they are before the first step; a hyperparameter without a default as NaN, which `run` refuses. */
    this.arrays = {};
    for (const { name, shape, limit } of signature.arguments) {
      const first = limit?.first ?? (limit?.kind === "hyper" ? NaN : 0);
      if (shape && first !== 0) this.#tensors[name].view.fill(first);
      const get = () => (this.#given.add(name), this.#tensors[name].view);
      if (shape) Object.defineProperty(this.arrays, name, { enumerable: true, get });
    }
  }

  /** What the program takes and gives: names, dtypes, shapes, and which arguments it writes. */
  get signature() {
    return this.#signature;
  }

  /** Bytes of memory that the module holds. */
  get memoryBytes() {
    return this.#library.memory.buffer.byteLength;
  }

  /** Ends its threads, if it has any. It works on without them. */
  close() {
    this.#library.close();
  }

  /** Puts arguments into the module's memory: typed arrays, or numbers where the shape is that of one element. Where one
   * is not what it must be, nothing is put. */
  set(values) {
    this.#check(values);
    for (const [name, value] of Object.entries(values)) {
      const tensor = this.#tensors[name];
      this.#given.add(name);
      if (!(tensor instanceof Tensor)) tensor.value = value;
      else if (typeof value !== "object") tensor.view[0] = value;
      else tensor.set(value, name);
    }
  }

  #check(values) {
    const known = this.#signature.arguments;
    for (const [name, value] of Object.entries(values)) {
      const argument = known.find((a) => a.name === name);
      if (!argument) {
        throw new ArrayError(`there is no argument '${name}': there are ${known.map((a) => a.name).join(", ")}`);
      }
      if (argument.shape === null || (argument.shape.length === 0 && typeof value !== "object")) {
        if (value === undefined) throw new ArrayError(`'${name}' must be given (it is undefined)`);
        if (argument.limit) checkLimit(name, argument.limit, this.#rounded(argument, value));
        checkElement(name, argument.dtype, value);
      } else {
        checkArray(value, argument.dtype, this.#tensors[name].length, name);
      }
    }
  }

  /** The number that `value` is as the argument's element. */
  #rounded({ dtype }, value) {
    const number = typeof value === "object" ? value[0] : value;
    return dtype === "f32" && typeof number === "number" ? Math.fround(number) : number;
  }

  /** Throws where a number, given now or before, is not what it must be. */
  #checkNumbers(values) {
    const limited = this.#signature.arguments.filter((a) => a.limit);
    const valueOf = (a) => {
      if (a.name in values) return this.#rounded(a, values[a.name]);
      const tensor = this.#tensors[a.name];
      return tensor instanceof Tensor ? tensor.view[0] : tensor.value;
    };
    for (const a of limited) {
      if (a.limit.kind !== "state") checkLimit(a.name, a.limit, valueOf(a));
      else if (a.limit.first === null && !(a.name in values) && !this.#given.has(a.name)) {
        throw new ArrayError(`'${a.name}' must be given before the first run: it does not begin as one number`);
      }
    }
    checkParts(limited, valueOf);
  }

  /** Runs the program on the arguments as they are, after `values` have been put into memory.
   *
   * Arguments that it writes are then new in `arrays`. The other results are returned, numbers where they have one
   * element and no axes, else copies. */
  run(values = {}) {
    this.#check(values);
    this.#checkNumbers(values);
    this.set(values);
    const known = this.#signature.arguments;
    const addresses = known.map((a) => this.#tensors[a.name].address ?? 0);
    const numbers = known.filter((a) => !a.shape).map((a) => this.#tensors[a.name].value);
    const results = this.#run(this.#library, addresses, known.map((a) => a.shape ?? []), numbers);
    const returned = {};
    this.#signature.results.forEach((result, i) => {
      if (result.argument !== null) return;
      if (result.shape === null) {
        returned[result.name] = results[i];
        return;
      }
      const { view } = new Tensor(this.#library.memory, result.dtype, result.shape, results[i]);
      returned[result.name] = result.shape.length ? view.slice() : view[0];
    });
    return returned;
  }
}
