// Continues a text by a language model: by the graphs with a cache, or where there are none by the whole graph.

import { make } from "./fields.js";
import { saying } from "./words.js";

const MOST = 400;

/** The controls, or null where the model does not predict a next token of a text. */
export function continuation(state, setAll, compute) {
  const { signature, generates } = state.bundle;
  const [input] = signature.inputs;
  const scores = signature.outputs.find(({ name, shape }) => name === "log_probabilities" && shape.length === 1);
  const whole = signature.inputs.length === 1 && input.kind === "text" && scores !== undefined;
  if (!whole && !(generates && state.decode !== undefined)) return null;
  const go = saying(make("button", { type: "button", className: "main" }), "continue");
  const heat = make("input", { type: "range", min: 0, max: 1.5, step: 0.1, value: 0 });
  const heatSaid = saying(make("span"), "temperature", { n: "0" });
  heat.addEventListener("input", () => saying(heatSaid, "temperature", { n: heat.value }));
  const speed = make("span", { className: "count" });
  let running = false;
  go.addEventListener("click", async () => {
    if (running) {
      running = false;
      return;
    }
    running = true;
    saying(go, "stop");
    const pieces = generates ? byCache : byWholeGraph;
    try {
      let [made, from] = [0, 0];
      for await (const value of pieces(state, input, Number(heat.value))) {
        setAll({ [input.name]: value });
        if (made++ === 0) from = performance.now(); // the first one loads the graphs
        else speed.textContent = `${((1000 * (made - 1)) / (performance.now() - from)).toFixed(0)} tokens/s`;
        await new Promise((resolve) => setTimeout(resolve));
        if (!running || made === MOST) break;
      }
    } catch (error) {
      speed.textContent = error.message;
      console.error(error);
    }
    running = false;
    saying(go, "continue");
    compute();
  });
  return make("div", { className: "row" }, go, make("label", {}, heatSaid, " ", heat), speed);
}

/** The text after each token. Once there is no room for more, what follows sees the later half of it alone. */
async function* byCache({ bundle, fields }, _, temperature) {
  const { context } = bundle.signature.generation;
  let value = fields[0].value();
  for (let full = true; full; ) {
    const ids = bundle.tokensOf(value);
    const prompt = ids.length < context ? ids : ids.slice(-Math.max(1, context >> 1));
    let room = context - prompt.length;
    for await (const { token, text } of bundle.generate(prompt, { temperature, tokens: room })) {
      value = joined(value, token, text);
      if (token !== null) room--;
      yield value;
    }
    full = room === 0;
  }
}

/** The text after each token, as bytes where its last letter is half written. */
async function* byWholeGraph({ bundle, fields }, input, temperature) {
  let bytes = bytesOf(fields[0].value());
  for (;;) {
    const { log_probabilities: found } = await bundle.predict([bytes]);
    const next = sample(found.data, temperature);
    if (next === 0) return;
    bytes = Uint8Array.from([...bytes, next]);
    yield textOf(bytes);
  }
}

const bytesOf = (value) => (typeof value === "string" ? new TextEncoder().encode(value) : value);

/** A text, its bytes or its token ids, and what follows. */
function joined(value, token, text) {
  if (typeof value === "string") return value + text;
  if (Array.isArray(value)) return token === null ? value : [...value, token];
  return Uint8Array.from([...value, ...new TextEncoder().encode(text)]);
}

/** As a text where it is one, else as bytes: the last letter may be half written. */
function textOf(bytes) {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return bytes;
  }
}

/** The likeliest token, or one drawn at a temperature above 0. */
function sample(scores, temperature) {
  const most = Math.max(...scores);
  if (temperature === 0) return scores.indexOf(most);
  const weights = Array.from(scores, (each) => Math.exp((each - most) / temperature));
  let left = Math.random() * weights.reduce((a, b) => a + b, 0);
  const found = weights.findIndex((each) => (left -= each) < 0);
  return found < 0 ? scores.indexOf(most) : found;
}
