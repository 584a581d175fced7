// The self-test: calls on inputs that are made from a seed, compared with a float64 evaluation, then all of it again.
import { fromBase64 } from "./library.js";
import { OptgenError, toNumber } from "./memory.js";

/** A result is wrong, differs from call to call, or something was written that must not be. */
export class SelftestError extends OptgenError {
  constructor(message, found) {
    super(message);
    Object.assign(this, found);
  }
}

// Elements before and after a leaf that must stay as they are.
const GUARD = 3;
const WIDE = new Set(["i64", "u64"]);

/** Word `i` of a stream: the same in Python and C. */
export function word(seed, stream, i) {
  let x = (Math.imul(i + 1, 0x9e3779b9) + Math.imul(stream, 0x85ebca6b) + Math.imul(seed, 0xc2b2ae35)) | 0;
  x = Math.imul(x ^ (x >>> 16), 0x7feb352d);
  x = Math.imul(x ^ (x >>> 15), 0x846ca68b);
  return (x ^ (x >>> 16)) >>> 0;
}

/** A number as the bits of the nearest float of 16 bits; of two the even one. */
export function narrow(value, dtype) {
  const [digits, bias] = dtype === "f16" ? [10, 15] : [7, 127];
  const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0;
  const infinite = (2 * bias + 1) << digits;
  if (Number.isNaN(value)) return infinite | 1;
  const magnitude = Math.abs(value);
  if (magnitude === Infinity) return sign | infinite;
  if (magnitude === 0) return sign;
  const bits = new DataView(new ArrayBuffer(8));
  bits.setFloat64(0, magnitude);
  const exponent = Math.max((bits.getUint32(0) >>> 20) - 1023, 1 - bias);
  const whole = magnitude * 2 ** (digits - exponent); // exact
  let found = Math.floor(whole);
  const rest = whole - found;
  if (rest > 0.5 || (rest === 0.5 && found % 2 === 1)) found += 1;
  return sign | Math.min(found + ((exponent + bias - 1) << digits), infinite);
}

/** The element that a piece of memory holds at `i` before a call. */
function element(piece, seed, call, i) {
  const { kind, low, count, exponent, stream, dtype } = piece;
  let value;
  if (kind === "float") value = (low + (word(seed, stream, i) >>> 8)) * 2 ** exponent;
  else if (kind === "integer") value = low + (word(seed, stream, i) % count);
  else if (kind === "key") value = word(seed, stream, i);
  else value = piece.numbers[Math.min(call, piece.numbers.length - 1)];
  if (dtype === "f16" || dtype === "bf16") return narrow(value, dtype);
  return WIDE.has(dtype) ? BigInt(value) : value;
}

function fill(array, piece, seed, call) {
  if (piece.stored !== undefined) {
    const bytes = fromBase64(piece.stored);
    new Uint8Array(array.buffer, array.byteOffset, array.byteLength).set(bytes);
  } else for (let i = 0; i < array.length; i++) array[i] = element(piece, seed, call, i);
}

function tables({ data, width }) {
  const view = new DataView(fromBase64(data).buffer);
  const count = view.byteLength / (2 + width);
  const multiple = (at) => (width === 4 ? view.getInt32(at, true) : Number(view.getBigInt64(at, true)));
  return (i) => ({ exponent: view.getInt16(2 * i, true), multiple: multiple(2 * count + width * i) });
}

/** Whether `got` is what is expected, with what is. */
function compare({ exponent, multiple }, got) {
  if (exponent === 32765) return { good: true };
  if (exponent === 32767) return { good: Number.isNaN(got), expected: NaN, tolerance: 0 };
  if (exponent === 32766) return { good: got === multiple * Infinity, expected: multiple * Infinity, tolerance: 0 };
  const [expected, tolerance] = [multiple * 2 ** exponent, 2 ** (exponent + 4)];
  return { good: Math.abs(got - expected) <= tolerance, expected, tolerance };
}

function fail(what, found) {
  const { result, call, index, expected, got, tolerance } = found;
  const where = index === undefined ? "" : ` at ${index}`;
  const numbers = expected === undefined ? "" : ` is ${got} (it must be ${expected}, within ${tolerance})`;
  throw new SelftestError(`${what} '${result}'${where}${numbers}, call ${call}`, found);
}

