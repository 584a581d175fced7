// What TypeScript must take and refuse, checked by test_native_wasm.py where there is a compiler.
import { ArrayError, load, rule } from "./adamw/index.js";
import { load as loadBaked } from "./baked/index.js";
import { load as loadThreads } from "./threads/index.js";

const update = await load();
const baked = (await loadBaked()).optimizer({ w: new Float32Array(3) });
baked.step(baked.grads); // nothing is required
baked.step(baked.grads, { beta1: 0.8 });
(await loadThreads(undefined, { threads: 2 })).close();
const optimizer = update.optimizer({ w: new Float32Array(3), b: new Float32Array(3) });
optimizer.step(optimizer.grads, { lr: 1 });
const params: Float32Array = optimizer.params.w;
const moments: Float32Array = optimizer.arrays.m.b;
const tensor = update.tensor(3);
tensor.view.fill(1);
const wide: Float64Array = update.tensor(3, "f64").view;
update.update({ w: tensor, g: new Float32Array(3), m: tensor, v: tensor }, { lr: 1, step: 1 });
console.log(params, moments, wide, rule.hypers, ArrayError);

// @ts-expect-error: the learning rate is missing
optimizer.step(optimizer.grads);
// @ts-expect-error: no number
optimizer.step(optimizer.grads, { lr: "1" });
// @ts-expect-error: a leaf is missing
optimizer.step({ w: new Float32Array(3) }, { lr: 1 });
// @ts-expect-error: the optimizer counts steps
optimizer.step(optimizer.grads, { lr: 1, step: 1 });
// @ts-expect-error: an operand is missing
update.update({ w: tensor, g: tensor, m: tensor }, { lr: 1, step: 1 });
// @ts-expect-error: another type
update.optimizer({ w: new Float64Array(3) });
// @ts-expect-error: no such leaf
optimizer.params.nothing;
// @ts-expect-error: no threads
load(undefined, { threads: 2 });
