// Text to token ids by a tokenizer.json of the `tokenizers` library: byte pair encoding (Sennrich et al. 2016).
//
// Added tokens are split off, the rest is normalized, split into words, and each word merged. What is not known here
// is refused by name, so that no text gets other tokens than in Python.

import { ConfigError, quoted } from "./errors.js";
import { byteLetters, normalizerOf, splitterOf } from "./words.js";

/** A function from a text to its token ids. Throws ConfigError for a file that is none, or of a kind not known here. */
export function tokenizerOf(file, where = "tokenizer.json") {
  try {
    const { encode, vocab } = new Tokenizer(file);
    return Object.assign(encode, { vocab });
  } catch (error) {
    if (error instanceof TypeError || error instanceof SyntaxError || error instanceof ConfigError) {
      throw new ConfigError(`${where}: ${error.message}`);
    }
    throw error;
  }
}

class Tokenizer {
  constructor({ added_tokens, normalizer, pre_tokenizer, model, post_processor, truncation, padding }) {
    this.normalize = normalizerOf(normalizer);
    this.split = splitterOf(pre_tokenizer);
    this.tokensOf = modelOf(model);
    [this.before, this.after] = templateOf(post_processor);
    [this.truncation, this.padding] = [truncation ?? null, padding ?? null];
    const tokens = (added_tokens ?? []).filter(({ content }) => content !== "");
    this.vocab = new Set([...Object.keys(model.vocab), ...tokens.map(({ content }) => content)]).size;
    this.raw = added(tokens.filter(({ normalized, special }) => !(normalized ?? !special)));
    const rest = tokens.filter(({ normalized, special }) => normalized ?? !special);
    this.normalized = added(rest.map((each) => ({ ...each, content: this.normalize(each.content) })));
  }

  encode = (text) => {
    const ids = [];
    const whole = { text, first: true };
    for (const part of this.raw(whole)) {
      if (part.id !== undefined) ids.push(part.id);
      else {
        for (const piece of this.normalized({ ...part, text: this.normalize(part.text) })) {
          if (piece.id !== undefined) ids.push(piece.id);
          else for (const word of this.split([piece])) ids.push(...this.tokensOf(word.text));
        }
      }
    }
    return this.padded([...this.before, ...this.cut(ids), ...this.after]);
  };

  cut(ids) {
    if (this.truncation === null) return ids;
    const most = this.truncation.max_length - this.before.length - this.after.length;
    if (ids.length <= most) return ids;
    return this.truncation.direction === "Left" ? ids.slice(ids.length - most) : ids.slice(0, most);
  }

  padded(ids) {
    if (this.padding === null) return ids;
    const { strategy, pad_to_multiple_of, pad_id, direction } = this.padding;
    let length = typeof strategy === "object" ? strategy.Fixed : ids.length;
    if (pad_to_multiple_of) length = Math.ceil(length / pad_to_multiple_of) * pad_to_multiple_of;
    const pad = new Array(Math.max(0, length - ids.length)).fill(pad_id);
    return direction === "Left" ? [...pad, ...ids] : [...ids, ...pad];
  }
}

