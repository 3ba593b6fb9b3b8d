// The kinds of raw inputs, and how each becomes a row of a tensor.

import { abbreviated, ConfigError, floatText, generalText, nearest, repr, wrong } from "./errors.js";
import { checkName } from "./tensors.js";
import { checkKeys, composed, DTYPES, isCount, isFileName, isFloat, isSize } from "./values.js";
import { numbers, rounded, textOf, utf8 } from "./values.js";

const EXACT = 1 << 24; // beyond it float32 skips integers

/** What a person gives. `row(value)` is the numbers of one row of the tensor that `spec()` describes. */
class Input {
  constructor(fields, defaults) {
    const { kind, ...given } = { ...defaults, ...fields };
    Object.assign(this, given);
    this.kind = kind;
  }

  /** The error for a value, or a field, of this input. */
  wrong(what) {
    return wrong(this.name, what);
  }

  tensorOf(dtype, shape) {
    return { name: this.tensor, dtype, shape, classes: [] };
  }
}

/** A text, or its UTF-8 bytes, of which `bytes` count; shorter ones are padded with byte 0. */
class Text extends Input {
  static fields = { needed: ["bytes"], optional: { keep: "first", least: 0 } };

  spec() {
    return this.tensorOf("uint8", [this.bytes]);
  }

  row(value) {
    const raw = utf8(this.name, value);
    if (raw.length < this.least) {
      throw this.wrong(raw.length === 0 ? "it is empty" : `it has ${raw.length} bytes, of at least ${this.least}`);
    }
    const row = new Uint8Array(this.bytes);
    row.set(kept(raw, this.bytes, this.keep));
    return row;
  }

  check() {
    if (!(isSize(this.bytes) && isEnd(this.keep) && isCount(this.least))) {
      throw this.wrong(`a text of ${repr(this.bytes)} bytes, of which ${repr(this.keep)} are kept, is none`);
    }
  }
}

/** A text as token ids by a file of the `tokenizers` library; cut after `length`, shorter ones padded. */
class Tokens extends Input {
  static fields = { needed: ["tokenizer", "length"], optional: { pad: 0, keep: "first", least: 0 } };

  /** Of a text the ids of its tokens; null where the tokenizer is not loaded. */
  encode = null;

  spec() {
    return this.tensorOf("int32", [this.length]);
  }

  row(value) {
    const ids = typeof value === "string" || value instanceof Uint8Array ? this.idsOf(value) : this.checkedIds(value);
    if (ids.length < this.least) throw this.wrong(`it has ${ids.length} tokens, of at least ${this.least}`);
    const row = new Int32Array(this.length).fill(this.pad);
    row.set(kept(ids, this.length, this.keep));
    return row;
  }

  idsOf(value) {
    if (this.encode === null) throw this.wrong("its tokenizer is not loaded: give token ids");
    return this.encode(textOf(this.name, utf8(this.name, value)));
  }

  checkedIds(value) {
    const { data, shape } = numbers(this.name, value, "float64");
    const whole = (id) => Number.isInteger(id) && Math.abs(id) < 2 ** 63;
    if (!data.every(whole)) throw this.wrong(`its numbers do not fit int64: ${abbreviated(value)}`);
    const vocab = this.encode?.vocab ?? 2 ** 31;
    if (shape.length !== 1 || !data.every((id) => id >= 0 && id < vocab)) {
      throw this.wrong(`token ids are a list of integers from 0 to ${vocab - 1}, not ${abbreviated(value)}`);
    }
    return data;
  }

  check() {
    if (!isFileName(this.tokenizer)) {
      throw this.wrong(`tokenizer ${repr(this.tokenizer)} is no name of a file in the bundle`);
    }
    if (!(isSize(this.length) && isCount(this.least) && isEnd(this.keep) && Number.isInteger(this.pad))) {
      throw this.wrong(`${repr(this.length)} tokens, padded with ${repr(this.pad)}, are none`);
    }
  }
}

