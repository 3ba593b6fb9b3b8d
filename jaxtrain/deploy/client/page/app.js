// The page: loads the model, makes the form, shows what comes out and what it cost.

import { Bundle, decoderOf, sha256 } from "./client/index.js";
import { continuation } from "./continuation.js";
import { fieldOf, make } from "./fields.js";
import { show } from "./results.js";
import { chosen, LANGUAGES, number, say, size, speak } from "./words.js";

const ENGINES = { wasm: "WebAssembly", webgpu: "WebGPU" };
const LARGE = 4e6; // bytes of a model from which on a GPU is worth its start

const memories = []; // of WebAssembly, so that the page can say what it takes
WebAssembly.Memory = class extends WebAssembly.Memory {
  constructor(descriptor) {
    super(descriptor);
    memories.push(this);
  }
};

const element = (id) => document.getElementById(id);
const state = { times: [], bundle: null, fields: [], busy: false, again: false, started: performance.now() };

async function start() {
  element("served").hidden = true;
  element("loading").hidden = false;
  for (const [code, name] of Object.entries(LANGUAGES)) {
    element("language").append(make("option", { value: code, textContent: name }));
  }
  element("language").value = chosen();
  element("language").addEventListener("change", () => {
    speak(element("language").value);
    tellFacts();
    tellOffline();
  });
  speak(chosen());
  state.site = await (await fetch("site.json")).json();
  keepForLater();
  for (const graph of state.site.graphs) {
    element("graph").append(make("option", { value: graph, textContent: graph === "model.onnx" ? "float32" : "int8" }));
  }
  const engines = await enginesHere();
  for (const engine of engines) {
    element("engine").append(make("option", { value: engine, textContent: ENGINES[engine] }));
  }
  const large = state.site.files[`model/${state.site.graphs[0]}`].bytes >= LARGE;
  element("engine").value = engines.includes("webgpu") && large ? "webgpu" : "wasm";
  for (const choice of ["engine", "graph"]) element(choice).addEventListener("change", () => attempt(load));
  await load();
  await loadDecoder();
  makeForm();
  element("loading").hidden = true;
  element("work").hidden = false;
  await compute();
  state.first = performance.now() - state.started;
  tellFacts();
}

/** The engines of this browser. */
async function enginesHere() {
  const there = Object.hasOwn(state.site.files, "ort/ort.webgpu.js") && "gpu" in navigator;
  const adapter = there ? await navigator.gpu.requestAdapter().catch(() => null) : null;
  return adapter === null ? ["wasm"] : ["wasm", "webgpu"];
}

async function load() {
  const [engine, graph] = [element("engine").value, element("graph").value];
  try {
    state.bundle = await bundleOn(engine, graph);
    state.note = "";
  } catch (error) {
    if (engine === "wasm") throw error;
    element("engine").value = "wasm";
    state.bundle = await bundleOn("wasm", graph);
    state.note = `${say("failedGpu")} (${error.message})`;
  }
  state.times = [];
  if (state.fields.length > 0) await compute();
}

async function bundleOn(engine, graph) {
  element("stage").textContent = say("loadingRuntime");
  const ort = await import(`./ort/ort.${engine}.js`);
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary ??= await verified(state.site.wasm[engine]);
  element("stage").textContent = say("loadingModel");
  const session = { executionProviders: [engine], graphOptimizationLevel: "all" };
  return Bundle.load((name) => read(`model/${name}`), { ort, file: graph, session });
}

/** The bytes of a file of the page, which are those that were exported. */
async function verified(path) {
  const bytes = await read(path);
  if ((await sha256(bytes)) !== state.site.files[path].sha256) throw new Error(`${path} is not what was exported`);
  return bytes;
}

/** The bytes of a file, while the progress bar is moved. */
async function read(path) {
  const found = await fetch(path);
  if (!found.ok) throw new Error(`${path}: ${found.status} ${found.statusText}`);
  const bytes = new Uint8Array(state.site.files[path].bytes);
  let at = 0;
  for (const reader = found.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) return bytes.subarray(0, at);
    if (at + value.length > bytes.length) throw new Error(`${path} is longer than what was exported`);
    bytes.set(value, at);
    at += value.length;
    element("progress").value = at / bytes.length;
  }
}

