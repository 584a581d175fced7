// How long AdamW's update takes in WebAssembly: `node benchmarks/wasm.mjs FOLDER`, where FOLDER has packages from
// `optgen compile adamw --emit wasm -t TARGET -o FOLDER/NAME`, NAME as below. In a page: `measure("/FOLDER")`.
const CASES = [["scalar", 1], ["simd", 1], ["simd-f32", 1], ["threads", 1], ["threads", 2]];
const SIZES = [1_000, 10_000, 100_000, 1_000_000, 4_000_000];
const ROUNDS = 9;

/** Median microseconds of a call, by case and size; cases take turns, since machines are shared. */
export async function measure(folder) {
  const loaded = [];
  for (const [name, threads] of CASES) {
    const { load } = await import(`${folder}/${name}/index.js`);
    loaded.push([`${name} ${threads}`, await load(undefined, { threads })]);
  }
  loaded.push(["plain JavaScript", { update: plain, tensor: (n) => ({ view: new Float32Array(n), free() {} }) }]);
  const found = {};
  for (const size of SIZES) {
    const tensors = loaded.map(([, update]) => Object.fromEntries([..."wgmv"].map((n) => [n, update.tensor(size)])));
    for (const each of tensors) for (const tensor of Object.values(each)) tensor.view.fill(0.5);
    const times = loaded.map(() => []);
    const repeats = Math.max(3, Math.ceil(1e6 / size));
    for (let round = 0; round < ROUNDS; round++) {
      loaded.forEach(([, update], i) => {
        const start = performance.now();
        for (let k = 0; k < repeats; k++) update.update(tensors[i], { lr: 1e-3, step: 1 + round * repeats + k });
        times[i].push((1000 * (performance.now() - start)) / repeats);
      });
    }
    for (const each of tensors) for (const tensor of Object.values(each)) tensor.free();
    loaded.forEach(([name], i) => {
      const sorted = times[i].sort((a, b) => a - b);
      (found[name] ??= {})[size] = { median: sorted[ROUNDS >> 1], least: sorted[0] };
    });
  }
  for (const [, update] of loaded) update.close?.();
  return found;
}

/** The same update as one would write it by hand; its arithmetic is f64, too. */
function plain({ w, g, m, v }, { lr, step }) {
  [w, g, m, v] = [w.view, g.view, m.view, v.view];
  const [c1, c2] = [-Math.expm1(step * Math.log(0.9)), -Math.expm1(step * Math.log(0.999))];
  for (let i = 0; i < w.length; i++) {
    const x = g[i];
    const [a, b] = [0.9 * m[i] + 0.1 * x, 0.999 * v[i] + 0.001 * x * x];
    m[i] = a;
    v[i] = b;
    w[i] = w[i] * (1 - 0.01 * lr) - (lr * (a / c1)) / (Math.sqrt(b / c2) + 1e-8);
  }
}

if (typeof process !== "undefined" && process.argv[2]) {
  const { resolve } = await import("node:path");
  for (const [name, times] of Object.entries(await measure(resolve(process.argv[2])))) {
    const cells = Object.values(times).map(({ median, least }) => `${median.toFixed(1)} (${least.toFixed(1)})`);
    console.log(name.padEnd(18), cells.map((cell) => cell.padStart(18)).join(""));
  }
}
