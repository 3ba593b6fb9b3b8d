// A bundle in JavaScript, timed for bench_export.py: in Node by lines of standard input, in a browser by `timed`.
//
//     node scripts/bench_export.mjs MODULE ONNXRUNTIME BUNDLE

const ROWS = 8; // golden examples that are repeated

/** Loads a bundle and gives a first answer. */
export async function loaded(Bundle, ort, source) {
  const bundle = await Bundle.load(source, { ort });
  await bundle.predict([bundle.golden[0].inputs]);
  return bundle;
}

/** The least and the median seconds of computing so many rows, and in Node the CPU seconds. In a browser, whose clock has steps of 0.1 ms, they are
 * those of the mean of some calls. */
export async function timed(bundle, rows, seconds) {
  const few = bundle.golden.slice(0, ROWS);
  const inputs = Array.from({ length: rows }, (_, row) => few[row % few.length].inputs);
  const tensors = bundle.signature.tensorsOf(inputs);
  bundle.signature.maxBatch = rows;
  const begun = performance.now();
  await bundle.run(tensors);
  const calls = globalThis.process ? 1 : Math.ceil(10 / (performance.now() - begun + 0.1));
  const taken = [];
  const cpu = globalThis.process?.cpuUsage();
  const until = performance.now() + 1000 * seconds;
  while (taken.length === 0 || performance.now() < until) {
    const start = performance.now();
    for (let call = 0; call < calls; call++) await bundle.run(tensors);
    taken.push((performance.now() - start) / 1000 / calls);
  }
  const { user, system } = globalThis.process?.cpuUsage(cpu) ?? {};
  const spent = globalThis.process ? (user + system) / 1e6 / taken.length : null;
  taken.sort((a, b) => a - b);
  return [taken[0], taken[taken.length >> 1], spent];
}

if (globalThis.process?.argv[2]) {
  const [module, runtime, path] = process.argv.slice(2);
  const { createRequire } = await import("node:module");
  const { createInterface } = await import("node:readline");
  const ort = createRequire(`${runtime}/`)("onnxruntime-node");
  const { Bundle } = await import(`${module}/index.js`);
  const { folder } = await import(`${module}/node.js`);
  const bundle = await loaded(Bundle, ort, folder(path));
  console.log("{}");
  for await (const line of createInterface({ input: process.stdin })) {
    const [rows, seconds] = line.split(" ").map(Number);
    console.log(JSON.stringify(await timed(bundle, rows, seconds)));
  }
}
