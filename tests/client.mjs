// What tests/test_client.py asks of the JavaScript module: a list of questions on stdin, answers on stdout.

import { decoded, Signature, tokenizerOf } from "../jaxtrain/deploy/client/module/index.js";

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
};

let text = "";
for await (const part of process.stdin) text += part;
const answers = JSON.parse(text).map(({ question, ...given }) => {
  try {
    return { answer: questions[question](given) };
  } catch (error) {
    return { error: error.message, kind: error.name };
  }
});
process.stdout.write(JSON.stringify(answers));
