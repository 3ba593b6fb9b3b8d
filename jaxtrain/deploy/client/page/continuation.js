// Continues a text by a language model, one token after the other, each by the whole graph.

import { make } from "./fields.js";
import { saying } from "./words.js";

const MOST = 400;

/** The controls, or null where the model does not predict a next token of a text. */
export function continuation(state, setAll, compute) {
  const { signature } = state.bundle;
  const [input] = signature.inputs;
  const scores = signature.outputs.find(({ name, shape }) => name === "log_probabilities" && shape.length === 1);
  if (signature.inputs.length !== 1 || input.kind !== "text" || scores === undefined) return null;
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
    let bytes = bytesOf(state.fields[0].value());
    const from = performance.now();
    for (let made = 1; running && made <= MOST; made++) {
      const { log_probabilities: found } = await state.bundle.predict([bytes]);
      const next = sample(found.data, Number(heat.value));
      if (next === 0) break;
      bytes = Uint8Array.from([...bytes, next]);
      setAll({ [input.name]: textOf(bytes) });
      speed.textContent = `${((1000 * made) / (performance.now() - from)).toFixed(0)} tokens/s`;
      await new Promise((resolve) => setTimeout(resolve));
    }
    running = false;
    saying(go, "continue");
    compute();
  });
  return make("div", { className: "row" }, go, make("label", {}, heatSaid, " ", heat), speed);
}

const bytesOf = (value) => (typeof value === "string" ? new TextEncoder().encode(value) : value);

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
