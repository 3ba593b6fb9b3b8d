// Continues texts by a bundle's prefill and decode graphs: the cache that one gives is what the next one takes.

import { abbreviated, ConfigError, Damaged, quoted, repr } from "./errors.js";
import { goldenTexts } from "./golden.js";
import { decoderOf } from "./tokenizer.js";
import { utf8 } from "./values.js";

const WEIGHTS = "weights.safetensors";
const TOKENS = 200;
const UNFINISHED = /\ufffd+$/; // what the first bytes of a letter become whose others are yet to come

/** The two graphs of a bundle, each compared with its hash, and both with the golden texts on this device. */
export class Generator {
  static async load(bundle) {
    const made = new Generator();
    made.ort = bundle.ort;
    made.generation = bundle.signature.generation;
    made.input = bundle.signature.inputs[0];
    made.decode = made.input.kind === "text" ? bytesToText : decoderOf(await bundle.json(made.input.tokenizer));
    // One row at a time is no work for a GPU, which would copy the cache to and fro.
    const { executionProviders: _, ...session } = bundle.options;
    const externalData = [{ path: WEIGHTS, data: await bundle.verified(WEIGHTS) }];
    made.graphs = {};
    for (const name of ["prefill", "decode"]) {
      const [file, graph] = [`${name}.onnx`, await bundle.verified(`${name}.onnx`)];
      try {
        made.graphs[name] = await bundle.ort.InferenceSession.create(graph, { ...session, externalData });
      } catch (error) {
        throw new Damaged(file, `ONNX Runtime does not load it (${error?.message ?? error})`);
      }
      made.checkNames(name, file);
    }
    await made.replay(goldenTexts(await bundle.json("golden.json"), made.generation, "golden.json"));
    return made;
  }

  /** The pieces of text that follow a prompt, as `Bundle.generate` has them. */
  async *pieces(prompt, given) {
    const { generation, input } = this;
    const ids = tokensOf(prompt, input, generation);
    const options = checked(given, ids.length, generation.context);
    const text = new TextStream(this.decode, ids, options.stop);
    const random = options.seed === undefined ? Math.random : seeded(options.seed);
    let cached = await this.prefill(ids);
    for (let n = 0; n < options.tokens; n++) {
      if (n > 0) cached = await this.add(cached, text.last);
      const token = draw(cached.logits.subarray(0, generation.vocab), options, random);
      if (token === generation.stop) break;
      yield { token, text: text.add(token) };
      if (text.stopped) return;
    }
    const rest = text.end();
    if (rest !== "") yield { token: null, text: rest };
  }

  async prefill(ids) {
    const padded = new Int32Array(this.generation.prompt);
    padded.set(ids);
    return this.run("prefill", {
      tokens: new this.ort.Tensor("int32", padded, [1, padded.length]),
      lengths: new this.ort.Tensor("int32", Int32Array.of(ids.length), [1]),
    });
  }

  /** What the graph gives after one further token. */
  async add({ cache }, token) {
    return this.run("decode", { token: new this.ort.Tensor("int32", Int32Array.of(token), [1]), ...cache });
  }

  async run(graph, feeds) {
    const made = await this.graphs[graph].run(feeds);
    const found = this.outputsOf(graph).map(({ name, inGraph }) => [name, made[inGraph]]);
    const { logits, ...cache } = Object.fromEntries(found);
    return { logits: logits.data, cache };
  }

  /** The outputs of a graph, and the names that they have there: others where an input has the same. */
  outputsOf(graph) {
    const inputs = this.generation[`${graph}_inputs`].map(({ name }) => name);
    return this.generation[`${graph}_outputs`].map(({ name }) => ({
      name,
      inGraph: inputs.includes(name) ? `output/${name}` : name,
    }));
  }

