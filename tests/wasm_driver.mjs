// Runs packages for the tests: a call as JSON on each line of stdin, what it gave as JSON on a line of stdout.
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";
import { runInThisContext } from "node:vm";

const TYPES = { f32: Float32Array, f64: Float64Array, u16: Uint16Array, i32: Int32Array };
const decode = ({ type, data }) => new TYPES[type](new Uint8Array(Buffer.from(data, "base64")).buffer);
const encode = (array) => Buffer.from(array.buffer, array.byteOffset, array.byteLength).toString("base64");
const each = (object, f) => Object.fromEntries(Object.entries(object).map(([key, value]) => [key, f(value)]));

const actions = {
  // Typed arrays from outside, which are copied in and back.
  update(module, { arrays, hypers }) {
    const given = each(arrays, decode);
    const scalars = module.update(given, hypers);
    return { arrays: each(given, encode), scalars };
  },
  // Tensors in the module's memory.
  inside(module, { arrays, hypers }) {
    const given = each(arrays, decode);
    const dtypes = Object.fromEntries(module.rule.operands.map((o) => [o.name, o.dtype]));
    const tensors = Object.fromEntries(Object.keys(given).map((n) => [n, module.tensor(given[n].length, dtypes[n])]));
    for (const [name, tensor] of Object.entries(tensors)) tensor.set(given[name]);
    const before = module.memoryBytes;
    const scalars = module.update(tensors, hypers);
    if (module.memoryBytes !== before) throw new Error("an update in place must not need memory");
    const found = { arrays: each(tensors, (tensor) => encode(tensor.view)), scalars };
    for (const tensor of Object.values(tensors)) tensor.free();
    return found;
  },
  // A tree of leaves, for some steps.
  tree(module, { params, grads, hypers }) {
    const optimizer = module.optimizer(each(params, decode));
    for (const [i, grad] of grads.entries()) optimizer.step(each(grad, decode), hypers[i]);
    const { arrays, ...rest } = optimizer.snapshot();
    return { ...rest, arrays: each(arrays, (leaves) => each(leaves, encode)) };
  },
  // A program of fixed shapes.
  run(module, { set, calls }) {
    module.set(each(set, decode));
    const results = calls.map((call) => module.run(each(call, (v) => (typeof v === "number" ? v : decode(v)))));
    return { results: results.map((r) => each(r, (v) => (typeof v === "number" ? v : encode(v)))),
      arrays: each(module.arrays, encode) };
  },
  // Whatever a test wants to know: the value of an async function's body, in which `package_` is what is exported.
  async js(module, { body }, exported) {
    const AsyncFunction = (async () => {}).constructor;
    try {
      return { value: await new AsyncFunction("module", "package_", body)(module, exported) };
    } catch (error) {
      return { error: error.name, message: error.message, known: error instanceof exported.OptgenError };
    }
  },
};

const loaded = new Map();
async function load(folder, script) {
  const key = `${folder} ${script}`;
  if (!loaded.has(key)) {
    let exported;
    if (script) {
      runInThisContext(readFileSync(`${folder}/${script}.script.js`, "utf8"));
      exported = globalThis[script];
    } else exported = await import(pathToFileURL(`${folder}/index.js`).href);
    loaded.set(key, [exported, await exported.load()]);
  }
  return loaded.get(key);
}

for await (const line of createInterface({ input: process.stdin })) {
  const { package: folder, script, action, ...call } = JSON.parse(line);
  let answer;
  try {
    const [exported, module] = await load(folder, script);
    answer = await actions[action](module, call, exported);
  } catch (error) {
    answer = { thrown: String(error.stack ?? error) };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