function checkResult(test, number, array, dtype, call, first, of) {
  const { sampled, count, sums } = test.kept[number];
  const result = test.results[number];
  const seed = test.seeds[call];
  for (let i = 0; i < count; i++) {
    const index = sampled ? word(seed, 2 ** 31 + number, i) % array.length : i;
    const got = Number(toNumber(array[index], dtype));
    const { good, expected, tolerance } = compare(of(first + i), got);
    if (!good) fail("an element of", { result, call, index, expected, got, tolerance });
  }
  for (let k = 0; k < sums; k++) {
    let got = 0;
    for (let i = 0; i < array.length; i++) {
      const x = Number(toNumber(array[i], dtype));
      got += word(seed, 2 ** 30 + 16 * number + k, i) & 1 ? -x : x;
    }
    const { good, expected, tolerance } = compare(of(first + count + k), got);
    if (!good) fail("the sum of", { result, call, index: k, expected, got, tolerance });
  }
  return count + sums;
}

/** What a leaf function works on: leaves between guards. */
class Leaves {
  constructor(update, test) {
    this.update = update;
    this.test = test;
    this.whole = {};
    for (const p of test.pieces) this.whole[p.name] = update.tensor(p.size + 2 * GUARD, p.dtype);
    for (const { view } of Object.values(this.whole)) view.fill(7);
    this.names = new Set(test.pieces.map((p) => p.name));
  }

  array({ name, size }) {
    return this.whole[name].view.subarray(GUARD, GUARD + size);
  }

  call(call) {
    const { pieces, numbers } = this.test;
    const hypers = Object.fromEntries(Object.entries(numbers).map(([name, values]) => [name, values[call]]));
    const given = this.update.update(Object.fromEntries(pieces.map((p) => [p.name, this.array(p)])), hypers);
    for (const { name, size } of pieces) {
      const { view } = this.whole[name];
      const outside = [...view.subarray(0, GUARD), ...view.subarray(GUARD + size)];
      if (outside.some((x) => x !== 7)) fail("memory has been written beside", { result: name, call });
    }
    return Object.fromEntries(Object.entries(given).map(([name, x]) => [name, Float64Array.of(x)]));
  }
}

/** What a whole program works on: its own arguments. */
class Arguments {
  constructor(step) {
    this.step = step;
  }

  array({ name }) {
    return this.step.arrays[name];
  }

  call() {
    const given = this.step.run();
    return Object.fromEntries(Object.entries(given).map(([name, x]) => [name, typeof x === "object" ? x : [x]]));
  }
}

/** Runs a self-test on what a package's `load` gives. Returns how much was compared.
 *
 * Throws a SelftestError with `result`, `call`, `index`, `expected`, `got` and `tolerance` where something is wrong. */
export function prove(module, test) {
  const memory = module.update ? new Leaves(module, test) : new Arguments(module);
  const of = tables(test);
  const kept = [];
  let compared = 0;
  for (const again of [false, true]) {
    let first = 0;
    test.seeds.forEach((seed, call) => {
      const seedOf = (piece) => (piece.again ? seed : test.seeds[0]);
      for (const piece of test.pieces) {
        if (call === 0 || piece.again) fill(memory.array(piece), piece, seedOf(piece), call);
      }
      const returned = memory.call(call);
      for (const piece of test.pieces) {
        if (piece.result !== null || piece.stored !== undefined) continue;
        const array = memory.array(piece);
        const index = array.findIndex((x, i) => x !== array.constructor.of(element(piece, seedOf(piece), call, i))[0]);
        if (index >= 0) fail("what is only to be read has been written:", { result: piece.name, call, index });
      }
      test.results.forEach((name, number) => {
        const piece = test.pieces.find((p) => p.result === number);
        const array = piece ? memory.array(piece) : returned[name];
        const bits = array.slice();
        if (again) {
          const before = kept[call * test.results.length + number];
          if (bits.some((x, i) => !Object.is(x, before[i]))) fail("other bits at the second time in", { result: name, call });
        } else {
          kept.push(bits);
          const count = checkResult(test, number, array, test.dtypes[number], call, first, of);
          [first, compared] = [first + count, compared + count];
        }
      });
    });
  }
  return { calls: test.seeds.length, results: test.results.length, compared };
}
