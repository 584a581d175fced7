// Hyperparameters: checked, and the numbers that kernels are given for them.
import { HyperparameterError } from "./memory.js";

// Stands for log 0: finite, so that 0 * log is 0, and so low that exp of any multiple is 0.
const LOG_OF_ZERO = -1e4;
const PARTS = {
  value: (x) => x,
  complement: (x) => 1 - x,
  log: (x) => (x > 0 ? Math.log(x) : LOG_OF_ZERO),
};

/** The numbers that kernels are given: those of `hypers`, checked, and defaults for the rest. */
export function numbersOf(rule, hypers) {
  const known = rule.hypers;
  checkObject(hypers);
  for (const name of Object.keys(hypers)) {
    if (!Object.hasOwn(known, name) && !Object.hasOwn(rule.scalars, name)) {
      const has = [...Object.keys(known), ...Object.keys(rule.scalars)].join(", ") || "none";
      throw new HyperparameterError(`'${rule.name}' has no hyperparameter '${name}' (it has ${has})`);
    }
  }
  return rule.numbers.map(([name, part]) => {
    if (!Object.hasOwn(known, name)) return checkNumber(name, hypers[name] ?? rule.scalars[name]);
    return PARTS[part](checkHyper(name, known[name], hypers[name] ?? known[name].default));
  });
}

/** What each state operand holds before the first step: a number, or "param". */
export function initialOf(rule, hypers) {
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

/** Throws unless `hypers` may hold hyperparameters. */
export function checkObject(hypers) {
  if (typeof hypers !== "object" || hypers === null) {
    throw new HyperparameterError(`hyperparameters must be an object (got ${hypers})`);
  }
}

/** Throws unless `count` may be that of an optimizer's updates: it is one less than the number of the next. */
export function checkCount(count) {
  if (!Number.isSafeInteger(count) || count < 0) {
    throw new HyperparameterError(`'stepCount' must be a whole number of at least 0 (got ${count})`);
  }
}

/** Throws unless `scalars` has each number of a rule's scalar state. */
export function checkScalars(rule, scalars) {
  for (const name of Object.keys(rule.scalars)) checkNumber(name, scalars?.[name]);
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
