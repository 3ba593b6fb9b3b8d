// A trained model in a folder that jaxtrain exported: verified, and computed by ONNX Runtime.

import { abbreviated, ConfigError, Damaged, quoted } from "./errors.js";
import { Generator, tokensOf } from "./generate.js";
import { firstDifference, goldenExamples, largestDifference } from "./golden.js";
import { sealedText } from "./seal.js";
import { checkFormat, Signature } from "./signature.js";
import { tokenizerOf } from "./tokenizer.js";
import { isFileName, isObject, zeros } from "./values.js";

const TOLERANCE = 1e-4; // of outputs in f32, and the same share of them

const NO_ARRAYS = ["float16", "bfloat16"]; // whose bits would be shown as numbers

export class Bundle {
  /**
   * Loads a version folder. Every file that is read is compared with its hash, and the golden examples are computed.
   *
   * source: the URL of the folder, or a function from the name of a file to its bytes.
   * options.ort: the module onnxruntime-web or onnxruntime-node.
   * options.file: of the graph, model.onnx by default; model.int8.onnx is smaller.
   * options.session: options of ONNX Runtime's session, such as executionProviders.
   *
   * Throws ConfigError for what is no bundle or a newer format, and Damaged for a file that is not what was exported
   * and for a golden example whose outputs are others.
   */
  static async load(source, { ort, file = "model.onnx", session = {} } = {}) {
    if (ort?.InferenceSession === undefined) {
      throw new ConfigError("give ONNX Runtime as the option `ort`: npm install onnxruntime-node, or onnxruntime-web");
    }
    const bundle = new Bundle(reader(source), ort, file, session);
    await bundle.readFiles();
    const graph = await bundle.verified(file);
    try {
      bundle.session = await ort.InferenceSession.create(graph, session);
    } catch (error) {
      throw new Damaged(file, `ONNX Runtime does not load it (${error?.message ?? error})`);
    }
    bundle.bytes = graph.length;
    bundle.checkNames();
    await bundle.replay();
    return bundle;
  }

  constructor(read, ort, file, options) {
    this.read = read;
    this.ort = ort;
    this.file = file;
    this.options = options;
  }

  async readFiles() {
    const manifest = await this.read("manifest.json");
    this.manifest = parsed(manifest, "manifest.json");
    if (!isObject(this.manifest) || !isObject(this.manifest.files)) {
      throw new Damaged("manifest.json", "it is not what was written: it names no files");
    }
    checkFormat(this.manifest, "manifest.json");
    await checkSeal(manifest, this.manifest.sha256);
    this.signature = new Signature(await this.json("signature.json"), "signature.json");
    if (this.signature.name !== this.manifest.name) {
      throw new Damaged("signature.json", "it is of another model than manifest.json");
    }
    for (const { name, dtype } of this.signature.outputs) {
      if (NO_ARRAYS.includes(dtype)) throw new ConfigError(`JavaScript has no ${dtype} for outputs, the dtype of ${name}`);
    }
    for (const each of this.signature.inputs) {
      if (each.kind === "tokens") each.encode = tokenizerOf(await this.json(each.tokenizer), each.tokenizer);
    }
    this.golden = goldenExamples(await this.json("golden.json"), this.signature, "golden.json");
    this.tolerance = TOLERANCE;
    if (this.isInt8()) this.tolerance = await this.int8Tolerance();
  }

  isInt8() {
    return this.file === "model.int8.onnx";
  }

  /** How far outputs in int8 may be from the golden ones, as measured by the export. */
  async int8Tolerance() {
    const found = (await this.json("metrics.json"))?.int8_tolerance;
    if (typeof found !== "number" || !(found >= 0 && found <= 1e9)) {
      throw new Damaged("metrics.json", `its 'int8_tolerance' is ${abbreviated(found)}`);
    }
    return found;
  }

  /** The value of a file of JSON. */
  async json(name) {
    return parsed(await this.verified(name), name);
  }

  /** The content of a file. Throws Damaged where it is not what was exported. */
  async verified(name) {
    const known = Object.hasOwn(this.manifest.files, name) ? this.manifest.files[name] : undefined;
    if (known === undefined) throw new ConfigError(`the bundle has no ${name}: export it again where it can be made`);
    if (!isFileName(name) || !isObject(known)) throw new Damaged("manifest.json", `what it says of ${quoted(name)} is none`);
    const content = await this.read(name);
    if (content.length !== known.bytes) {
      throw new Damaged(name, `it has ${content.length} bytes, of ${known.bytes} that were written`);
    }
    if ((await sha256(content)) !== known.sha256) {
      throw new Damaged(name, "its bytes are not those that were written: its sha256 differs");
    }
    return content;
  }

  /**
   * The outputs, {dtype, shape, data} by name with rows first, of raw inputs: rows by name, bare values of the one
   * input, or columns. Throws ConfigError, naming row and input, for what the signature does not take.
   */
  async predict(values) {
    return this.run(this.signature.tensorsOf(this.signature.rows(values)));
  }

  /** For each raw input, its outputs by name: numbers by class where there are classes, else nested lists. */
  async answers(values) {
    const outputs = await this.predict(values);
    const rows = Object.values(outputs)[0].shape[0];
    return Array.from({ length: rows }, (_, row) =>
      Object.fromEntries(this.signature.outputs.map((each) => [each.name, named(each, outputs[each.name], row)])),
    );
  }

  /** Whether `generate` works: for a language model with a cache, whose graphs could be made in ONNX. */
  get generates() {
    return this.signature.generation !== null && Object.hasOwn(this.manifest.files, "decode.onnx");
  }

