// Runs a package for test_native_wasm.py: a list of calls as JSON on stdin, what they gave as JSON on stdout.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const TYPES = { f32: Float32Array, f64: Float64Array, u16: Uint16Array, i32: Int32Array };
const decode = ({ type, data }) => new TYPES[type](new Uint8Array(Buffer.from(data, "base64")).buffer);
const encode = (array) => Buffer.from(array.buffer, array.byteOffset, array.byteLength).toString("base64");
const each = (object, f) => Object.fromEntries(Object.entries(object).map(([key, value]) => [key, f(value)]));

const actions = {
  update({ module }, { arrays, hypers }) {
    const given = each(arrays, decode);
    const scalars = module.update(given, hypers);
    return { arrays: each(given, encode), scalars };
  },
  inside({ module }, { arrays, hypers }) {
    const tensors = each(arrays, (array) => module.tensor(decode(array).length));
    for (const [name, tensor] of Object.entries(tensors)) tensor.set(decode(arrays[name]));
    const before = module.memoryBytes;
    const scalars = module.update(tensors, hypers);
    if (module.memoryBytes !== before) throw new Error("an update in place must not need memory");
    return { arrays: each(tensors, (tensor) => encode(tensor.view)), scalars };
  },
  tree({ module }, { params, grads, hypers }) {
    const optimizer = module.optimizer(each(params, decode));
    for (const [i, grad] of grads.entries()) optimizer.step(each(grad, decode), hypers[i]);
    const { arrays, ...rest } = optimizer.snapshot();
    return { ...rest, arrays: each(arrays, (leaves) => each(leaves, encode)) };
  },
  run({ module }, { set, calls }) {
    module.set(each(set, decode));
    const results = calls.map((call) => module.run(each(call, (v) => (typeof v === "number" ? v : decode(v)))));
    return { results, arrays: each(module.arrays, encode) };
  },
};

const { package: folder, calls } = JSON.parse(readFileSync(0, "utf8"));
const exported = await import(pathToFileURL(`${folder}/index.js`).href);
const module = await exported.load();
console.log(JSON.stringify(calls.map(({ action, ...call }) => actions[action]({ module }, call))));
