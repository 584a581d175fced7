/** Base of every error that these modules raise on purpose. */
export class OptgenError extends Error {}
/** The .wasm and the JavaScript beside it do not belong together, or this engine cannot run it. */
export class LibraryError extends OptgenError {}
/** An array is missing, has the wrong length or element type, is detached, or overlaps another. */
export class ArrayError extends OptgenError {}
/** A hyperparameter is unknown, missing, not finite, or outside the range that its rule allows. */
export class HyperparameterError extends OptgenError {}

/** The typed array that holds elements of each dtype: f16 and bf16 are held as their bits. */
export interface Arrays {
  f32: Float32Array;
  f64: Float64Array;
  f16: Uint16Array;
  bf16: Uint16Array;
  bool: Uint8Array;
  i8: Int8Array;
  u8: Uint8Array;
  i16: Int16Array;
  u16: Uint16Array;
  i32: Int32Array;
  u32: Uint32Array;
  i64: BigInt64Array;
  u64: BigUint64Array;
}
export type Dtype = keyof Arrays;

/** An array in the module's memory, which kernels work on in place. */
export class Tensor<D extends Dtype = Dtype> {
  private constructor();
  readonly dtype: D;
  readonly shape: readonly number[];
  readonly length: number;
  readonly byteLength: number;
  /** Its elements. Read it anew after whatever may have made memory grow: older views are detached then. */
  get view(): Arrays[D];
  /** Copies an array of the same type and length into it. Throws an {@link ArrayError} for any other. */
  set(source: Arrays[D], name?: string): void;
  /** Hands its memory back. It must not be used any more. */
  free(): void;
}
