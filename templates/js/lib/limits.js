// What the numbers that a whole program takes must be: hyperparameters, counts of steps, scalar state.
import { ArrayError, HyperparameterError } from "./memory.js";

const MOST_STEPS = 2 ** 31 - 1;
// How far the parts of one decay rate may be from each other, by the type that they have been rounded to.
const APART = { f32: [2 ** -23, 2 ** -20], f64: [2 ** -52, 2 ** -48] };
const WHOLE = {
  i8: [-(2 ** 7), 2 ** 7 - 1], i16: [-(2 ** 15), 2 ** 15 - 1], i32: [-(2 ** 31), 2 ** 31 - 1],
  u8: [0, 2 ** 8 - 1], u16: [0, 2 ** 16 - 1], u32: [0, 2 ** 32 - 1], bool: [0, 1],
  f16: [0, 2 ** 16 - 1], bf16: [0, 2 ** 16 - 1], // as their bits
};

/** Throws unless `value` may be put where one element of a dtype is: no fraction, NaN or wrapped number is stored. */
export function checkElement(name, dtype, value) {
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
export function checkLimit(name, limit, value) {
  const refuse = (must) => {
    throw new HyperparameterError(`'${name}' must ${must} (got ${value})`);
  };
  if (limit.kind === "count") {
    if (!(Number.isInteger(value) && value >= 0 && value < MOST_STEPS)) refuse(`be a whole number in [0, ${MOST_STEPS})`);
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
export function checkParts(known, valueOf) {
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
    if (value && complement && !(Math.abs(rest - (1 - b)) <= apart)) wrong(complement, `1 - ${b}, as '${value.name}' is`);
    // 1 - b <= -log b <= (1 - b) / b
    if (complement && log) {
      const low = -l >= rest * (1 - far);
      const high = !value || -l * b <= rest * (1 + far);
      if (!low || !high) wrong(log, `the logarithm of ${value ? b : 1 - rest}`);
    }
  }
}
