import type { Arrays, Dtype } from "./memory.js";

/** What a program takes. `shape` is null for a plain number. */
export interface Argument {
  readonly name: string;
  readonly dtype: Dtype;
  readonly shape: readonly number[] | null;
  /** Whether the program replaces it, in place. */
  readonly written: boolean;
  /** For numbers that are checked, and for state: what they must be, and what they are before the first step. */
  readonly limit?: Limit;
}
export interface Limit {
  readonly kind: "hyper" | "count" | "scalar" | "state";
  /** Null where the caller must say. */
  readonly first: number | null;
  readonly hyper?: string;
  readonly part?: "value" | "complement" | "log" | "low" | "high";
  readonly decay?: boolean;
  readonly signed?: boolean;
  readonly closed?: boolean;
}
/** What a program gives. `argument` is whose memory it is in; null where it is returned. */
export interface Result {
  readonly name: string;
  readonly dtype: Dtype;
  readonly shape: readonly number[] | null;
  readonly argument: string | null;
}
export interface Signature {
  readonly name: string;
  readonly arguments: readonly Argument[];
  readonly results: readonly Result[];
}

/** What differs between programs. */
export interface Types {
  arrays: Record<string, Arrays[Dtype]>;
  values: object;
  results: object;
}

/** A compiled program whose arguments stay in the module's memory from one call to the next. */
export class Step<T extends Types = Types> {
  private constructor();
  readonly signature: Signature;
  /** The arguments in the module's memory, flat, by name. They begin as zeros, numbers and state as what they are before
   * the first step; a hyperparameter without a default as NaN, which `run` refuses. */
  readonly arrays: Readonly<T["arrays"]>;
  /** Bytes of memory that the module holds. */
  readonly memoryBytes: number;
  /** Ends its threads, if it has any. It works on without them. */
  close(): void;
  /** Puts arguments into the module's memory. Throws an ArrayError or a HyperparameterError, and writes nothing, where
   * one is not what it must be. */
  set(values: Partial<T["values"]>): void;
  /** Throws a HyperparameterError, before anything is written, for a hyperparameter, a count of steps or scalar state
   * that was never given, is NaN or infinite, or out of range. Else runs on the arguments as they are, after `values` have been put into memory. Arguments that it writes are then new
   * in `arrays`; what else it gives is returned, numbers where there is one element and no axis, else copies. */
  run(values?: Partial<T["values"]>): T["results"];
}