/** One of some values, texts or integers: `first` + its place among them; another one is `unknown`. */
class Category extends Input {
  static fields = { needed: ["values"], optional: { first: 0, unknown: null } };

  spec() {
    return this.tensorOf("int32", []);
  }

  row(value) {
    const given = this.plain(value);
    this.places ??= new Map(this.values.map((each, number) => [composed(each), this.first + number]));
    if (this.places.has(given)) return [this.places.get(given)];
    const kinds = new Set(this.values.map((each) => typeof each));
    const kind = typeof given === "bigint" ? "number" : typeof given;
    if (this.unknown === null || (kinds.size > 0 && !kinds.has(kind))) {
      const near = nearest(String(given), this.values.map(String), this.values.length <= 20);
      throw this.wrong(`it is ${repr(given)}, none of its values${near}`);
    }
    return [this.unknown];
  }

  plain(value) {
    if (value instanceof Uint8Array) return composed(textOf(this.name, value, { replace: true }));
    if (typeof value === "string") return composed(textOf(this.name, utf8(this.name, value)));
    if (typeof value === "boolean") return Number(value);
    if (typeof value === "bigint") return Number.isSafeInteger(Number(value)) ? Number(value) : value;
    if (!Number.isSafeInteger(value)) throw this.wrong(`it is ${abbreviated(value)}, neither a text nor an integer`);
    return value;
  }

  check() {
    const kinds = this.values.every((each) => typeof each === "string" || Number.isInteger(each));
    if (!kinds || !Number.isInteger(this.first) || !Number.isInteger(this.unknown ?? 0)) {
      throw this.wrong("its values are texts or integers, and first and unknown integers");
    }
    const large = this.values.find((each) => typeof each === "number" && !Number.isSafeInteger(each));
    if (large !== undefined) throw this.wrong(`its value ${large} is larger than JavaScript can count`);
  }
}

/** An array of numbers of one shape, from `range[0]` to `range[1]` where it is given. */
class Numeric extends Input {
  static fields = { needed: ["shape", "dtype"], optional: { range: [], missing: false } };

  spec() {
    return this.tensorOf(this.dtype, this.shape);
  }

  row(value) {
    const { data, shape } = numbers(this.name, value, this.dtype);
    if (!sameShape(shape, this.shape)) {
      throw this.wrong(`it is of shape ${repr(shape)}, not ${repr(this.shape)}`);
    }
    const written = (each) => (isFloat(this.dtype) ? floatText(each) : String(each));
    if (isFloat(this.dtype)) {
      const odd = data.find((each) => !Number.isFinite(each) && !(this.missing && Number.isNaN(each)));
      if (odd !== undefined) throw this.wrong(`it holds ${written(odd)}, but has to be finite numbers`);
    }
    if (this.range.length > 0) {
      const [low, high] = isFloat(this.dtype) ? this.range.map((end) => rounded(end, this.dtype)) : this.range;
      const outside = data.find((each) => each < low || each > high);
      if (outside !== undefined) {
        const scale = this.range.map(generalText).join(" to ");
        throw this.wrong(`it holds ${written(outside)}, but is on the scale of ${scale}`);
      }
    }
    return data;
  }

  check() {
    const shaped = this.shape.every(isSize) && DTYPES.includes(this.dtype);
    if (!(shaped && typeof this.missing === "boolean")) {
      throw this.wrong(`${repr(this.dtype)}${repr(this.shape)} is no kind of array`);
    }
    const [low, high] = this.range;
    if (this.range.length > 0 && !(this.range.length === 2 && Number.isFinite(low) && Number.isFinite(high))) {
      throw this.wrong(`${repr(this.range)} is no range of numbers`);
    }
    if (low >= high) throw this.wrong(`${repr(this.range)} is no range of numbers`);
  }
}

