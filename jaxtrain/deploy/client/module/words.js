// Normalizers and splitters of a tokenizer.json: what happens to a text before its words are merged.

import { ConfigError, quoted } from "./errors.js";

/** A function from a text to the normalized text. Throws ConfigError for a normalizer that is not known here. */
export function normalizerOf(normalizer) {
  if (normalizer === null || normalizer === undefined) return (text) => text;
  const kind = NORMALIZERS[normalizer.type];
  if (kind === undefined) throw unknown("normalizer", normalizer, NORMALIZERS);
  return kind(normalizer);
}

/** A function from pieces [{text, first}] to their words. Throws ConfigError for one that is not known here. */
export function splitterOf(splitter) {
  if (splitter === null || splitter === undefined) return (pieces) => pieces;
  const kind = SPLITTERS[splitter.type];
  if (kind === undefined) throw unknown("pre-tokenizer", splitter, SPLITTERS);
  return kind(splitter);
}

/** The letter that stands for each byte (Radford et al. 2019). */
export function byteLetters() {
  const printable = (byte) => (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
  let more = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(printable(byte) ? byte : more++));
}

const LETTERS = byteLetters();

const inLetters = (text) => Array.from(new TextEncoder().encode(text), (byte) => LETTERS[byte]).join("");

const each = (change) => (text) => [...text].map(change).join("");

const NORMALIZERS = {
  NFC: () => (text) => text.normalize("NFC"),
  NFD: () => (text) => text.normalize("NFD"),
  NFKC: () => (text) => text.normalize("NFKC"),
  NFKD: () => (text) => text.normalize("NFKD"),
  Lowercase: () => each((letter) => letter.toLowerCase()), // letter by letter: no final sigma
  StripAccents: () => (text) => text.replace(/\p{M}/gu, ""),
  Strip: ({ strip_left, strip_right }) => {
    const ends = [strip_left ? "^\\p{White_Space}+" : null, strip_right ? "\\p{White_Space}+$" : null];
    const pattern = new RegExp(ends.filter(Boolean).join("|") || "$^", "gu");
    return (text) => text.replace(pattern, "");
  },
  Prepend: ({ prepend }) => (text) => (text === "" ? "" : prepend + text),
  Replace: ({ pattern, content }) => {
    const found = patternOf(pattern);
    return (text) => text.replace(found, () => content);
  },
  ByteLevel: () => inLetters,
  Sequence: ({ normalizers }) => {
    const steps = normalizers.map(normalizerOf);
    return (text) => steps.reduce((found, step) => step(found), text);
  },
};

const WORDS = "'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

