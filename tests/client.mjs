// What tests/test_client.py asks of the JavaScript module: a list of questions on stdin, answers on stdout.

import { tokensOf } from "../jaxtrain/deploy/client/module/generate.js";
import { Bundle, decoded, Signature, tokenizerOf } from "../jaxtrain/deploy/client/module/index.js";

/** Raw values of which JSON has no kind: bytes, numbers that are no numbers, half of a surrogate pair. */
function value(given) {
  if (Array.isArray(given)) return given.map(value);
  if (given !== null && typeof given === "object" && "units" in given) return String.fromCharCode(...given.units);
  if (given !== null && typeof given === "object" && "bigint" in given) return BigInt(given.bigint);
  const found = decoded(given);
  return found !== null && typeof found === "object" && found.constructor === Object
    ? Object.fromEntries(Object.entries(given).map(([name, each]) => [name, value(each)]))
    : found;
}

const questions = {
  /** The tensors of raw values, as bytes. */
  tensors({ signature, values }) {
    const made = new Signature(signature);
    const tensors = made.tensorsOf(made.rows(value(values)));
    return Object.entries(tensors).map(([name, { dtype, shape, data }]) => {
      const bytes = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
      return { name, dtype, shape, base64: bytes.toString("base64") };
    });
  },

  /** Whether it is a signature. */
  signature({ signature, where }) {
    return new Signature(signature, where).name;
  },

  /** The token ids of texts. */
  tokens({ tokenizer, texts }) {
    return texts.map(tokenizerOf(tokenizer));
  },

  /** The token ids of a prompt, by a tokenizer whose tokens are letters. */
  prompt({ signature, prompt, vocabulary }) {
    const [input] = new Signature(signature).inputs;
    input.encode = (text) => [...text].map((letter) => letter.codePointAt(0));
    return tokensOf(value(prompt), input, { stop: null, begins: false, prefill_outputs: [{ shape: [vocabulary] }] });
  },

  /** A value as golden.json has it, as text. */
  decoded({ value }) {
    return String(decoded(value));
  },

  /** Loads a bundle, up to its graph. */
  async load({ files, file }) {
    const create = async () => {
      throw new Error("verified up to the graph");
    };
    const read = async (name) => new TextEncoder().encode(files[name]);
    await Bundle.load(read, { file, ort: { InferenceSession: { create } } });
  },
};

let text = "";
for await (const part of process.stdin) text += part;
const answers = [];
for (const { question, ...given } of JSON.parse(text)) {
  try {
    answers.push({ answer: await questions[question](given) });
  } catch (error) {
    answers.push({ error: error.message, kind: error.name });
  }
}
process.stdout.write(JSON.stringify(answers));
