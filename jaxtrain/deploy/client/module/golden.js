// Golden examples: raw inputs with the outputs that every runtime has to give for them.

import { ConfigError, repr } from "./errors.js";
import { checkFormat } from "./signature.js";
import { isCount, isObject } from "./values.js";

const NOT_FINITE = new Map([
  ["nan", NaN],
  ["inf", Infinity],
  ["-inf", -Infinity],
]);

const LOGITS = 1024; // of the vocabulary, how many a golden text has

/** The examples of golden.json: [{name, inputs, outputs: {name: number[]}}]. Throws ConfigError for what is none. */
export function goldenExamples(value, signature, where) {
  if (!isObject(value) || !Array.isArray(value.examples) || value.examples.length === 0) {
    throw new ConfigError(`${where}: it holds no examples`);
  }
  checkFormat(value, where);
  return value.examples.map((each, number) => {
    const [outputs, here] = [{}, `${where}: example ${number}`];
    for (const { name, shape } of signature.outputs) {
      const found = [decoded(each?.outputs?.[name], here)].flat(Infinity);
      if (!found.every((x) => typeof x === "number" || typeof x === "boolean")) {
        throw new ConfigError(`${here} is none: ${repr(name)}`);
      }
      if (found.length !== shape.reduce((a, b) => a * b, 1)) {
        throw new ConfigError(`${here}: ${repr(name)} is not of shape ${repr(shape)}`);
      }
      outputs[name] = found.map(Number);
    }
    return { name: String(each.name), inputs: decoded(each.inputs, here), outputs };
  });
}

/** The golden texts of golden.json: [{prompt, tokens, first, last}]. Throws ConfigError for what is none. */
export function goldenTexts(value, generation, where) {
  if (!Array.isArray(value.texts) || value.texts.length === 0) throw new ConfigError(`${where}: it holds no golden texts`);
  const [most] = generation.prefill_outputs[0].shape;
  const isToken = (each) => isCount(each) && each < most;
  return value.texts.map((each, number) => {
    const { prompt, tokens } = isObject(each) ? each : {};
    const logits = [each?.first, each?.last].map((x) => decoded(x, `${where}.texts.${number}`));
    const good =
      [prompt, tokens].every((ids) => Array.isArray(ids) && ids.length > 0 && ids.every(isToken)) &&
      prompt.length <= generation.prompt &&
      prompt.length + tokens.length <= generation.context &&
      logits.every((x) => Array.isArray(x) && x.length === Math.min(most, LOGITS) && x.every((n) => typeof n === "number"));
    if (!good) throw new ConfigError(`${where}.texts.${number}: it is no prompt with its tokens and logits`);
    return { prompt, tokens, first: logits[0], last: logits[1] };
  });
}

/** The value of JSON in which bytes are {"base64": …} and NaN is {"float": "nan"}. Throws ConfigError for other floats. */
export function decoded(value, where = "a value") {
  if (Array.isArray(value)) return value.map((part) => decoded(part, where));
  if (!isObject(value)) return value;
  const keys = Object.keys(value);
  if (keys.length === 1 && keys[0] === "base64") {
    return Uint8Array.from(atob(value.base64), (each) => each.charCodeAt(0));
  }
  if (keys.length === 1 && keys[0] === "float") {
    if (NOT_FINITE.has(value.float)) return NOT_FINITE.get(value.float);
    throw new ConfigError(`${where}: its float is ${repr(value.float)}, none of nan, inf and -inf`);
  }
  return Object.fromEntries(Object.entries(value).map(([name, part]) => [name, decoded(part, where)]));
}

/** The first example whose outputs ({name: {shape, data}}) are not the expected ones, with both; "" without one. */
export function firstDifference(examples, outputs, tolerance) {
  for (const [number, each] of examples.entries()) {
    for (const [name, wanted] of Object.entries(each.outputs)) {
      for (let place = 0; place < wanted.length; place++) {
        const [found, expected] = [Number(outputs[name].data[number * wanted.length + place]), wanted[place]];
        if (!isClose(found, expected, tolerance)) {
          const shape = outputs[name].shape.slice(1);
          const at = shape.length > 0 ? `${name}[${placeIn(shape, place).join(", ")}]` : name;
          const numbers = `is ${found.toPrecision(6)}, expected ${expected.toPrecision(6)}`;
          return `of golden example ${number} (${each.name}), ${at} ${numbers}`;
        }
      }
    }
  }
  return "";
}

/** The largest difference of a finite output from the expected one, as a share of that where it is more than 1. */
export function largestDifference(examples, outputs) {
  let largest = 0;
  for (const [number, each] of examples.entries()) {
    for (const [name, wanted] of Object.entries(each.outputs)) {
      wanted.forEach((expected, place) => {
        const found = Number(outputs[name].data[number * wanted.length + place]);
        const difference = Math.abs(found - expected) / Math.max(Math.abs(expected), 1);
        if (Number.isFinite(difference)) largest = Math.max(largest, difference);
      });
    }
  }
  return largest;
}

function isClose(found, expected, tolerance) {
  if (Number.isNaN(expected) || !Number.isFinite(expected)) return Object.is(found, expected);
  return Math.abs(found - expected) <= tolerance * (1 + Math.abs(expected));
}

function placeIn(shape, place) {
  const indices = [];
  for (const size of [...shape].reverse()) {
    indices.unshift(place % size);
    place = Math.floor(place / size);
  }
  return indices;
}
