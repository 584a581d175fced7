/** What {@link load} takes instead of the .wasm beside it. */
export type Source = BufferSource | WebAssembly.Module | Response | URL | string;
