// What a bundle takes and gives: raw inputs, the tensors that its graph reads, outputs; and raw inputs as tensors.

import { ConfigError, nearest, quoted, repr } from "./errors.js";
import { inputOf } from "./inputs.js";
import { checkName, tensorOf } from "./tensors.js";
import { checkKeys, isCount, isObject, isSize, put, zeros } from "./values.js";

export const FORMAT = 1;

/** What signature.json holds. */
export class Signature {
  constructor(value, where = "signature") {
    if (!isObject(value)) throw new ConfigError(`${where}: it is no JSON object`);
    checkFormat(value, where);
    checkKeys(value, ["format", "name", "inputs", "tensors", "outputs", "max_batch"], ["generation"], where);
    for (const part of ["inputs", "tensors", "outputs"]) {
      if (!(Array.isArray(value[part]) && value[part].length > 0 && value[part].every(isObject))) {
        throw new ConfigError(`${where}.${part}: it is no list of objects`);
      }
    }
    this.inputs = value.inputs.map((each, n) => inputOf(each, `${where}.inputs.${n}`));
    this.tensors = value.tensors.map((each, n) => tensorOf(each, `${where}.tensors.${n}`));
    this.outputs = value.outputs.map((each, n) => tensorOf(each, `${where}.outputs.${n}`));
    if (!isSize(value.max_batch)) {
      throw new ConfigError(`${where}.max_batch: ${repr(value.max_batch)} is no number of rows`);
    }
    for (const part of ["inputs", "tensors", "outputs"]) {
      const names = this[part].map((each) => each.name);
      if (new Set(names).size < names.length) {
        throw new ConfigError(`${where}.${part}: ${repr(names)} has a name twice`);
      }
    }
    const known = (specs) => specs.map(({ name, dtype, shape }) => JSON.stringify([name, dtype, shape])).sort();
    if (known(this.inputs.map((each) => each.spec())).join() !== known(this.tensors).join()) {
      throw new ConfigError(`${where}.tensors: they differ from the tensors that the inputs become`);
    }
    checkName(value.name, where);
    this.name = value.name;
    this.maxBatch = value.max_batch;
    this.generation = generationOf(value.generation ?? null, this.inputs, `${where}.generation`);
  }

  /**
   * Raw inputs as rows: a list of objects by name, of bare values where there is one input, or an object of columns.
   *
   * Throws ConfigError for other names, and for columns of different lengths.
   */
  rows(values) {
    const names = this.inputs.map((each) => each.name);
    if (isObject(values) && !ArrayBuffer.isView(values)) {
      this.checkNames(values);
      const columns = Object.entries(values);
      const lengths = Object.fromEntries(columns.map(([name, column]) => [name, column.length]));
      if (new Set(Object.values(lengths)).size > 1) {
        throw new ConfigError(`the inputs have different numbers of rows: ${repr(lengths)}`);
      }
      const rows = columns.length > 0 ? columns[0][1].length : 0;
      return Array.from({ length: rows }, (_, row) =>
        Object.fromEntries(columns.map(([name, column]) => [name, column[row]])),
      );
    }
    if (!Array.isArray(values)) throw new ConfigError("give a list of inputs, even of one");
    return values.map((value, number) => {
      if (isRow(value)) return value;
      if (names.length > 1) throw new ConfigError(`row ${number}: give an object with ${names.join(", ")}`);
      return { [names[0]]: value };
    });
  }

  /** The tensors of raw inputs, {dtype, shape, data} by name. Throws ConfigError, naming row and input. */
  tensorsOf(rows) {
    if (rows.length === 0) throw new ConfigError("there are no inputs: give at least one");
    const found = {};
    for (const each of this.inputs) {
      const { name, dtype, shape } = each.spec();
      const data = zeros(dtype, rows.length * shape.reduce((a, b) => a * b, 1));
      found[name] = { dtype, shape: [rows.length, ...shape], data };
    }
    rows.forEach((row, number) => {
      try {
        this.checkNames(row);
        for (const each of this.inputs) {
          const value = Object.hasOwn(row, each.name) ? row[each.name] : undefined;
          const { dtype, data } = found[each.tensor];
          put(data, dtype, each.row(value), (number * data.length) / rows.length);
        }
      } catch (error) {
        if (error instanceof ConfigError && rows.length > 1) throw new ConfigError(`row ${number}: ${error.message}`);
        throw error;
      }
    });
    return found;
  }

