// The module's memory: errors, an arena, and arrays that live in it.

/** Base of every error that these modules raise on purpose. */
export class OptgenError extends Error {
  constructor(message) {
    super(message);
    this.name = new.target.name;
  }
}
/** The .wasm and the JavaScript beside it do not belong together, or this engine cannot run it. */
export class LibraryError extends OptgenError {}
/** An array is missing, has the wrong length or element type, is detached, or overlaps another. */
export class ArrayError extends OptgenError {}
/** A hyperparameter is unknown, missing, not finite, or outside the range that its rule allows. */
export class HyperparameterError extends OptgenError {}

const PAGE = 65536;
// What kernels assume of workspaces, and more than any array needs.
const ALIGNMENT = 64;
const ARRAYS = {
  f32: Float32Array, f64: Float64Array, f16: Uint16Array, bf16: Uint16Array, bool: Uint8Array, i8: Int8Array,
  u8: Uint8Array, i16: Int16Array, u16: Uint16Array, i32: Int32Array, u32: Uint32Array, i64: BigInt64Array,
  u64: BigUint64Array,
};

/** The typed array that holds elements of a dtype: f16 and bf16 are held as their bits. */
export function arrayType(dtype) {
  return ARRAYS[dtype];
}

/** Bytes of the module's memory, handed out from the heap's base on. Memory grows as needed and never shrinks. */
export class Memory {
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
export class Tensor {
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
export function checkArray(array, dtype, length, name) {
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
export function checkOverlap(pieces) {
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
export function toNumber(element, dtype) {
  if (dtype === "bf16") return new Float32Array(Uint32Array.of(element << 16).buffer)[0];
  if (dtype !== "f16") return element;
  const [sign, exponent, mantissa] = [element & 0x8000 ? -1 : 1, (element >> 10) & 31, element & 1023];
  if (exponent === 31) return mantissa ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 25) * (1024 + mantissa) : 2 ** -24 * mantissa);
}