  checkNames(graph, file) {
    for (const [names, wanted] of [
      [this.graphs[graph].inputNames, this.generation[`${graph}_inputs`].map(({ name }) => name)],
      [this.graphs[graph].outputNames, this.outputsOf(graph).map(({ inGraph }) => inGraph)],
    ]) {
      if (names.length !== wanted.length || !wanted.every((name) => names.includes(name))) {
        throw new Damaged(file, "it takes or gives other arrays than signature.json says");
      }
    }
  }

  /** Computes the golden texts. Throws Damaged, with the first difference. */
  async replay(texts) {
    const why = "this runtime or device computes something else than the model that was exported";
    for (const [number, { prompt, tokens, first, last }] of texts.entries()) {
      let cached = await this.prefill(prompt);
      for (const [n, wanted] of tokens.entries()) {
        if (n > 0) cached = await this.add(cached, tokens[n - 1]);
        const found = likeliest(cached.logits.subarray(0, this.generation.vocab));
        if (found !== wanted) {
          throw new Damaged("decode.onnx", `of golden text ${number}, token ${n} is ${found}, expected ${wanted}: ${why}`);
        }
        for (const [at, logits] of [
          [0, first],
          [tokens.length - 1, last],
        ]) {
          const worst = n === at ? logits.findIndex((each, place) => !isClose(cached.logits[place], each)) : -1;
          if (worst >= 0) {
            const pair = `${cached.logits[worst].toPrecision(6)}, expected ${logits[worst].toPrecision(6)}`;
            throw new Damaged("decode.onnx", `of golden text ${number}, the logit of ${worst} before token ${n} is ${pair}: ${why}`);
          }
        }
      }
    }
  }
}

/** The tokens of a prompt: a text, the bytes of one, or token ids. Throws ConfigError for one that has none. */
export function tokensOf(prompt, input, { stop, begins, prefill_outputs: [logits] }) {
  let ids;
  if (Array.isArray(prompt) || prompt instanceof Int32Array) ids = Array.from(prompt);
  else if (typeof prompt !== "string" && !(prompt instanceof Uint8Array)) {
    throw new ConfigError(`generate: a prompt is ${abbreviated(prompt)}: give a text, its bytes or a list of token ids`);
  } else ids = Array.from(input.kind === "text" ? utf8(input.name, prompt) : input.idsOf(prompt));
  const [vocabulary] = logits.shape;
  for (const id of ids) {
    if (!Number.isInteger(id)) throw new ConfigError(`generate: ${abbreviated(id)} is no token`);
    if (id < 0 || id >= vocabulary) {
      throw new ConfigError(`generate: token ${id} is outside of the vocabulary of ${vocabulary}`);
    }
  }
  if (ids.length === 0 && !begins) {
    throw new ConfigError("generate: a prompt is empty, and no token of this model begins a document: give a text");
  }
  return ids.length === 0 ? [stop] : ids;
}

/** The options with their defaults. Throws ConfigError for others than there are, and for numbers out of range. */
function checked(given, length, context) {
  const known = ["tokens", "temperature", "topK", "topP", "minP", "seed", "stop"];
  for (const name of Object.keys(given)) {
    if (!known.includes(name)) throw new ConfigError(`generate: there is no option ${quoted(name)}; known: ${known.join(", ")}`);
  }
  const room = context - length;
  const { tokens = Math.min(TOKENS, room), temperature = 1, topK, topP = 1, minP = 0, seed, stop = [] } = given;
  const rules = [
    ["tokens", tokens, room < 1 || (Number.isInteger(tokens) && tokens >= 1), "a number from 1 on"],
    ["temperature", temperature, temperature >= 0 && temperature < Infinity, "a number from 0 on"],
    ["topK", topK, topK === undefined || (Number.isInteger(topK) && topK >= 1), "a number from 1 on"],
    ["topP", topP, topP > 0 && topP <= 1, "above 0 and at most 1"],
    ["minP", minP, minP >= 0 && minP <= 1, "from 0 to 1"],
    ["seed", seed, seed === undefined || (Number.isInteger(seed) && seed >= 0 && seed < 2 ** 32), "a number from 0 to 4294967295"],
    ["stop", stop, Array.isArray(stop) && stop.every((each) => typeof each === "string"), "a list of texts"],
  ];
  for (const [name, value, good, what] of rules) {
    if (!good) throw new ConfigError(`generate: ${name} is ${repr(value)}, and not ${what}`);
  }
  const limit = `the bundle has room for ${context} tokens`;
  if (room < 1) throw new ConfigError(`generate: a prompt has ${length} tokens, and ${limit}: shorten it`);
  if (tokens > room) {
    const sum = `${length} tokens of a prompt and ${tokens} more are above ${context}`;
    throw new ConfigError(`generate: ${sum}, and ${limit}: give tokens: ${room}`);
  }
  return { tokens, temperature, topK, topP, minP, seed, stop: stop.filter((each) => each !== "") };
}