  /**
   * The text that follows a prompt, as it comes: {token, text} for each token, where text is what became certain by it,
   * and {token: null, text} for a rest. The first call loads the graphs and computes the golden texts.
   *
   * options: tokens, temperature (0 takes the likeliest token each time), topK, topP, minP, seed, stop (texts).
   *
   * Throws ConfigError for a bundle that does not continue texts and for what does not fit, and Damaged as `load` does.
   */
  async *generate(prompt, options = {}) {
    if (!this.generates) {
      const why = this.signature.generation === null ? "it is of no language model with a cache" : "none of ONNX could be made";
      throw new ConfigError(`the bundle has no graphs that continue texts: ${why}`);
    }
    this.generator ??= Generator.load(this).catch((error) => {
      this.generator = undefined;
      throw error;
    });
    yield* (await this.generator).pieces(prompt, options);
  }

  /** The token ids of a prompt of `generate`. */
  tokensOf(prompt) {
    return tokensOf(prompt, this.signature.inputs[0], this.signature.generation);
  }

  /**
   * The outputs for tensors, at most `max_batch` rows at a time; in int8 one, since the activations of a call have one
   * scale, so that rows would change each other.
   */
  async run(tensors) {
    const rows = Object.values(tensors)[0].shape[0];
    const most = this.isInt8() ? 1 : this.signature.maxBatch;
    const parts = [];
    for (let start = 0; start < rows; start += most) {
      const stop = Math.min(rows, start + most);
      const feeds = {};
      for (const [name, { dtype, shape, data }] of Object.entries(tensors)) {
        const row = data.length / rows;
        feeds[name] = new this.ort.Tensor(dtype, data.slice(start * row, stop * row), [stop - start, ...shape.slice(1)]);
      }
      parts.push(await this.session.run(feeds));
    }
    const found = {};
    for (const { name, dtype, shape } of this.signature.outputs) {
      const row = shape.reduce((a, b) => a * b, 1);
      const data = zeros(dtype, rows * row);
      let at = 0;
      for (const part of parts) {
        const { data: more } = part[this.nameInGraph(name)];
        data.set(more, at);
        at += more.length;
      }
      found[name] = { dtype, shape: [rows, ...shape], data };
    }
    return found;
  }

  /** Computes the golden examples. Throws Damaged, with the first difference, where an output is another. */
  async replay() {
    const outputs = await this.run(this.signature.tensorsOf(this.golden.map((each) => each.inputs)));
    const difference = firstDifference(this.golden, outputs, this.tolerance);
    if (difference !== "") {
      const why = "this runtime or device computes something else than the model that was exported";
      throw new Damaged(this.file, `${difference}: ${why}`);
    }
    this.difference = largestDifference(this.golden, outputs);
  }

  /** The name that an output has in the graph: another one where an input has the same. */
  nameInGraph(output) {
    return this.signature.tensors.some(({ name }) => name === output) ? `output/${output}` : output;
  }

  checkNames() {
    for (const [names, wanted] of [
      [this.session.inputNames, this.signature.tensors.map(({ name }) => name)],
      [this.session.outputNames, this.signature.outputs.map(({ name }) => this.nameInGraph(name))],
    ]) {
      if (names.length !== wanted.length || !wanted.every((name) => names.includes(name))) {
        throw new Damaged(this.file, `it takes or gives ${names.join(", ")}, and signature.json says something else`);
      }
    }
  }
}

/** One row of an output: numbers by class where there are classes, else nested lists. */
function named({ classes, shape }, { data }, row) {
  const size = shape.reduce((a, b) => a * b, 1);
  const numbers = Array.from(data.subarray(row * size, (row + 1) * size), Number);
  if (classes.length > 0) return Object.fromEntries(classes.map((name, place) => [name, numbers[place]]));
  const nested = (dims, start) => {
    if (dims.length === 0) return numbers[start];
    const step = dims.slice(1).reduce((a, b) => a * b, 1);
    return Array.from({ length: dims[0] }, (_, place) => nested(dims.slice(1), start + place * step));
  };
  return nested(shape, 0);
}

/** A function from the name of a file to its bytes. */
function reader(source) {
  if (typeof source === "function") return source;
  const base = String(source).replace(/\/?$/, "/");
  return async (name) => {
    const answer = await fetch(base + name);
    if (!answer.ok) throw new ConfigError(`${base}${name} cannot be read: ${answer.status} ${answer.statusText}`);
    return new Uint8Array(await answer.arrayBuffer());
  };
}

/** Throws Damaged for a manifest that is not what was written. */
async function checkSeal(manifest, seal) {
  let found;
  try {
    found = await sha256(new TextEncoder().encode(sealedText(new TextDecoder().decode(manifest))));
  } catch (error) {
    if (!(error instanceof RangeError)) throw error; // nested deeper than the stack
  }
  if (found !== seal || found === undefined) {
    throw new Damaged("manifest.json", "it is not what was written: its checksum differs");
  }
}

function parsed(bytes, name) {
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes));
  } catch (error) {
    throw new Damaged(name, `it is not what was written (${error.message})`);
  }
}

/** The sha256 of bytes, 64 hexadecimal digits. */
export async function sha256(bytes) {
  if (globalThis.crypto?.subtle === undefined) {
    throw new ConfigError("this page cannot verify its files: open it by https, or from localhost");
  }
  const found = await crypto.subtle.digest("SHA-256", bytes);
  return Array.from(new Uint8Array(found), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