const SPLITTERS = {
  ByteLevel: ({ add_prefix_space, use_regex }) => {
    const cut = (use_regex ?? true) ? splitBy(patternOf({ Regex: WORDS }), "Isolated", false) : (text) => [text];
    const spaced = (text) => (add_prefix_space && !text.startsWith(" ") ? ` ${text}` : text);
    return pieces((text) => cut(spaced(text)).map(inLetters));
  },
  Metaspace: ({ replacement, prepend_scheme, add_prefix_space, split }) => {
    const scheme = prepend_scheme ?? ((add_prefix_space ?? true) ? "always" : "never");
    const cut = splitBy(patternOf({ String: replacement }), "MergedWithNext", false);
    return pieces((text, first) => {
      let found = text.replaceAll(" ", replacement);
      const wanted = scheme === "always" || (scheme === "first" && first);
      if (wanted && !found.startsWith(replacement)) found = replacement + found;
      return (split ?? true) ? cut(found) : [found];
    });
  },
  Split: ({ pattern, behavior, invert }) => pieces(splitBy(patternOf(pattern), behavior, invert ?? false)),
  Whitespace: () => pieces(splitBy(patternOf({ Regex: "\\w+|[^\\w\\s]+" }), "Removed", true)),
  WhitespaceSplit: () => pieces(splitBy(/\p{White_Space}/gu, "Removed", false)),
  Digits: ({ individual_digits }) =>
    pieces(splitBy(/\p{N}/gu, individual_digits ? "Isolated" : "Contiguous", false)),
  Punctuation: ({ behavior }) => pieces(splitBy(/[!-/:-@[-`{-~\p{P}]/gu, behavior ?? "Isolated", false)),
  Sequence: ({ pretokenizers }) => {
    const steps = pretokenizers.map(splitterOf);
    return (given) => steps.reduce((found, step) => step(found), given);
  },
};

/** A splitter of pieces: of a text at a time, without empty ones. Only what begins the whole text is its first. */
function pieces(split) {
  return (given) =>
    given.flatMap(({ text, first }) => {
      let seen = false;
      return split(text, first)
        .map((part) => {
          const found = { text: part, first: first && !seen };
          seen ||= part !== "";
          return found;
        })
        .filter((part) => part.text !== "");
    });
}

/** A function that splits a text by a pattern; `invert` takes what is between the matches for the matches. */
function splitBy(pattern, behavior, invert) {
  const join = JOINS[behavior];
  if (join === undefined) throw new ConfigError(`its split ${quoted(String(behavior))} is not known`);
  return (text) => {
    const parts = [];
    let from = 0;
    for (const match of text.matchAll(pattern)) {
      if (match.index > from) parts.push([text.slice(from, match.index), invert]);
      if (match[0] !== "") parts.push([match[0], !invert]);
      from = match.index + match[0].length;
    }
    if (from < text.length) parts.push([text.slice(from), invert]);
    return join(parts);
  };
}

/** From parts, of which some match, to the words. */
const JOINS = {
  Isolated: (parts) => parts.map(([text]) => text),
  Removed: (parts) => parts.filter(([, matches]) => !matches).map(([text]) => text),
  Contiguous: (parts) => joined(parts, ([, before], [, matches]) => before === matches),
  MergedWithPrevious: (parts) => joined(parts, ([, before], [, matches]) => matches && !before),
  MergedWithNext: (parts) => joined(parts, ([, before], [, matches]) => before && !matches),
};

/** The texts of parts, those put together of which `belongs` says so of two neighbours. */
function joined(parts, belongs) {
  const found = [];
  parts.forEach((part, place) => {
    if (place > 0 && belongs(parts[place - 1], part)) found.push(found.pop() + part[0]);
    else found.push(part[0]);
  });
  return found;
}

/** The pattern of a tokenizer.json, {String} or {Regex} of Oniguruma. Throws ConfigError for what JavaScript lacks. */
function patternOf(pattern) {
  if (pattern.String !== undefined) return new RegExp(pattern.String.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"), "gu");
  try {
    return new RegExp(translated(pattern.Regex), "gu");
  } catch (error) {
    throw new ConfigError(`its pattern ${quoted(pattern.Regex)} cannot be read by JavaScript: ${error.message}`);
  }
}

const CLASSES = {
  s: "\\p{White_Space}",
  S: "\\P{White_Space}",
  d: "\\p{Nd}",
  D: "\\P{Nd}",
  w: "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}",
};

const FOLDED = { s: "\u017f", S: "\u017f", k: "\u212a", K: "\u212a" }; // of which these letters are the lower case too

/** A regular expression of Oniguruma for JavaScript. Throws SyntaxError for what would match otherwise. */
function translated(source) {
  const tokens = source.match(/\\[pP]\{[^}]*\}|\\.|\(\?[a-z]+:|\(\?(?:<?[=!]|:)|[\s\S]/gu) ?? [];
  const groups = []; // for each open one, whether letters have no case in it
  let [found, inside, atStart] = ["", false, false];
  for (const [place, token] of tokens.entries()) {
    const anyCase = groups.includes(true);
    const known = token.startsWith("\\") ? CLASSES[token[1]] : undefined;
    if (/^\\[pP]\{/.test(token)) found += token;
    else if (known !== undefined) found += inside || known.startsWith("\\p{W") || known.startsWith("\\P") ? known : `[${known}]`;
    else if (/^\\[bBGKXRhHA-Zz]$/.test(token)) throw new SyntaxError(`${token} is not known`);
    else if (/^\\[^0-9A-Za-z]$/u.test(token)) found += escaped(token[1]);
    else if (inside) {
      if (token === "&" && tokens[place + 1] === "&") throw new SyntaxError("&& is not known");
      if (token === "[") throw new SyntaxError("a set within a set is not known");
      if (token === "]" && !atStart) inside = false;
      found += anyCase ? bothCases(token, true) : token;
      atStart = token === "^" && atStart;
      continue;
    } else if (token === "[") {
      [inside, atStart] = [true, true];
      found += token;
      continue;
    } else if (/^\(\?[a-z]+:$/.test(token)) {
      if (token !== "(?i:") throw new SyntaxError(`${token} is not known`);
      groups.push(true);
      found += "(?:";
    } else if (token.startsWith("(")) {
      groups.push(false);
      found += token;
    } else if (token === ")") {
      groups.pop();
      found += token;
    } else if (token === "+" && /^[+?*}]$/.test(tokens[place - 1] ?? "")) throw new SyntaxError("possessive repeats");
    else if (token === ".") found += "[^\\n]";
    else if (token === "^" || token === "$") throw new SyntaxError(`${token} is not known`);
    else found += anyCase ? bothCases(token, false) : token;
    atStart = false;
  }
  return found;
}

function bothCases(letter, inside) {
  const [lower, upper] = [letter.toLowerCase(), letter.toUpperCase()];
  if (lower === upper) return letter;
  const letters = lower + upper + (FOLDED[letter] ?? "");
  return inside ? letters : `[${letters}]`;
}

const escaped = (letter) => (/[\\^$.*+?()[\]{}|/-]/.test(letter) ? (letter === "-" ? "\\u002d" : `\\${letter}`) : letter);

function unknown(what, { type }, kinds) {
  return new ConfigError(`its ${what} ${quoted(String(type))} is not known: ${Object.keys(kinds).join(", ")}`);
}
