// Errors, and values as Python writes them, so that a message is the same in every language.

/** A mistake in what was given: names the thing, the place and the nearest right name. */
export class ConfigError extends Error {
  name = "ConfigError";
}

/** A file that is not what was exported, or a runtime that computes something else. */
export class Damaged extends Error {
  name = "Damaged";

  constructor(file, why) {
    super(`${file}: ${why}`);
    this.file = file;
    this.why = why;
  }
}

/** A text in the quotes that Python takes. */
export function quoted(text) {
  const quote = text.includes("'") && !text.includes('"') ? '"' : "'";
  const escaped = text.replace(/[\\\n\r\t\p{Cc}\p{Cs}\p{Cf}\p{Zl}\p{Zp}]/gu, (each) => {
    const known = { "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t" }[each];
    const code = each.codePointAt(0);
    return known ?? (code < 256 ? `\\x${hex(code, 2)}` : code < 65536 ? `\\u${hex(code, 4)}` : `\\U${hex(code, 8)}`);
  });
  return quote + (quote === "'" ? escaped.replaceAll("'", "\\'") : escaped) + quote;
}

/** A number as Python's `str` writes a float. */
export function floatText(number) {
  if (Number.isNaN(number)) return "nan";
  if (!Number.isFinite(number)) return number > 0 ? "inf" : "-inf";
  let text = String(number);
  const [mantissa, exponent] = number.toExponential().split("e");
  const power = Number(exponent);
  if (number !== 0 && (power < -4 || power >= 16)) {
    return `${mantissa}e${power < 0 ? "-" : "+"}${String(Math.abs(power)).padStart(2, "0")}`;
  }
  if (/e/.test(text)) text = number.toFixed(Math.max(0, mantissa.replace(/^-?\d\.?/, "").length - power));
  if (Object.is(number, -0)) text = "-0";
  return /\./.test(text) ? text : `${text}.0`;
}

/** A number as Python's format `g` writes it. */
export function generalText(number) {
  const [mantissa, exponent] = number.toExponential(5).split("e");
  if (Number(exponent) >= -4 && Number(exponent) < 6) return String(Number(number.toPrecision(6)));
  const power = Math.abs(Number(exponent));
  return `${Number(mantissa)}e${exponent[0]}${String(power).padStart(2, "0")}`;
}

/** A value as Python's `repr` writes it. */
export function repr(value) {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value === "number") return Number.isSafeInteger(value) && !Object.is(value, -0) ? String(value) : floatText(value);
  if (typeof value === "bigint") return String(value);
  if (typeof value === "string") return quoted(value);
  if (Array.isArray(value) || ArrayBuffer.isView(value)) return `[${Array.from(value, repr).join(", ")}]`;
  if (typeof value !== "object") return String(value);
  return `{${Object.entries(value)
    .map(([name, each]) => `${quoted(name)}: ${repr(each)}`)
    .join(", ")}}`;
}

/** A value for a message, at most 80 characters. */
export function abbreviated(value) {
  const text = typeof value === "string" ? ascii(JSON.stringify(value)) : repr(value);
  const letters = [...text];
  return letters.length <= 80 ? text : `${letters.slice(0, 77).join("")}…`;
}

/** The error for a value, or a field, of an input. */
export function wrong(name, what) {
  return new ConfigError(`input ${quoted(name)}: ${what}`);
}

/** `; did you mean 'x'?` for the closest of the names, else all of them if `listed`. */
export function nearest(name, names, listed = true) {
  const known = [...names].sort();
  let best = null;
  for (const other of known) {
    const score = similarity(other, name);
    if (score >= 0.5 && (best === null || score >= best.score)) best = { score, other };
  }
  if (best !== null) return `; did you mean ${quoted(best.other)}?`;
  return known.length > 0 && listed ? `; known: ${known.join(", ")}` : "";
}

/** Twice the letters in matching blocks, over all letters (Ratcliff and Obershelp 1988), as Python's difflib. */
function similarity(one, other) {
  const [a, b] = [[...one], [...other]];
  const matched = (fromA, toA, fromB, toB) => {
    let [length, atA, atB] = [0, fromA, fromB];
    let ends = new Map();
    for (let i = fromA; i < toA; i++) {
      const next = new Map();
      for (let j = fromB; j < toB; j++) {
        if (a[i] !== b[j]) continue;
        const run = (ends.get(j - 1) ?? 0) + 1;
        next.set(j, run);
        if (run > length) [length, atA, atB] = [run, i - run + 1, j - run + 1];
      }
      ends = next;
    }
    if (length === 0) return 0;
    return length + matched(fromA, atA, fromB, atB) + matched(atA + length, toA, atB + length, toB);
  };
  return a.length + b.length === 0 ? 1 : (2 * matched(0, a.length, 0, b.length)) / (a.length + b.length);
}

function ascii(text) {
  return text.replace(/[^\x00-\x7f]/g, (each) => `\\u${hex(each.charCodeAt(0), 4)}`);
}

function hex(number, digits) {
  return number.toString(16).padStart(digits, "0");
}
