/** How a module with threads is loaded. */
export interface Threads {
  /** With that of the caller; as many as the processor has, if not said. */
  threads?: number;
}