  checkNames(row) {
    const names = this.inputs.map((each) => each.name);
    for (const name of Object.keys(row)) {
      if (!names.includes(name)) throw new ConfigError(`there is no input ${quoted(name)}${nearest(name, names)}`);
    }
    for (const each of this.inputs) {
      if (!Object.hasOwn(row, each.name) && each.missing !== true) {
        throw new ConfigError(`input ${quoted(each.name)} is missing: the model reads ${names.join(", ")}`);
      }
    }
  }
}

/** How a bundle continues texts; null for null. Throws ConfigError, naming the place, for what no exporter writes. */
function generationOf(value, inputs, where) {
  if (value === null) return null;
  if (!isObject(value)) throw new ConfigError(`${where}: it is no JSON object`);
  const parts = ["prefill_inputs", "prefill_outputs", "decode_inputs", "decode_outputs"];
  checkKeys(value, ["prompt", "context", "vocab", "stop", "begins", "tokens", ...parts], [], where);
  const { prompt, context, vocab, stop, begins, tokens, prefill_outputs: made } = value;
  if (!(Array.isArray(made) && made.length > 1 && made.every(isObject))) {
    throw new ConfigError(`${where}.prefill_outputs: they are no list of logits and of the arrays of a cache`);
  }
  const [logits, ...cache] = made.map((each, n) => tensorOf(each, `${where}.prefill_outputs.${n}`));
  const array = (name, dtype, ...shape) => ({ name, dtype, shape, classes: [] });
  const known = inputs.map(({ kind, tokenizer }) => ({ text: "bytes", tokens: tokenizer })[kind]);
  const sizes = [prompt, context, vocab].every(isSize);
  const good = {
    prompt: sizes && prompt <= context,
    stop: stop === null || (sizes && isCount(stop) && stop < vocab),
    begins: typeof begins === "boolean" && !(begins && stop === null),
    tokens: known.length === 1 && tokens === known[0],
    prefill_outputs: logits.name === "logits" && logits.dtype === "float32" && logits.shape.length === 1 && logits.classes.length === 0,
  };
  good.vocab = sizes && good.prefill_outputs && vocab <= logits.shape[0];
  const arrays = {
    prefill_inputs: [array("tokens", "int32", prompt), array("lengths", "int32")],
    prefill_outputs: [logits, ...cache],
    decode_inputs: [array("token", "int32"), ...cache],
    decode_outputs: [logits, ...cache],
  };
  const text = (specs) => JSON.stringify(specs.map(({ name, dtype, shape }) => [name, dtype, ["batch", ...shape]]));
  const given = (specs) => JSON.stringify(Array.isArray(specs) ? specs.map((x) => [x?.name, x?.dtype, x?.shape]) : null);
  const wrong = Object.keys(good).find((name) => !good[name]) ?? parts.find((name) => text(arrays[name]) !== given(value[name]));
  if (wrong !== undefined) throw new ConfigError(`${where}.${wrong}: it does not fit the rest of the signature`);
  return { prompt, context, vocab, stop, begins, tokens, ...arrays };
}

/** Throws ConfigError for a file of a newer format, and for one without. */
export function checkFormat(value, where) {
  const found = value.format;
  if (!Number.isInteger(found) || found < 1) {
    throw new ConfigError(`${where}: its format is ${repr(found)}, which is none`);
  }
  if (found > FORMAT) {
    throw new ConfigError(
      `${where}: it is of format ${found}, and this version of jaxtrain reads ${FORMAT}: update jaxtrain`,
    );
  }
}

/** Whether a value is a row by names, not a bare value: {data, shape} is an array. */
const isRow = (value) =>
  isObject(value) && !ArrayBuffer.isView(value) && !(Array.isArray(value.shape) && value.data !== undefined);
