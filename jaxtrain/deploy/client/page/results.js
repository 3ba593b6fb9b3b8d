// Outputs as bars, numbers or lists.

import { make } from "./fields.js";
import { number } from "./words.js";

const MOST_BARS = 10;

/** Shows one row of outputs: {name: numbers by class, a number, or nested lists}. */
export function show(into, signature, answer, tokenText) {
  const parts = signature.outputs.map(({ name, classes, shape }) => {
    const value = answer[name];
    const title = make("h3", { textContent: name });
    if (classes.length > 0) return make("div", { className: "output" }, title, bars(Object.entries(value)));
    if (name === "log_probabilities" && shape.length === 1) {
      const scores = value.map((each, token) => [tokenText(token), Math.exp(each)]);
      return make("div", { className: "output" }, title, bars(scores));
    }
    const text = typeof value === "number" ? number(value, 6) : JSON.stringify(value, rounded);
    return make("div", { className: "output" }, title, make("pre", { textContent: text }));
  });
  into.replaceChildren(...parts);
}

/** The largest scores, each as a bar of that share. */
function bars(scores) {
  const largest = [...scores].sort((one, other) => other[1] - one[1]).slice(0, MOST_BARS);
  const list = make("ul", { className: "bars" });
  for (const [place, [name, score]] of largest.entries()) {
    const bar = make("div", { className: "bar" });
    bar.style.width = `${100 * Math.min(1, Math.max(0, score))}%`;
    const label = make("span", { textContent: name });
    const shown = make("span", { className: "score", textContent: Number.isFinite(score) ? score.toFixed(4) : String(score) });
    shown.dataset.score = String(score);
    shown.dataset.name = name;
    list.append(make("li", { className: place === 0 ? "first" : "" }, bar, label, shown));
  }
  return list;
}

const rounded = (_, value) => (typeof value === "number" ? Number(value.toPrecision(6)) : value);
