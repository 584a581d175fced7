// Whole programs of fixed shapes, training steps above all: named arguments that stay in the module's memory.
import { ArrayError, Tensor, checkArray } from "./memory.js";

/** A compiled program. `signature` is what the package says of it, `run` its host program. */
export class Step {
  #library;
  #signature;
  #run;
  #tensors;

  constructor(library, signature, run) {
    this.#library = library;
    this.#signature = signature;
    this.#run = run;
    this.#tensors = Object.fromEntries(
      signature.arguments.map((a) => [a.name, a.shape ? new Tensor(library.memory, a.dtype, a.shape) : { value: 0 }]),
    );
    /** The arguments in the module's memory, by name, as flat typed arrays. All begin as zeros. */
    this.arrays = {};
    for (const { name, shape } of signature.arguments) {
      if (shape) Object.defineProperty(this.arrays, name, { enumerable: true, get: () => this.#tensors[name].view });
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

  /** Puts arguments into the module's memory: typed arrays, or numbers where the shape is that of one element. */
  set(values) {
    const known = this.#signature.arguments;
    for (const [name, value] of Object.entries(values)) {
      const argument = known.find((a) => a.name === name);
      if (!argument) {
        throw new ArrayError(`there is no argument '${name}': there are ${known.map((a) => a.name).join(", ")}`);
      }
      const wide = argument.dtype === "i64" || argument.dtype === "u64";
      if (argument.shape === null || (argument.shape.length === 0 && typeof value !== "object")) {
        if (typeof value !== (wide ? "bigint" : "number")) {
          throw new ArrayError(`'${name}' must be a number (got ${typeof value})`);
        }
      } else {
        checkArray(value, argument.dtype, this.#tensors[name].length, name);
      }
    }
    for (const [name, value] of Object.entries(values)) {
      const tensor = this.#tensors[name];
      if (!(tensor instanceof Tensor)) tensor.value = value;
      else if (typeof value !== "object") tensor.view[0] = value;
      else tensor.set(value, name);
    }
  }

  /** Runs the program on the arguments as they are, after `values` have been put into memory.
   *
   * Arguments that it writes are then new in `arrays`. The other results are returned, numbers where they have one
   * element and no axes, else copies. */
  run(values = {}) {
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
