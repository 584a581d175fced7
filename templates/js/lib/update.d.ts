import type { Arrays, Dtype, Tensor } from "./memory.js";

/** A tensor argument of a rule. */
export interface Operand {
  readonly name: string;
  readonly dtype: Dtype;
  /** Whether updates replace it. */
  readonly written: boolean;
}
/** A number that a rule takes at run time. */
export interface Hyper {
  readonly kind: "scalar" | "decay" | "step";
  /** null where it must be given. */
  readonly default: number | null;
  /** Whether it may be negative. */
  readonly signed: boolean;
  /** Whether a decay rate may be 1, or a step 0. */
  readonly closed: boolean;
}
/** What a package says of its rule. */
export interface Rule {
  readonly name: string;
  readonly source: string;
  /** The param first, then the grad, other inputs and state. */
  readonly operands: readonly Operand[];
  readonly hypers: Readonly<Record<string, Hyper>>;
  /** Scalar state, with its numbers before the first step. */
  readonly scalars: Readonly<Record<string, number>>;
  /** What state holds before the first step, where not zero. */
  readonly init: Readonly<Record<string, number | string>>;
  /** Whether a leaf's elements depend on one another. */
  readonly leafwise: boolean;
}

/** What differs between rules: dtypes of param, grad and all operands by name, hyperparameters, scalar state. */
export interface Types {
  param: Dtype;
  grad: Dtype;
  operands: Record<string, Dtype>;
  hypers: object;
  step: object;
  initial: object;
  scalars: Record<string, number>;
}
/** An argument that may be left out where nothing in it is required. */
type Numbers<H> = {} extends H ? [hypers?: H] : [hypers: H];
type Leaves<K extends string, D extends Dtype> = Readonly<Record<K, Arrays[D]>>;

/** A compiled update rule. */
export class Update<T extends Types = Types> {
  private constructor();
  readonly rule: Rule;
  /** Bytes of memory that the module holds. */
  readonly memoryBytes: number;
  /** Ends its threads, if it has any. It works on without them. */
  close(): void;
  /** An array of zeros in the module's memory, which `update` works on without copying. */
  tensor(length: number): Tensor<T["param"]>;
  tensor<D extends Dtype>(length: number, dtype: D): Tensor<D>;
  /** Updates one leaf in place, and returns the new scalar state. Tensors, and views of them, are worked on where they
   * are; other arrays are copied in, and back where they are written. Where anything is wrong nothing is written. */
  update(
    arrays: { readonly [N in keyof T["operands"]]: Arrays[T["operands"][N]] | Tensor<T["operands"][N]> },
    ...hypers: Numbers<T["hypers"]>
  ): T["scalars"];
  /** An optimizer of these params, which are copied into the module's memory. */
  optimizer<K extends string>(params: Readonly<Record<K, Arrays[T["param"]]>>, hypers?: T["initial"]): Optimizer<K, T>;
}

/** A tree of leaves, all in the module's memory: params, grads and state. */
export class Optimizer<K extends string = string, T extends Types = Types> {
  private constructor();
  /** Updates made so far. */
  stepCount: number;
  /** Scalar state by name. */
  scalars: T["scalars"];
  /** Arrays by operand and leaf, `arrays.m.w1`: views of the module's memory. */
  readonly arrays: { readonly [N in keyof T["operands"]]: Leaves<K, T["operands"][N]> };
  /** The params, as they are now. */
  readonly params: Leaves<K, T["param"]>;
  /** Where grads may be written to, so that `step` need not copy them. */
  readonly grads: Leaves<K, T["grad"]>;
  /** Updates the params in place. `optimizer.grads` itself is not copied. */
  step(grads: Leaves<K, T["grad"]>, ...hypers: Numbers<T["step"]>): void;
  /** Copies of everything that the next steps depend on. */
  snapshot(): Snapshot;
  /** Goes back to what a snapshot holds. */
  restore(snapshot: Snapshot): void;
  /** Hands its memory back to the module. Its arrays must not be used any more. */
  free(): void;
}

/** What {@link Optimizer.snapshot} returns: plain objects of numbers and typed arrays. */
export interface Snapshot {
  stepCount: number;
  scalars: Record<string, number>;
  arrays: Record<string, Record<string, Arrays[Dtype]>>;
}