/** Of a language model of token ids, what makes text of them, where it is known. */
async function loadDecoder() {
  const input = state.bundle.signature.inputs.find(({ kind }) => kind === "tokens");
  if (input === undefined) return;
  try {
    state.decode = decoderOf(await state.bundle.json(input.tokenizer));
  } catch {
    state.decode = undefined;
  }
}

function makeForm() {
  const { signature, golden } = state.bundle;
  state.fields = signature.inputs.map((input) => ({
    name: input.name,
    ...fieldOf(input, golden[0].inputs[input.name], () => {
      element("examples").value = "";
      compute();
    }),
  }));
  element("form").replaceChildren(...state.fields.map((each) => each.element));
  element("form").addEventListener("submit", (event) => event.preventDefault());
  const names = golden.map(({ name }, place) => make("option", { value: place, textContent: name }));
  const own = make("option", { value: "", textContent: say("own") });
  own.dataset.say = "own";
  element("examples").replaceChildren(own, ...names);
  element("examples").addEventListener("change", () => {
    const example = golden[Number(element("examples").value)];
    if (element("examples").value === "") return;
    setAll(example.inputs);
    compute();
  });
  element("examples").value = "0";
  setAll(golden[0].inputs);
  const generated = continuation(state, setAll, compute);
  element("continue").hidden = generated === null;
  if (generated !== null) element("continue").replaceChildren(generated);
}

function setAll(inputs) {
  for (const each of state.fields) each.set(inputs[each.name] ?? null);
}

/** The answer for what the form holds; while one is computed, the last change waits. */
async function compute() {
  if (state.busy) {
    state.again = true;
    return;
  }
  state.busy = true;
  do {
    state.again = false;
    await attempt(computeOnce, element("mistake"));
    await new Promise((resolve) => setTimeout(resolve));
  } while (state.again);
  state.busy = false;
}

async function computeOnce() {
  const row = Object.fromEntries(state.fields.map((each) => [each.name, each.value()]));
  const from = performance.now();
  const [answer] = await state.bundle.answers([row]);
  state.times.push(performance.now() - from);
  element("mistake").textContent = "";
  show(element("output"), state.bundle.signature, answer, tokenText);
  tellFacts();
}

/** A token as text: of a byte its letter, else by the tokenizer where it has a decoder. */
function tokenText(token) {
  const input = state.bundle.signature.inputs[0];
  if (input.kind === "text") return token > 32 && token < 127 ? String.fromCharCode(token) : `0x${token.toString(16)}`;
  return state.decode === undefined ? String(token) : JSON.stringify(state.decode([token]));
}

async function attempt(action, where = element("fault")) {
  try {
    await action();
    where.textContent = "";
    if (where === element("fault")) where.hidden = true;
  } catch (error) {
    where.textContent = error.message;
    where.hidden = false;
    element("loading").hidden = true;
    console.error(error);
  }
}

function tellFacts() {
  if (state.bundle === null || state.times.length === 0) return;
  const sorted = [...state.times].sort((a, b) => a - b);
  const engine = element("engine").value;
  const memory = memories.reduce((sum, each) => sum + each.buffer.byteLength, 0);
  const facts = [
    [say("latency"), `${number(state.times.at(-1))} ms`],
    [say("median", { n: sorted.length }), `${number(sorted[sorted.length >> 1])} ms`],
    [say("loaded"), state.first === undefined ? "…" : `${number(state.first / 1000)} s`],
    [say("size"), size(state.bundle.bytes)],
    [say("runtime"), size(state.site.files[state.site.wasm[engine]].bytes)],
    [say("memory"), size(memory)],
    [say("golden", { n: state.bundle.golden.length }), state.bundle.difference.toExponential(1)],
  ];
  if (state.note) facts.push([ENGINES.webgpu, state.note]);
  const entries = facts.map(([name, value]) =>
    make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: value })),
  );
  element("facts").replaceChildren(...entries);
}

async function keepForLater() {
  try {
    await navigator.serviceWorker.register("offline.js");
    await navigator.serviceWorker.ready;
    state.offline = true;
  } catch {
    state.offline = false;
  }
  tellOffline();
}

function tellOffline() {
  if (state.offline !== undefined) element("offline").textContent = say(state.offline ? "offline" : "online");
}

attempt(start);
