// A thread: an instance of its own on the shared memory. It sleeps until there is a round, and takes workgroups.
import { KERNEL, QUIT, ROUND, WORDS, take } from "./threads.js";

// How often it looks for the next round before it sleeps: some tens of microseconds.
const LOOKS = 2000;

const node = typeof process !== "undefined" && process.versions?.node;
const port = node ? (await import(/* webpackIgnore: true */ /* @vite-ignore */ "node:worker_threads")).parentPort : globalThis;
if (node) port.once("message", serve);
else port.addEventListener("message", (event) => serve(event.data), { once: true });

async function serve({ module, memory, words }) {
  const { exports } = await WebAssembly.instantiate(module, { env: { memory } });
  exports.__stack_pointer.value = words.stack;
  const block = new Int32Array(memory.buffer, words.block, WORDS);
  const data = new DataView(memory.buffer, 0, memory.buffer.byteLength); // its own places lie in what is there now
  data.setUint32(words.group + 16, words.local, true);
  data.setUint32(words.group + 20, words.localBytes, true);
  let round = Atomics.load(block, ROUND);
  port.postMessage("ready");
  for (;;) {
    for (let i = 0; i < LOOKS && Atomics.load(block, ROUND) === round; i++);
    Atomics.wait(block, ROUND, round);
    round = Atomics.load(block, ROUND);
    if (Atomics.load(block, QUIT)) return;
    const run = exports.__indirect_function_table.get(Atomics.load(block, KERNEL));
    take(block, round, data, words.group, (group) => run(words.environment, words.state, group));
  }
}
