// the logits of an MLP
// Written by optgen 0.1.0 for wasm: for pages without modules or a server. It sets one global,
// predict, which is what index.js exports, and holds the .wasm in base64.
"use strict";
globalThis.predict = (() => {
  // The module's memory: errors, an arena, and arrays that live in it.

  /** Base of every error that these modules raise on purpose. */
  class OptgenError extends Error {
    constructor(message) {
      super(message);
      this.name = new.target.name;
    }
  }
  /** The .wasm and the JavaScript beside it do not belong together, or this engine cannot run it. */
  class LibraryError extends OptgenError {}
  /** An array is missing, has the wrong length or element type, is detached, or overlaps another. */
  class ArrayError extends OptgenError {}
  /** A hyperparameter is unknown, missing, not finite, or outside the range that its rule allows. */
  class HyperparameterError extends OptgenError {}

  const PAGE = 65536;
  // What kernels assume of workspaces, and more than any array needs.
  const ALIGNMENT = 64;
  const ARRAYS = {
    f32: Float32Array, f64: Float64Array, f16: Uint16Array, bf16: Uint16Array, bool: Uint8Array, i8: Int8Array,
    u8: Uint8Array, i16: Int16Array, u16: Uint16Array, i32: Int32Array, u32: Uint32Array, i64: BigInt64Array,
    u64: BigUint64Array,
  };

  /** The typed array that holds elements of a dtype: f16 and bf16 are held as their bits. */
  function arrayType(dtype) {
    return ARRAYS[dtype];
  }

  /** Bytes of the module's memory, handed out from the heap's base on. Memory grows as needed and never shrinks. */
  class Memory {
    constructor(memory, base) {
      this.memory = memory;
      this.end = roundUp(base);
      this.freed = new Map();
    }

    /** Changes whenever memory grows; views of the old one are then detached. */
    get buffer() {
      return this.memory.buffer;
    }

    /** The address of `bytes` bytes, aligned to 64. What they hold is not said. */
    allocate(bytes) {
      const size = Math.max(ALIGNMENT, roundUp(bytes));
      const again = this.freed.get(size)?.pop();
      if (again !== undefined) return again;
      const end = this.end + size;
      const missing = Math.ceil((end - this.buffer.byteLength) / PAGE);
      if (missing > 0) {
        try {
          this.memory.grow(missing);
        } catch {
          throw new ArrayError(`there is no memory for ${bytes} bytes more: the module has ${this.buffer.byteLength}`);
        }
      }
      const address = this.end;
      this.end = end;
      return address;
    }

    /** Hands back what `allocate` gave for that number of bytes; it is used again for others of the same size. */
    release(address, bytes) {
      const size = Math.max(ALIGNMENT, roundUp(bytes));
      if (!this.freed.has(size)) this.freed.set(size, []);
      this.freed.get(size).push(address);
    }
  }

  /** An array in the module's memory. Kernels work on it in place. */
  class Tensor {
    #memory;
    #view;
    #type;

    constructor(memory, dtype, shape, address) {
      this.#memory = memory;
      this.#type = arrayType(dtype);
      this.dtype = dtype;
      this.shape = shape;
      this.length = shape.reduce((a, b) => a * b, 1);
      this.byteLength = this.length * this.#type.BYTES_PER_ELEMENT;
      this.owned = address === undefined;
      this.address = this.owned ? memory.allocate(this.byteLength) : address;
      if (this.owned) this.view.fill(this.#type.BYTES_PER_ELEMENT === 8 && dtype !== "f64" ? 0n : 0);
    }

    /** Its elements. Read it anew after whatever may have made memory grow: older views are detached then. */
    get view() {
      if (this.address === null) throw new ArrayError("this tensor has been freed");
      if (this.#view?.buffer !== this.#memory.buffer) {
        this.#view = new this.#type(this.#memory.buffer, this.address, this.length);
      }
      return this.#view;
    }

    /** Copies `source` into it, an array of the same type and length. */
    set(source, name = "the array") {
      checkArray(source, this.dtype, this.length, name);
      const view = this.view;
      const same = source.buffer === view.buffer && source.byteOffset === view.byteOffset;
      if (!same) view.set(source);
    }

    /** Hands its memory back. */
    free() {
      if (this.owned && this.address !== null) this.#memory.release(this.address, this.byteLength);
      this.address = null;
      this.#view = undefined;
    }
  }

  /** Throws an ArrayError unless `array` is a typed array of that dtype and length, with its memory still there. */
  function checkArray(array, dtype, length, name) {
    const type = arrayType(dtype);
    if (!(array instanceof type)) {
      const got = array?.constructor?.name ?? typeof array;
      throw new ArrayError(`'${name}' must be a ${type.name}, which holds ${dtype} (got ${got})`);
    }
    if (isDetached(array.buffer)) {
      throw new ArrayError(
        `'${name}' is a view of memory that is gone: the module's memory has grown since, or the buffer was transferred. ` +
          "Read the view anew from its tensor or optimizer",
      );
    }
    if (length !== undefined && array.length !== length) {
      throw new ArrayError(`'${name}' must have ${length} elements (it has ${array.length})`);
    }
  }

  function isDetached(buffer) {
    if (buffer.byteLength > 0) return false;
    try {
      new Uint8Array(buffer);
      return false;
    } catch {
      return true;
    }
  }

  /** Throws an ArrayError where one of `pieces` that is written shares memory with another: `{name, address, bytes, written}`. */
  function checkOverlap(pieces) {
    for (const [i, a] of pieces.entries()) {
      for (const b of pieces.slice(i + 1)) {
        const apart = a.address + a.bytes <= b.address || b.address + b.bytes <= a.address;
        if (!apart && (a.written || b.written)) {
          throw new ArrayError(`'${a.name}' and '${b.name}' must not share memory: one of them is written`);
        }
      }
    }
  }

  function roundUp(bytes) {
    return Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;
  }

  /** An element of a dtype as a number; f16 and bf16 are held as their bits. */
  function toNumber(element, dtype) {
    if (dtype === "bf16") return new Float32Array(Uint32Array.of(element << 16).buffer)[0];
    if (dtype !== "f16") return element;
    const [sign, exponent, mantissa] = [element & 0x8000 ? -1 : 1, (element >> 10) & 31, element & 1023];
    if (exponent === 31) return mantissa ? NaN : sign * Infinity;
    return sign * (exponent ? 2 ** (exponent - 25) * (1024 + mantissa) : 2 ** -24 * mantissa);
  }
  // The compiled library: its table of kernels, checked, and how they are called.

  // IREE's executable library, laid out for 32 bits. Structs are read and written field by field.
  const ABI_VERSION = 6;
  const ENVIRONMENT_BYTES = 96;
  const DISPATCH_BYTES = 64;
  const WORKGROUP_BYTES = 32;
  const ATTRIBUTES_BYTES = 64;
  const LOCAL_MEMORY_PAGE = 4096;

  /** A .wasm, instantiated.
   *
   * `program` says what the JavaScript beside it was written for: `query`, `exports` with the name, the constants and the
   * bindings of each kernel, `constants` in base64, and `workspace` bytes. */
  class Library {
    constructor(instance, program, imported) {
      const wasm = instance.exports;
      const memory = imported ?? wasm.memory;
      const query = wasm[program.query];
      if (!memory || !query || !wasm.__heap_base || !wasm.__indirect_function_table) {
        throw new LibraryError(`the .wasm has no '${program.query}', memory, table and heap base: it is another's`);
      }
      this.memory = new Memory(memory, wasm.__heap_base.value);
      this.environment = this.#zeroed(ENVIRONMENT_BYTES);
      this.kernels = this.#kernels(query(ABI_VERSION, this.environment) >>> 0, wasm.__indirect_function_table, program);
      const most = (field) => Math.max(1, ...program.exports.map((each) => each[field]));
      this.state = this.#zeroed(DISPATCH_BYTES);
      this.group = this.#zeroed(WORKGROUP_BYTES);
      this.words = this.#zeroed(4 * most("constants"));
      this.pointers = this.#zeroed(4 * most("bindings"));
      this.lengths = this.#zeroed(4 * most("bindings"));
      this.localBytes = Math.max(0, ...this.kernels.map((kernel) => kernel.local));
      this.local = this.localBytes ? this.#zeroed(this.localBytes) : 0;
      this.workspace = program.workspace ? this.#zeroed(program.workspace) : 0;
      this.constants = program.constants.map((text) => {
        const bytes = fromBase64(text);
        const address = this.#zeroed(bytes.length);
        this.bytes.set(bytes, address);
        return address;
      });
    }

    get bytes() {
      if (this.$bytes?.buffer !== this.memory.buffer) this.$bytes = new Uint8Array(this.memory.buffer);
      return this.$bytes;
    }

    get data() {
      if (this.$data?.buffer !== this.memory.buffer) this.$data = new DataView(this.memory.buffer);
      return this.$data;
    }

    #zeroed(bytes) {
      const address = this.memory.allocate(bytes);
      this.bytes.fill(0, address, address + bytes);
      return address;
    }

    #kernels(library, table, program) {
      const word = (address) => this.data.getUint32(address, true);
      if (!library) throw new LibraryError(`the .wasm does not know version ${ABI_VERSION} of the library's layout`);
      const version = word(word(library));
      if (version !== ABI_VERSION) {
        throw new LibraryError(`the .wasm has version ${version} of the library's layout (must be ${ABI_VERSION})`);
      }
      const imports = word(library + 4);
      const constants = word(library + 52);
      if (imports || constants) throw new LibraryError("the .wasm asks for imports or constants, of which there are none");
      const count = word(library + 12);
      const [functions, attributes, names] = [word(library + 16), word(library + 20), word(library + 32)];
      const known = new Map();
      for (let i = 0; i < count; i++) known.set(this.#text(word(names + 4 * i)), i);
      return program.exports.map((wanted) => {
        const i = known.get(wanted.name);
        if (i === undefined) throw new LibraryError(`the .wasm has no kernel '${wanted.name}': it is another's`);
        const at = attributes + ATTRIBUTES_BYTES * i;
        const [has, takes] = [this.data.getUint8(at + 10), this.data.getUint8(at + 11)];
        if (has !== wanted.constants || takes !== wanted.bindings) {
          throw new LibraryError(
            `kernel '${wanted.name}' takes ${has} constants and ${takes} bindings ` +
              `(must be ${wanted.constants} and ${wanted.bindings})`,
          );
        }
        const pages = this.data.getUint16(at + 8, true);
        const pointer = word(functions + 4 * i);
        return { name: wanted.name, pointer, run: table.get(pointer), local: pages * LOCAL_MEMORY_PAGE };
      });
    }

    #text(address) {
      let text = "";
      for (let i = address; this.bytes[i]; i++) text += String.fromCharCode(this.bytes[i]);
      return text;
    }

    /** Calls a kernel for every workgroup of a grid. `bindings` has an address and a number of bytes by turns. */
    dispatch(index, x, y, z, constants, bindings) {
      const { data, state, group } = this;
      const kernel = this.kernels[index];
      for (let i = 0; i < constants.length; i++) data.setInt32(this.words + 4 * i, constants[i], true);
      for (let i = 0; i < bindings.length; i += 2) {
        data.setUint32(this.pointers + 2 * i, bindings[i], true);
        data.setUint32(this.lengths + 2 * i, bindings[i + 1], true);
      }
      data.setUint32(state, 1, true); // the workgroup's extents
      data.setUint32(state + 4, 1, true);
      data.setUint16(state + 8, 1, true);
      data.setUint16(state + 10, constants.length, true);
      data.setUint32(state + 12, x, true);
      data.setUint32(state + 16, y, true);
      data.setUint16(state + 20, z, true);
      data.setUint8(state + 22, 1); // workgroups at a time
      data.setUint8(state + 23, bindings.length / 2);
      data.setUint32(state + 24, this.words, true);
      data.setUint32(state + 28, this.pointers, true);
      data.setUint32(state + 32, this.lengths, true);
      data.setUint32(group + 16, this.local, true);
      data.setUint32(group + 20, this.localBytes, true);
      if (this.pool?.run(kernel, x, y, z)) return;
      for (let k = 0; k < z; k++) {
        data.setUint16(group + 8, k, true);
        for (let j = 0; j < y; j++) {
          data.setUint32(group + 4, j, true);
          for (let i = 0; i < x; i++) {
            data.setUint32(group, i, true);
            const status = kernel.run(this.environment, state, group);
            if (status) throw new LibraryError(`kernel '${kernel.name}' failed with status ${status}`);
          }
        }
      }
    }

    /** Ends its threads, if it has any. */
    close() {
      this.pool?.close();
    }

    /** Moves bytes. */
    copy(target, source, length) {
      this.bytes.copyWithin(target, source, source + length);
    }

    /** Fills `length` bytes with a pattern of `size` bytes over and over. */
    fill(target, length, pattern, size) {
      const type = { 1: Uint8Array, 2: Uint16Array, 4: Uint32Array }[size];
      new type(this.memory.buffer, target, length / size).fill(pattern);
    }
  }

  /** Compiles and instantiates what `source` is: bytes, a module, a response, or where to get them. */
  async function instantiate(source) {
    return WebAssembly.instantiate(await compile(source), {});
  }

  /** The WebAssembly.Module of a source. */
  async function compile(source) {
    source = await source;
    if (typeof source === "string") source = new URL(source, globalThis.location?.href);
    if (source instanceof URL) source = await fetched(source);
    if (source instanceof WebAssembly.Module) return source;
    if (typeof Response !== "undefined" && source instanceof Response) {
      if (!source.ok) throw new LibraryError(`${source.url} cannot be loaded: status ${source.status}`);
      source = await source.arrayBuffer();
    }
    try {
      return await WebAssembly.compile(source);
    } catch (error) {
      throw new LibraryError(`the .wasm cannot be compiled here: ${error.message}`);
    }
  }

  async function fetched(url) {
    if (url.protocol !== "file:" || typeof process === "undefined") return fetch(url);
    const { readFile } = await import(/* webpackIgnore: true */ /* @vite-ignore */ "node:fs/promises");
    return readFile(url);
  }

  function fromBase64(text) {
    return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  }

  const bits = new DataView(new ArrayBuffer(8));

  /** The low and high 32 bits of a double, the bits of a float, and numbers by their bits. */
  const low = (x) => (bits.setFloat64(0, x), bits.getInt32(4));
  const high = (x) => (bits.setFloat64(0, x), bits.getInt32(0));
  const bitsOf32 = (x) => (bits.setFloat32(0, x), bits.getInt32(0));
  const bitsOf64 = (x) => (bits.setFloat64(0, x), bits.getBigInt64(0));
  const floatOf32 = (x) => (bits.setInt32(0, x), bits.getFloat32(0));
  const floatOf64 = (x) => (bits.setBigInt64(0, x), bits.getFloat64(0));
  // What the numbers that a whole program takes must be: hyperparameters, counts of steps, scalar state.

  const MOST_STEPS = 2 ** 31 - 1;
  // How far the parts of one decay rate may be from each other, by the type that they have been rounded to.
  const APART = { f32: [2 ** -23, 2 ** -20], f64: [2 ** -52, 2 ** -48] };
  const WHOLE = {
    i8: [-(2 ** 7), 2 ** 7 - 1], i16: [-(2 ** 15), 2 ** 15 - 1], i32: [-(2 ** 31), 2 ** 31 - 1],
    u8: [0, 2 ** 8 - 1], u16: [0, 2 ** 16 - 1], u32: [0, 2 ** 32 - 1], bool: [0, 1],
    f16: [0, 2 ** 16 - 1], bf16: [0, 2 ** 16 - 1], // as their bits
  };

  /** Throws unless `value` may be put where one element of a dtype is: no fraction, NaN or wrapped number is stored. */
  function checkElement(name, dtype, value) {
    if (dtype === "i64" || dtype === "u64") {
      const [low, high] = dtype === "i64" ? [-(2n ** 63n), 2n ** 63n - 1n] : [0n, 2n ** 64n - 1n];
      if (typeof value !== "bigint" || value < low || value > high) {
        throw new ArrayError(`'${name}' must be a bigint that fits ${dtype} (got ${String(value)})`);
      }
      return;
    }
    if (typeof value !== "number") throw new ArrayError(`'${name}' must be a number (got ${typeof value})`);
    const range = WHOLE[dtype];
    if (range && !(Number.isInteger(value) && value >= range[0] && value <= range[1])) {
      throw new ArrayError(`'${name}' must be a whole number in [${range.join(", ")}] (got ${value})`);
    }
  }

  /** Throws unless `value` is what `limit` allows of the argument `name`. */
  function checkLimit(name, limit, value) {
    const refuse = (must) => {
      throw new HyperparameterError(`'${name}' must ${must} (got ${value})`);
    };
    if (limit.kind === "count") {
      const good = Number.isInteger(value) && value >= 0 && value < MOST_STEPS;
      if (!good) refuse(`be a whole number in [0, ${MOST_STEPS})`);
    } else if (limit.kind === "scalar") {
      if (!Number.isFinite(value)) refuse("be a finite number");
    } else if (limit.kind === "hyper") {
      if (Number.isNaN(value) && limit.first === null) refuse("be given, a number that is finite: it has no default");
      if (!Number.isFinite(value)) refuse("be finite");
      if (!limit.decay) {
        if (value < 0 && !limit.signed) refuse("be at least 0");
      } else if (limit.part === "log") {
        if (value > 0) refuse("be the logarithm of a decay rate, at most 0");
      } else {
        const beyond = limit.part === "value" ? value >= 1 : value <= 0;
        const open = limit.part === "value" ? "[0, 1)" : "(0, 1]";
        if (value < 0 || value > 1 || (beyond && !limit.closed)) refuse(`be in ${limit.closed ? "[0, 1]" : open}`);
      }
    }
  }

  /** Throws unless the parts of each decay rate are parts of one number; `valueOf` gives the number of an argument. */
  function checkParts(known, valueOf) {
    const parts = {};
    for (const argument of known) {
      const { limit } = argument;
      if (limit?.kind === "hyper" && limit.decay) (parts[limit.hyper] ??= {})[limit.part] = argument;
    }
    for (const [hyper, { value, complement, log }] of Object.entries(parts)) {
      const [apart, far] = APART[(value ?? complement ?? log).dtype];
      const [b, rest, l] = [value, complement, log].map((a) => (a ? valueOf(a) : undefined));
      const wrong = (a, must) => {
        throw new HyperparameterError(`'${a.name}' must be ${must} (got ${valueOf(a)}): give all parts of '${hyper}'`);
      };
      const near = !value || !complement || Math.abs(rest - (1 - b)) <= apart;
      if (!near) wrong(complement, `1 - ${b}, as '${value.name}' is`);
      // 1 - b <= -log b <= (1 - b) / b
      if (complement && log) {
        const low = -l >= rest * (1 - far);
        const high = !value || -l * b <= rest * (1 + far);
        if (!low || !high) wrong(log, `the logarithm of ${value ? b : 1 - rest}`);
      }
    }
  }
  // Whole programs of fixed shapes, training steps above all: named arguments that stay in the module's memory.

  /** A compiled program. `signature` is what the package says of it, `run` its host program. */
  class Step {
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

    /** Puts arguments into the module's memory: typed arrays, or numbers where the shape is that of one element. Nothing is
     * put where one is not what it must be. */
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
  // What the library must have, checked when it is loaded.
  const library = {
    query: "jit_logits_linked_library_query",
    exports: [
      { name: "main_dispatch_0_matmul_60x128x64_f32", constants: 0, bindings: 4 },
      { name: "main_dispatch_1_matmul_60x10x128_f32", constants: 0, bindings: 4 },
    ],
    constants: [],
    workspace: 33152,
  };
  // What callers see of it.
  const signature = {
    name: "predict",
    arguments: [
      { name: "params.layer0.w", dtype: "f32", shape: [64, 128], written: false },
      { name: "params.layer0.b", dtype: "f32", shape: [128], written: false },
      { name: "params.layer1.w", dtype: "f32", shape: [128, 10], written: false },
      { name: "params.layer1.b", dtype: "f32", shape: [10], written: false },
      { name: "x", dtype: "f32", shape: [60, 64], written: false },
    ],
    results: [{ name: "logits", dtype: "f32", shape: [60, 10], argument: null }],
  };

  // What a runtime would do for one call.
  function program(library, addresses, extents, numbers) {
    library.dispatch(0, 30, 1, 1, [], [addresses[4], 15360, addresses[0], 32768, addresses[1], 512, library.workspace + 2432, 30720]);
    library.dispatch(1, 15, 1, 1, [], [library.workspace + 2432, 30720, addresses[2], 5120, addresses[3], 40, library.workspace, 2400]);
    return [library.workspace];
  }
  const wasm = "AGFzbQEAAAABDgJgA39/fwF/YAJ/fwF/AwQDAAABBAQBcAADBQMBAAIGDQJ/AEEAC38AQdCCBAsHVgQGbWVtb3J5AgAfaml0X2xvZ2l0c19saW5rZWRfbGlicmFyeV9xdWVyeQACGV9faW5kaXJlY3RfZnVuY3Rpb25fdGFibGUBAAtfX2hlYXBfYmFzZQMBCQgBAEEBCwIAAQqNEAOQCwIIfxR7IAEoAhwiAUEEaigCACACKAIAIgJBAXFBCHRqIQNBACEEIAFBDGooAgAgAkECbSIFIAJBAEggAiAFQQF0R3FrIgVBC3RqIQYgASgCACAFQQp0aiEHIAJBBnRBwABxIQggAUEIaigCACEJA0AgBCAIciEKQXwhBSAHIQIgAyEB/QwAAAAAAAAAAAAAAAAAAAAAIgshDCALIQ0gCyEOA0AgAkEMav0JAgAgAUGADGr9AAQAIg/95gEgAkEIav0JAgAgAUGACGr9AAQAIhD95gEgAkEEav0JAgAgAUGABGr9AAQAIhH95gEgAv0JAgAgAf0ABAAiEv3mASAM/eQB/eQB/eQB/eQBIQwgAkGMBmr9CQIAIA/95gEgAkGIBmr9CQIAIBD95gEgAkGEBmr9CQIAIBH95gEgAkGABmr9CQIAIBL95gEgC/3kAf3kAf3kAf3kASELIAJBjARq/QkCACAP/eYBIAJBiARq/QkCACAQ/eYBIAJBhARq/QkCACAR/eYBIAJBgARq/QkCACAS/eYBIA795AH95AH95AH95AEhDiACQYwCav0JAgAgD/3mASACQYgCav0JAgAgEP3mASACQYQCav0JAgAgEf3mASACQYACav0JAgAgEv3mASAN/eQB/eQB/eQB/eQBIQ0gAkEQaiECIAFBgBBqIQEgBUEEaiIFQTxJDQALIAYgCkECdCIBaiICQYAMaiALIAkgAWr9AAQAIhD95AEiE/0MRPb/QET2/0BE9v9ARPb/QCIR/eoB/QxE9v/ARPb/wET2/8BE9v/AIhL96wEiCyALIAsgC/3mASIPIA8gDyAPIA/9DH4zYSp+M2EqfjNhKn4zYSoiFCAP/QzAJZ8lwCWfJcAlnyXAJZ8lIhX95gH95QH95gH9DP83va7/N72u/ze9rv83va4iFv3kAf3mAf0MQQBcM0EAXDNBAFwzQQBcMyIX/eQB/eYB/QxKQ3k3SkN5N0pDeTdKQ3k3Ihj95AH95gH9DO0NJzrtDSc67Q0nOu0NJzoiGf3kAf3mAf0M3FmgO9xZoDvcWaA73FmgOyIa/eQB/eYBIA8gDyAP/QzY06A12NOgNdjToDXY06A1Igv95gH9DNaV+DjWlfg41pX4ONaV+DgiG/3kAf3mAf0MBaoUOwWqFDsFqhQ7BaoUOyIc/eQB/eYB/QzdWaA73VmgO91ZoDvdWaA7Ih395AH95wEgE/3gAf0MF7fRORe30TkXt9E5F7fROSIT/UP9Uv0LBAAgAkGACGogDiAQ/eQBIh4gEf3qASAS/esBIg4gDiAOIA795gEiDyAPIA8gDyAPIBQgDyAV/eYB/eUB/eYBIBb95AH95gEgF/3kAf3mASAY/eQB/eYBIBn95AH95gEgGv3kAf3mASAPIA8gDyAL/eYBIBv95AH95gEgHP3kAf3mASAd/eQB/ecBIB794AEgE/1D/VL9CwQAIAJBgARqIA0gEP3kASIOIBH96gEgEv3rASINIA0gDSAN/eYBIg8gDyAPIA8gDyAUIA8gFf3mAf3lAf3mASAW/eQB/eYBIBf95AH95gEgGP3kAf3mASAZ/eQB/eYBIBr95AH95gEgDyAPIA8gC/3mASAb/eQB/eYBIBz95AH95gEgHf3kAf3nASAO/eABIBP9Q/1S/QsEACACIAwgEP3kASIMIBH96gEgEv3rASIQIBAgECAQ/eYBIg8gDyAPIA8gDyAUIA8gFf3mAf3lAf3mASAW/eQB/eYBIBf95AH95gEgGP3kAf3mASAZ/eQB/eYBIBr95AH95gEgDyAPIA8gC/3mASAb/eQB/eYBIBz95AH95gEgHf3kAf3nASAM/eABIBP9Q/1S/QsEACADQRBqIQMgBEE8SSECIARBBGohBCACDQALQQAL4AQCCX8IeyABKAIcIgFBDGooAgAgAigCACICQaABbGoiA0H4AGohBCADQdAAaiEFIANBKGohBiABKAIAIAJBC3RqIQcgAUEIaigCACEIIAFBBGooAgAhCUEAIQoDQEF8IQsgByEBIAkhAv0MAAAAAAAAAAAAAAAAAAAAACIMIQ0gDCEOIAwhDwNAIAFBDGr9CQIAIAJB+ABq/V0DACIQ/eYBIAFBCGr9CQIAIAJB0ABq/V0DACIR/eYBIAFBBGr9CQIAIAJBKGr9XQMAIhL95gEgAf0JAgAgAv1dAwAiE/3mASAN/eQB/eQB/eQB/eQBIQ0gAUGMDGr9CQIAIBD95gEgAUGIDGr9CQIAIBH95gEgAUGEDGr9CQIAIBL95gEgAUGADGr9CQIAIBP95gEgDP3kAf3kAf3kAf3kASEMIAFBjAhq/QkCACAQ/eYBIAFBiAhq/QkCACAR/eYBIAFBhAhq/QkCACAS/eYBIAFBgAhq/QkCACAT/eYBIA/95AH95AH95AH95AEhDyABQYwEav0JAgAgEP3mASABQYgEav0JAgAgEf3mASABQYQEav0JAgAgEv3mASABQYAEav0JAgAgE/3mASAO/eQB/eQB/eQB/eQBIQ4gAUEQaiEBIAJBoAFqIQIgC0EEaiILQfwASQ0ACyAGIApBAnQiAWogDiAIIAFq/V0DACIQ/eQB/VsDAAAgAyABaiANIBD95AH9WwMAACAFIAFqIA8gEP3kAf1bAwAAIAQgAWogDCAQ/eQB/VsDAAAgCUEIaiEJIApBCEkhASAKQQJqIQogAQ0AC0EACxcAI4CAgIAAQZCChIAAakEAIABBBkYbCwvaAgIAQYCABAvqAWppdF9sb2dpdHNfbGlua2VkAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAEAQAAAAEAAAABAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAABAEAAAABAAAAAQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAABtYWluX2Rpc3BhdGNoXzBfbWF0bXVsXzYweDEyOHg2NF9mMzIAbWFpbl9kaXNwYXRjaF8xX21hdG11bF82MHgxMHgxMjhfZjMyAABB8IEEC2AGAAAAAAABAAAAAAAAAAAAAQAAAAIAAACgAAEAxQABAPAAAQAAAAAAAAAAAAIAAAAAAQEAIAABAAAAAAAAAAAACAEBAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
  async function load(source = fromBase64(wasm)) {
    return new Step(new Library(await instantiate(source), library), signature, program);
  }
  const size = 2567; // bytes of the .wasm
  return { load, size, signature, OptgenError, LibraryError, ArrayError, HyperparameterError, Tensor, Step };
})();
