import type { Arrays, Dtype } from "./memory.js";

/** What a program takes. `shape` is null for a plain number. */
export interface Argument {
  readonly name: string;
  readonly dtype: Dtype;
  readonly shape: readonly number[] | null;
  /** Whether the program replaces it, in place. */
  readonly written: boolean;
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
  /** The arguments in the module's memory, flat, by name. All begin as zeros. */
  readonly arrays: Readonly<T["arrays"]>;
  /** Bytes of memory that the module holds. */
  readonly memoryBytes: number;
  /** Ends its threads, if it has any. It works on without them. */
  close(): void;
  /** Puts arguments into the module's memory. Throws an ArrayError, and writes nothing, where one does not fit. */
  set(values: Partial<T["values"]>): void;
  /** Runs on the arguments as they are, after `values` have been put into memory. Arguments that it writes are then new
   * in `arrays`; what else it gives is returned, numbers where there is one element and no axis, else copies. */
  run(values?: Partial<T["values"]>): T["results"];
}