/** A function that splits added tokens off a piece {text, first}; they become {id}. The longest one wins. */
function added(tokens) {
  if (tokens.length === 0) return (piece) => (piece.text === "" ? [] : [piece]);
  const known = new Map(tokens.map((each) => [each.content, each]));
  const contents = [...known.keys()].sort((a, b) => b.length - a.length);
  const pattern = new RegExp(contents.map((each) => each.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&")).join("|"), "gu");
  return ({ text, first }) => {
    const found = [];
    let from = 0;
    const push = (to) => to > from && found.push({ text: text.slice(from, to), first: first && from === 0 });
    for (const match of text.matchAll(pattern)) {
      const token = known.get(match[0]);
      let [start, stop] = [match.index, match.index + match[0].length];
      if (token.single_word && (WORD_END.test(text.slice(0, start)) || WORD_START.test(text.slice(stop)))) continue;
      if (token.lstrip) start = Math.max(text.slice(0, start).search(/\p{White_Space}*$/u), from);
      if (token.rstrip) stop += /^\p{White_Space}*/u.exec(text.slice(stop))[0].length;
      push(start);
      found.push({ id: token.id });
      from = stop;
    }
    push(text.length);
    return found;
  };
}

const WORD = "[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}]";
const WORD_END = new RegExp(`${WORD}$`, "u");
const WORD_START = new RegExp(`^${WORD}`, "u");

/** The token ids that a post-processor puts before and after those of one text. */
function templateOf(processor) {
  if (processor === null || processor === undefined || processor.type === "ByteLevel") return [[], []];
  if (processor.type === "BertProcessing" || processor.type === "RobertaProcessing") {
    return [[processor.cls[1]], [processor.sep[1]]];
  }
  if (processor.type === "Sequence") {
    return processor.processors.map(templateOf).reduce(
      ([before, after], [more, last]) => [
        [...more, ...before],
        [...after, ...last],
      ],
      [[], []],
    );
  }
  if (processor.type !== "TemplateProcessing") throw new ConfigError(`its post-processor ${processor.type} is not known`);
  const place = processor.single.findIndex((each) => each.Sequence !== undefined);
  const ids = (parts) => parts.flatMap(({ SpecialToken }) => processor.special_tokens[SpecialToken.id].ids);
  return [ids(processor.single.slice(0, place)), ids(processor.single.slice(place + 1))];
}

/** A function from a word to its token ids. */
function modelOf(model) {
  if ((model.type ?? "BPE") !== "BPE" || model.merges === undefined) {
    throw new ConfigError(`its model ${quoted(String(model.type))} is not known: BPE`);
  }
  const words = new Map();
  const bpe = new BytePairs(model);
  return (word) => {
    let ids = words.get(word);
    if (ids === undefined) {
      ids = bpe.encode(word);
      if (words.size < 10000) words.set(word, ids);
    }
    return ids;
  };
}

class BytePairs {
  constructor(model) {
    if (model.dropout) throw new ConfigError("its dropout draws random numbers");
    this.vocab = new Map(Object.entries(model.vocab));
    this.prefix = model.continuing_subword_prefix ?? "";
    this.suffix = model.end_of_word_suffix ?? "";
    this.whole = model.ignore_merges ?? false;
    this.bytes = model.byte_fallback ?? false;
    this.fuse = model.fuse_unk ?? false;
    this.unknown = null;
    if (model.unk_token !== null && model.unk_token !== undefined) {
      this.unknown = this.vocab.get(model.unk_token);
      if (this.unknown === undefined) throw new ConfigError(`its unknown token ${quoted(model.unk_token)} has no id`);
    }
    this.merges = new Map();
    for (const [rank, each] of model.merges.entries()) {
      const [left, right] = typeof each === "string" ? each.split(" ") : each;
      const made = this.vocab.get(left + right.slice(this.prefix.length));
      const key = pair(this.vocab.get(left), this.vocab.get(right));
      if (made === undefined || Number.isNaN(key)) throw new ConfigError(`its merge ${rank} is not of its vocabulary`);
      this.merges.set(key, { rank, made });
    }
  }

  encode(word) {
    if (this.whole && this.vocab.has(word)) return [this.vocab.get(word)];
    const found = [];
    const letters = [...word];
    let unknown = false; // whether the letter before is unknown and waits to be fused
    letters.forEach((letter, place) => {
      const inside = (place > 0 ? this.prefix : "") + letter + (place === letters.length - 1 ? this.suffix : "");
      const id = this.vocab.get(inside);
      if (id !== undefined) {
        found.push(id);
        unknown = false;
        return;
      }
      const bytes = this.bytes ? [...new TextEncoder().encode(inside)].map((byte) => this.vocab.get(byteToken(byte))) : [];
      if (bytes.length > 0 && bytes.every((each) => each !== undefined)) {
        found.push(...bytes);
        unknown = false;
      } else if (this.unknown !== null) {
        if (!(unknown && this.fuse)) found.push(this.unknown);
        unknown = true;
      }
    });
    return this.merged(found);
  }

  /** Merges the pair of the lowest rank, of equal ones the first, until none is left. */
  merged(ids) {
    const previous = ids.map((_, place) => place - 1);
    const next = ids.map((_, place) => (place + 1 < ids.length ? place + 1 : -1));
    const gone = new Array(ids.length).fill(false);
    const queue = new Queue();
    const offer = (left, right) => {
      const merge = left >= 0 && right >= 0 ? this.merges.get(pair(ids[left], ids[right])) : undefined;
      if (merge !== undefined) queue.push({ ...merge, place: left });
    };
    for (let place = 0; place + 1 < ids.length; place++) offer(place, place + 1);
    for (let top = queue.pop(); top !== undefined; top = queue.pop()) {
      const { place, made } = top;
      const right = next[place];
      if (gone[place] || right < 0 || this.merges.get(pair(ids[place], ids[right]))?.made !== made) continue;
      ids[place] = made;
      gone[right] = true;
      next[place] = next[right];
      if (next[place] >= 0) previous[next[place]] = place;
      offer(previous[place], place);
      offer(place, next[place]);
    }
    return ids.filter((_, place) => !gone[place]);
  }
}

/** A binary heap: the lowest rank first, of equal ones the first place. */
class Queue {
  items = [];

  push(item) {
    const { items } = this;
    let at = items.push(item) - 1;
    while (at > 0 && before(items[at], items[(at - 1) >> 1])) {
      [items[at], items[(at - 1) >> 1]] = [items[(at - 1) >> 1], items[at]];
      at = (at - 1) >> 1;
    }
  }

  pop() {
    const { items } = this;
    const top = items[0];
    const last = items.pop();
    if (items.length === 0) return top;
    items[0] = last;
    for (let at = 0; ; ) {
      let least = at;
      for (const child of [2 * at + 1, 2 * at + 2]) {
        if (child < items.length && before(items[child], items[least])) least = child;
      }
      if (least === at) return top;
      [items[at], items[least]] = [items[least], items[at]];
      at = least;
    }
  }
}

const before = (one, other) => one.rank < other.rank || (one.rank === other.rank && one.place < other.place);

const pair = (left, right) => left * 2 ** 26 + right; // exact: vocabularies have fewer than 2**26 tokens

const byteToken = (byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`;

/** A function from token ids to their text. Special tokens are left out. */
export function decoderOf({ added_tokens, decoder, model }, where = "tokenizer.json") {
  const special = new Set((added_tokens ?? []).filter((each) => each.special).map((each) => each.id));
  const names = new Map(Object.entries(model.vocab).map(([token, id]) => [id, token]));
  for (const { id, content } of added_tokens ?? []) names.set(id, content);
  if (decoder?.type !== "ByteLevel") throw new ConfigError(`${where}: its decoder ${decoder?.type} is not known: ByteLevel`);
  const bytes = new Map(byteLetters().map((letter, byte) => [letter, byte]));
  return (ids) => {
    const found = [];
    for (const id of ids) {
      if (special.has(id) || !names.has(id)) continue;
      const letters = [...names.get(id)];
      if (letters.every((letter) => bytes.has(letter))) found.push(...letters.map((letter) => bytes.get(letter)));
      else found.push(...new TextEncoder().encode(names.get(id)));
    }
    return new TextDecoder().decode(Uint8Array.from(found));
  };
}
