// Values of raw inputs: what is taken, as bytes or numbers, and what is refused.

import { abbreviated, ConfigError, nearest, quoted, wrong } from "./errors.js";

const SIZES = { bool: [0, 1], uint8: [0, 255], int8: [-128, 127], uint16: [0, 65535], int16: [-32768, 32767] };
const INTEGERS = { ...SIZES, uint32: [0, 2 ** 32 - 1], int32: [-(2 ** 31), 2 ** 31 - 1] };

const ARRAYS = {
  bool: Uint8Array,
  uint8: Uint8Array,
  int8: Int8Array,
  uint16: Uint16Array,
  int16: Int16Array,
  uint32: Uint32Array,
  int32: Int32Array,
  float16: Uint16Array, // the bits, as ONNX Runtime takes them
  bfloat16: Uint16Array,
  float32: Float32Array,
};

/** The names of the dtypes of tensors. */
export const DTYPES = Object.keys(ARRAYS);

const DEEPEST = 64; // dims of numpy's arrays

/** Whether an array of this dtype holds fractions. */
export const isFloat = (dtype) => !(dtype in INTEGERS);

/** A new array of zeros for the tensor of this dtype. */
export const zeros = (dtype, length) => new ARRAYS[dtype](length);

/** A text's bytes in UTF-8. Throws ConfigError for what is none, half of a surrogate pair too. */
export function utf8(name, value) {
  if (value instanceof Uint8Array) return value;
  if (typeof value !== "string") throw wrong(name, `it has to be a text, not ${abbreviated(value)}`);
  const half = [...value].findIndex((each) => /\p{Surrogate}/u.test(each));
  if (half >= 0) throw wrong(name, `it is no Unicode text: half of a surrogate pair in position ${half}`);
  return new TextEncoder().encode(value);
}

/** The text of UTF-8. Throws ConfigError for other bytes, unless they are to be replaced by U+FFFD. */
export function textOf(name, bytes, { replace = false } = {}) {
  try {
    return new TextDecoder("utf-8", { fatal: !replace, ignoreBOM: true }).decode(bytes);
  } catch {
    throw wrong(name, "its bytes are no UTF-8 text");
  }
}

/**
 * Nested lists, a typed array, one number, or {data, shape}, as numbers that are in the dtype.
 *
 * null inside of lists is NaN. Returns {data: number[], shape}. Throws ConfigError for what is no numbers, and for
 * those that do not fit.
 */
export function numbers(name, value, dtype) {
  const { data, shape } = flattened(name, value);
  const [least, most] = INTEGERS[dtype] ?? [];
  const found = new Array(data.length);
  for (let i = 0; i < data.length; i++) {
    const given = data[i];
    found[i] = rounded(given, dtype);
    if (least !== undefined && !(Number.isInteger(given) && given >= least && given <= most)) {
      throw wrong(name, `its numbers do not fit ${dtype}: ${abbreviated(value)}`);
    }
    if (Number.isFinite(given) && !Number.isFinite(found[i])) {
      throw wrong(name, `it has a number beyond ${dtype}: ${abbreviated(value)}`);
    }
  }
  return { data: found, shape };
}

/** The nearest number of a dtype, ties to even. */
export function rounded(number, dtype) {
  if (dtype === "float32") return Math.fround(number);
  if (dtype === "float16") return nearestFloat(number, 10, -14, 65504);
  if (dtype === "bfloat16") return nearestFloat(Math.fround(number), 7, -126, 3.3895313892515355e38);
  return number;
}

/** Puts numbers of a dtype into the array of its tensor, from a place on. */
export function put(into, dtype, data, start) {
  if (dtype === "float16") for (let i = 0; i < data.length; i++) into[start + i] = halfBits(data[i]);
  else if (dtype === "bfloat16") for (let i = 0; i < data.length; i++) into[start + i] = singleBits(data[i]) >>> 16;
  else into.set(data, start);
}

/** A text with an accent and its letter as one character (NFC), where some systems write two. */
export const composed = (value) => (typeof value === "string" ? value.normalize("NFC") : value);