/** The text of tokens after a prompt, as far as no further token can change it. */
class TextStream {
  constructor(decode, prompt, stops) {
    Object.assign(this, { decode, stops, ids: [...prompt], stopped: false });
    this.begin = this.sent = decode(this.ids).length;
  }

  get last() {
    return this.ids.at(-1);
  }

  add(token) {
    this.ids.push(token);
    return this.send(false);
  }

  end() {
    return this.send(true);
  }

  send(last) {
    if (this.stopped) return "";
    // All tokens are decoded again, since what one stands for may depend on those before it.
    const text = this.decode(this.ids);
    const found = this.stops.map((stop) => text.indexOf(stop, this.begin)).filter((at) => at >= 0);
    let end = text.length;
    if (found.length > 0) {
      this.stopped = true;
      end = Math.min(...found);
    } else if (!last) {
      end = text.replace(UNFINISHED, "").length;
      end -= Math.max(0, ...this.stops.map((stop) => begun(text.slice(0, end), stop)));
    }
    const piece = text.slice(this.sent, Math.max(this.sent, end));
    this.sent = Math.max(this.sent, end);
    return piece;
  }
}

/** How many characters at the end of a text may be the first ones of a stop text. */
function begun(text, stop) {
  for (let n = Math.min(stop.length, text.length); n > 0; n--) if (text.endsWith(stop.slice(0, n))) return n;
  return 0;
}

const bytesToText = (ids) => new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(ids));

/** The next token: the likeliest at temperature 0, else drawn from what the limits keep, each of the one before. */
function draw(logits, { temperature, topK, topP, minP }, random) {
  const most = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  if (!Number.isFinite(most)) throw new Damaged("decode.onnx", "the logits are not finite");
  if (temperature === 0) return likeliest(logits);
  let scores = Array.from(logits, (each) => (each - most) / temperature);
  const keep = (least) => (scores = scores.map((each) => (each >= least ? each : -Infinity)));
  if (topK !== undefined) keep(sorted(scores)[Math.min(topK, scores.length) - 1]);
  if (topP < 1) {
    const order = sorted(scores);
    const total = sum(order.map(Math.exp));
    let [kept, chance] = [0, 0];
    while (kept < order.length && chance < topP) chance += Math.exp(order[kept++]) / total;
    keep(order[kept - 1]);
  }
  if (minP > 0) keep(Math.log(minP));
  const weights = scores.map(Math.exp);
  let left = random() * sum(weights);
  const found = weights.findIndex((each) => each > 0 && (left -= each) < 0);
  return found < 0 ? likeliest(logits) : found;
}

const sorted = (scores) => [...scores].sort((a, b) => b - a);

const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);

const likeliest = (logits) => logits.indexOf(logits.reduce((a, b) => Math.max(a, b), -Infinity));

const isClose = (found, expected) => Math.abs(found - expected) <= 1e-4 * Math.max(1, Math.abs(expected));

/** Numbers from 0 to below 1: a Weyl sequence through a mixer of 32 bits. */
function seeded(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x9e3779b9) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 16), 0x21f0aaad);
    mixed = Math.imul(mixed ^ (mixed >>> 15), 0x735a2d97);
    return ((mixed ^ (mixed >>> 15)) >>> 0) / 2 ** 32;
  };
}
