// Threads: workers that share the module's memory and take workgroups from a common counter.
import { Library, compile } from "./library.js";
import { LibraryError } from "./memory.js";

// As the .wasm was linked: pages of 64 KB.
const MEMORY = { initial: 16, maximum: 16384, shared: true };
const STACK_BYTES = 65536;
// Fewer workgroups than these are done before another thread is awake.
const LEAST = 16;
const MOST_THREADS = 64;

/** Words of the block that threads speak through. NEXT has the round's number above the next workgroup's. */
export const [ROUND, NEXT, TOTAL, DONE, X, Y, KERNEL, FAILED, QUIT, WORDS] = Array(10).keys(); // WORDS is how many
const INDEX_BITS = 20;
const MOST_GROUPS = 2 ** INDEX_BITS - 1;

/** A library with a pool of threads. */
export async function startThreads(source, program, threads) {
  if (typeof SharedArrayBuffer === "undefined" || globalThis.crossOriginIsolated === false) {
    throw new LibraryError(
      "threads need a page that is cross-origin isolated: serve it with the headers Cross-Origin-Opener-Policy: " +
        "same-origin and Cross-Origin-Embedder-Policy: require-corp, or use a package for 'wasm'",
    );
  }
  threads ??= globalThis.navigator?.hardwareConcurrency ?? (await import("node:os")).availableParallelism();
  if (!Number.isInteger(threads) || threads < 1) {
    throw new LibraryError(`'threads' must be a whole number of at least 1 (got ${threads})`);
  }
  const module = await compile(source);
  const memory = new WebAssembly.Memory(MEMORY);
  const library = new Library(await WebAssembly.instantiate(module, { env: { memory } }), program, memory);
  library.pool = await Pool.start(module, memory, library, Math.min(threads, MOST_THREADS) - 1);
  return library;
}

class Pool {
  static async start(module, memory, library, count) {
    const block = library.memory.allocate(4 * WORDS);
    const pool = new Pool(library, new Int32Array(memory.buffer, block, WORDS).fill(0));
    const ready = Array.from({ length: count }, async () => {
      const worker = await newWorker();
      pool.workers.push(worker);
      const give = (bytes) => {
        const address = library.memory.allocate(bytes);
        library.bytes.fill(0, address, address + bytes);
        return address;
      };
      const stack = give(STACK_BYTES) + STACK_BYTES;
      const places = { stack, group: give(32), local: library.localBytes ? give(library.localBytes) : 0 };
      const { environment, state, localBytes } = library;
      const words = { block, environment, state, localBytes, ...places };
      const answer = new Promise((resolve, reject) => {
        worker.listen("message", resolve);
        worker.listen("error", (error) => reject(new LibraryError(`a thread cannot be started: ${error.message}`)));
      });
      worker.postMessage({ module, memory, words });
      await answer;
    });
    await Promise.all(ready);
    return pool;
  }

  constructor(library, block) {
    this.library = library;
    this.block = block;
    this.workers = [];
    this.round = 0;
  }

  /** Runs a kernel's workgroups on all threads; false where that is not worth it. */
  run(kernel, x, y, z) {
    const total = x * y * z;
    if (total < LEAST || total > MOST_GROUPS || !this.workers.length) return false;
    const { block, library } = this;
    this.round = (this.round + 1) & 0x7ff;
    // First there is nothing to take, for a thread that comes late from the last round and would read this one's total.
    Atomics.store(block, NEXT, (this.round << INDEX_BITS) | MOST_GROUPS);
    for (const [word, value] of [[TOTAL, total], [DONE, 0], [X, x], [Y, y], [KERNEL, kernel.pointer], [FAILED, 0]]) {
      Atomics.store(block, word, value);
    }
    Atomics.store(block, NEXT, this.round << INDEX_BITS);
    Atomics.store(block, ROUND, this.round);
    Atomics.notify(block, ROUND);
    take(block, this.round, library.data, library.group, (group) => kernel.run(library.environment, library.state, group));
    while (Atomics.load(block, DONE) < total); // others are at their last workgroups: too short a time to sleep
    if (Atomics.load(block, FAILED)) throw new LibraryError(`kernel '${kernel.name}' failed`);
    return true;
  }

  close() {
    Atomics.store(this.block, QUIT, 1);
    Atomics.store(this.block, ROUND, -1);
    Atomics.notify(this.block, ROUND);
    for (const worker of this.workers) worker.terminate();
    this.workers = [];
  }
}

/** Takes workgroups of a round, and runs them, until there are none. */
export function take(block, round, data, group, run) {
  const [total, x, y] = [TOTAL, X, Y].map((word) => Atomics.load(block, word));
  for (;;) {
    const next = Atomics.load(block, NEXT);
    const index = next & MOST_GROUPS;
    // A thread that comes late may find the counter of another round: it must not take from that.
    if (next >> INDEX_BITS !== round || index >= total) return;
    if (Atomics.compareExchange(block, NEXT, next, next + 1) !== next) continue;
    data.setUint32(group, index % x, true);
    data.setUint32(group + 4, Math.floor(index / x) % y, true);
    data.setUint16(group + 8, Math.floor(index / x / y), true);
    if (run(group)) Atomics.store(block, FAILED, 1);
    Atomics.add(block, DONE, 1);
  }
}

async function newWorker() {
  const url = new URL("./worker.js", import.meta.url);
  if (typeof process === "undefined" || !process.versions?.node) {
    const worker = new Worker(url, { type: "module" });
    worker.listen = (name, heard) => worker.addEventListener(name, heard, { once: true });
    return worker;
  }
  const { Worker: NodeWorker } = await import(/* webpackIgnore: true */ /* @vite-ignore */ "node:worker_threads");
  const worker = new NodeWorker(url);
  worker.listen = (name, heard) => worker.once(name, heard);
  worker.unref(); // a program may end without closing
  return worker;
}
