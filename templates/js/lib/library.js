// The compiled library: its table of kernels, checked, and how they are called.
import { LibraryError, Memory } from "./memory.js";

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
export class Library {
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
export async function instantiate(source) {
  return WebAssembly.instantiate(await compile(source), {});
}

/** The WebAssembly.Module of a source. */
export async function compile(source) {
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

export function fromBase64(text) {
  return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
}

const bits = new DataView(new ArrayBuffer(8));

/** The low and high 32 bits of a double, the bits of a float, and numbers by their bits. */
export const low = (x) => (bits.setFloat64(0, x), bits.getInt32(4));
export const high = (x) => (bits.setFloat64(0, x), bits.getInt32(0));
export const bitsOf32 = (x) => (bits.setFloat32(0, x), bits.getInt32(0));
export const bitsOf64 = (x) => (bits.setFloat64(0, x), bits.getBigInt64(0));
export const floatOf32 = (x) => (bits.setInt32(0, x), bits.getFloat32(0));
export const floatOf64 = (x) => (bits.setBigInt64(0, x), bits.getFloat64(0));
