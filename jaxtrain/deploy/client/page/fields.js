// The fields of the form: one for each input of the signature. `value()` is the raw input, `set(value)` shows one.

import { drawing } from "./drawing.js";
import { say, saying } from "./words.js";

const MOST_OPTIONS = 50;
const NEVER_SEEN = "\u2026";

/** An element with properties and children. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** The field of an input; `example` is a usual value. `changed` is called after each change by the person. */
export function fieldOf(input, example, changed) {
  const kind = { text, tokens: text, image: drawing, number, category, audio, array: json }[input.kind];
  return kind(input, example, changed);
}

function labelled(input, ...children) {
  return make("label", { className: "field" }, make("span", { textContent: input.name }), ...children);
}

function text(input, example, changed) {
  const area = make("textarea", { name: input.name, spellcheck: false, autocomplete: "off", rows: 5 });
  const count = make("p", { className: "count" });
  let bytes = null; // of an example that is no UTF-8
  const value = () => bytes ?? area.value;
  const tell = () => {
    const given = value();
    if (input.kind === "text") {
      const n = typeof given === "string" ? new TextEncoder().encode(given).length : given.length;
      saying(count, "bytes", { n, most: input.bytes });
    } else {
      try {
        saying(count, "tokens", { n: Array.isArray(given) ? given.length : input.encode(given).length, most: input.length });
      } catch {
        count.textContent = "";
      }
    }
  };
  area.addEventListener("input", () => {
    bytes = null;
    tell();
    changed();
  });
  const set = (given) => {
    const whole = typeof given === "string";
    bytes = whole ? null : given;
    area.value = whole ? given : given instanceof Uint8Array ? new TextDecoder().decode(given) : given.join(" ");
    tell();
  };
  return { element: labelled(input, area, count), value, set, focus: () => area.focus() };
}

function number(input, example, changed) {
  const box = make("input", { name: input.name, type: "number", step: input.integer ? "1" : "any", autocomplete: "off" });
  if (input.missing) {
    box.placeholder = say("missing");
  }
  box.addEventListener("input", changed);
  return {
    element: labelled(input, box),
    value: () => (box.value === "" ? null : Number(box.value)),
    set: (given) => (box.value = given === null || Number.isNaN(given) ? "" : String(given)),
  };
}

function category(input, example, changed) {
  const numeric = input.values.length > 0 && input.values.every((each) => typeof each === "number");
  const other = numeric ? Math.max(...input.values) + 1 : NEVER_SEEN;
  if (input.values.length > MOST_OPTIONS) {
    const list = make("datalist", { id: `values-${input.name}` }, ...input.values.map((value) => make("option", { value })));
    const box = make("input", { name: input.name, autocomplete: "off", value: String(input.values[0]) });
    box.setAttribute("list", list.id);
    box.addEventListener("input", changed);
    const value = () => (numeric && /^-?\d+$/.test(box.value) ? Number(box.value) : box.value);
    return { element: labelled(input, box, list), value, set: (given) => (box.value = String(given)) };
  }
  const select = make("select", { name: input.name });
  input.values.forEach((value, place) => select.append(make("option", { value: place, textContent: value })));
  if (input.unknown !== null) select.append(saying(make("option", { value: input.values.length }), "another"));
  select.addEventListener("change", changed);
  return {
    element: labelled(input, select),
    value: () => input.values[Number(select.value)] ?? other,
    set: (given) => {
      const place = input.values.indexOf(given);
      select.value = place < 0 ? input.values.length : place;
    },
  };
}

function json(input, example, changed) {
  const area = make("textarea", { name: input.name, spellcheck: false, autocomplete: "off", rows: 4 });
  const about = make("p", { className: "count", textContent: `${input.dtype} [${input.shape.join(", ")}]` });
  area.addEventListener("input", changed);
  const set = (given) => (area.value = JSON.stringify(given));
  set(example);
  const value = () => {
    try {
      return JSON.parse(area.value);
    } catch {
      return area.value;
    }
  };
  return { element: labelled(input, area, about), value, set };
}

function audio(input, example, changed) {
  const file = make("input", { type: "file", accept: "audio/*" });
  const about = make("p", { className: "count" });
  let samples = example;
  const tell = (name) => (about.textContent = `${name}: ${input.samples} samples, ${input.rate} Hz`);
  file.addEventListener("change", async () => {
    if (file.files.length === 0) return;
    try {
      samples = await decoded(await file.files[0].arrayBuffer(), input);
      tell(file.files[0].name);
    } catch (error) {
      about.textContent = String(error.message ?? error);
    }
    changed();
  });
  const set = (given) => {
    samples = given;
    tell(say("examples"));
  };
  return { element: labelled(input, file, about), value: () => samples, set };
}

/** The samples of a sound file: one channel, at the input's rate, cut or filled with silence. */
async function decoded(bytes, { samples, rate }) {
  const context = new OfflineAudioContext(1, samples, rate);
  const found = await context.decodeAudioData(bytes);
  const source = context.createBufferSource();
  source.buffer = found;
  source.connect(context.destination);
  source.start();
  return (await context.startRendering()).getChannelData(0);
}