/** Throws ConfigError for a key of a JSON object that is missing, and for one that is not known. */
export function checkKeys(value, needed, more, where) {
  for (const name of [...needed].sort()) {
    if (!Object.hasOwn(value, name)) throw new ConfigError(`${where}: it has no ${quoted(name)}`);
  }
  for (const name of Object.keys(value)) {
    if (![...needed, ...more].includes(name)) {
      const near = nearest(name, [...needed, ...more]);
      throw new ConfigError(`${where}: it has a ${quoted(name)}, which is not known here${near}`);
    }
  }
}

/** Whether it is an object of JSON. */
export const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

/** Whether a value is an i32 from 0 on. */
export const isCount = (value) => Number.isInteger(value) && value >= 0 && value < 2 ** 31;

/** Whether a value is an i32 from 1 on. */
export const isSize = (value) => isCount(value) && value > 0;

/** Whether a name may be that of a file in a folder, and does not lead out of it. */
export function isFileName(name) {
  const printable = typeof name === "string" && !/[\p{C}\p{Zl}\p{Zp}]|(?! )\p{Zs}/u.test(name);
  return printable && !["", ".", ".."].includes(name) && !/[\\/]/.test(name);
}

function flattened(name, value) {
  if (ArrayBuffer.isView(value) && !(value instanceof DataView)) {
    return { data: Array.from(value, (each) => plain(name, each, value)), shape: [value.length] };
  }
  if (isObject(value) && Array.isArray(value.shape) && value.data !== undefined) {
    const data = Array.from(value.data, (each) => plain(name, each, value));
    if (!value.shape.every(isCount) || value.shape.reduce((a, b) => a * b, 1) !== data.length) {
      throw wrong(name, `it has ${data.length} numbers, which are not of shape ${JSON.stringify(value.shape)}`);
    }
    return { data, shape: [...value.shape] };
  }
  const data = [];
  const shape = [];
  let dims; // of the first number that was seen
  const ragged = () => wrong(name, "its lists differ in length, or are too deep");
  const visit = (part, depth) => {
    const list = Array.isArray(part) || (ArrayBuffer.isView(part) && !(part instanceof DataView));
    if (!list) {
      if (depth !== (dims ??= depth)) throw ragged();
      data.push(depth > 0 && (part === null || part === undefined) ? NaN : plain(name, part, value));
      return;
    }
    if (depth >= DEEPEST || depth >= (dims ?? DEEPEST)) throw ragged();
    if (part.length !== (shape[depth] ??= part.length)) throw ragged();
    for (const each of part) visit(each, depth + 1);
  };
  visit(value, 0);
  if (dims !== undefined && dims !== shape.length) throw ragged();
  return { data, shape };
}

function plain(name, value, whole) {
  if (typeof value === "number") return value;
  if (typeof value === "boolean") return Number(value);
  if (typeof value === "bigint" && value >= -(2n ** 63n) && value < 2n ** 64n) return Number(value);
  throw wrong(name, `it has to be numbers, not ${abbreviated(whole)}`);
}

/** The nearest number with `bits` of fraction and exponents from `lowest` on; an infinity beyond `most`. */
function nearestFloat(number, bits, lowest, most) {
  if (!Number.isFinite(number) || number === 0) return number;
  const exponent = Math.max(Math.floor(Math.log2(Math.abs(number))), lowest);
  const unit = 2 ** (exponent - bits);
  const [scaled, below] = [number / unit, Math.floor(number / unit)];
  const rest = scaled - below;
  const even = below % 2 === 0 ? below : below + 1;
  const found = (rest < 0.5 ? below : rest > 0.5 ? below + 1 : even) * unit;
  if (Math.abs(found) > most) return number > 0 ? Infinity : -Infinity;
  return found === 0 && number < 0 ? -0 : found;
}

/** The bits of a number that is one of float16. */
function halfBits(number) {
  if (Number.isNaN(number)) return 0x7e00;
  const sign = number < 0 || Object.is(number, -0) ? 0x8000 : 0;
  const size = Math.abs(number);
  if (size === Infinity) return sign | 0x7c00;
  if (size < 2 ** -14) return sign | (size * 2 ** 24);
  const exponent = Math.floor(Math.log2(size));
  return sign | ((exponent + 15) << 10) | ((size / 2 ** exponent - 1) * 1024);
}

function singleBits(number) {
  return new Uint32Array(new Float32Array([number]).buffer)[0];
}