/** Pixels [height, width, channels] on the scale `range`. */
class Image extends Numeric {
  row(value) {
    if (value instanceof Uint8Array) {
      throw this.wrong("it is an encoded image: give its pixels as [height, width, channels]");
    }
    return super.row(value);
  }

  check() {
    super.check();
    if (this.shape.length !== 3 || ![1, 3].includes(this.shape[2]) || this.range.length === 0) {
      throw this.wrong(`an image is [height, width, 1 or 3] with a range, not ${repr(this.shape)}`);
    }
  }
}

/** Samples of one channel, at `rate` a second. */
class Audio extends Input {
  static fields = { needed: ["samples", "rate"], optional: {} };

  spec() {
    return this.tensorOf("float32", [this.samples]);
  }

  row(value) {
    const { data, shape } = numbers(this.name, value, "float32");
    if (!sameShape(shape, [this.samples]) || !data.every(Number.isFinite)) {
      throw this.wrong(`it has to be ${this.samples} finite samples, not ${abbreviated(value)}`);
    }
    return data;
  }

  check() {
    if (!(isSize(this.samples) && isSize(this.rate))) {
      throw this.wrong(`${repr(this.samples)} samples at ${repr(this.rate)} Hz are no sound`);
    }
  }
}

/** A number; one that is missing is NaN, or null. */
class NumberInput extends Input {
  static fields = { needed: [], optional: { missing: false, integer: false } };

  spec() {
    return this.tensorOf("float32", []);
  }

  row(value) {
    const { data, shape } = numbers(this.name, value ?? NaN, "float32");
    if (shape.length > 0) throw this.wrong(`it has to be one number, not ${abbreviated(value)}`);
    const [found] = data;
    if (!Number.isFinite(found) && !(this.missing && Number.isNaN(found))) {
      throw this.wrong(Number.isNaN(found) ? "it is missing" : `it is ${floatText(found)}, but has to be finite`);
    }
    if (this.integer && Number.isFinite(found)) {
      if (found !== Number(value) || !Number.isInteger(found) || Math.abs(found) > EXACT) {
        const most = EXACT.toLocaleString("en-US");
        throw this.wrong(`it is ${abbreviated(value)}, but has to be an integer within ±${most}`);
      }
    }
    return data;
  }

  check() {
    if (typeof this.missing !== "boolean" || typeof this.integer !== "boolean") {
      throw this.wrong("missing and integer are true or false");
    }
  }
}

/** By the name in signature.json. */
const KINDS = {
  text: Text,
  tokens: Tokens,
  image: Image,
  array: class extends Numeric {},
  audio: Audio,
  number: NumberInput,
  category: Category,
};

/** The input of an object of signature.json. Throws ConfigError for one that no exporter writes. */
export function inputOf(value, where) {
  const kind = value.kind;
  if (typeof kind !== "string" || !Object.hasOwn(KINDS, kind)) {
    throw new ConfigError(`${where}.kind: ${repr(kind)} is none of ${Object.keys(KINDS).join(", ")}`);
  }
  const { needed, optional } = KINDS[kind].fields;
  checkKeys(value, ["kind", "name", "tensor", ...needed], Object.keys(optional), where);
  for (const name of ["name", "tensor"]) checkName(value[name], where);
  for (const name of ["shape", "range", "values"]) {
    if (Object.hasOwn(value, name) && !Array.isArray(value[name])) {
      throw new ConfigError(`${where}.${name}: ${repr(value[name])} is no list`);
    }
  }
  const found = new KINDS[kind](value, optional);
  try {
    found.check();
  } catch (error) {
    throw new ConfigError(`${where}: ${error.message}`);
  }
  return found;
}

const isEnd = (keep) => keep === "first" || keep === "last";

const kept = (items, length, keep) =>
  keep === "first" ? items.slice(0, length) : items.slice(Math.max(0, items.length - length));

const sameShape = (one, other) => one.length === other.length && one.every((n, dim) => n === other[dim]);
