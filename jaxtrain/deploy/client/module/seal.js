// The hash that a manifest holds of itself.

/**
 * The text whose sha256 a manifest holds: its JSON without that key, as Python's json.dumps(…, sort_keys=True) writes
 * it. Numbers and strings stay as they are written, since JavaScript would write some of them otherwise.
 */
export function sealedText(text) {
  const tokens = text.match(/"(?:[^"\\]|\\.)*"|[{}[\]:,]|[^\s"{}[\]:,]+/g);
  let at = 0;
  function list() {
    const parts = [];
    for (; tokens[at] !== "]"; at += tokens[at] === "," ? 1 : 0) parts.push(value());
    at += 1;
    return `[${parts.join(", ")}]`;
  }
  function object(withoutSeal) {
    const parts = [];
    for (; tokens[at] !== "}"; at += tokens[at] === "," ? 1 : 0) {
      const key = tokens[at];
      at += 2; // the colon too
      const part = `${key}: ${value()}`;
      if (!withoutSeal || key !== '"sha256"') parts.push([JSON.parse(key), part]);
    }
    at += 1;
    parts.sort(([one], [other]) => byCodePoint(one, other));
    return `{${parts.map(([, part]) => part).join(", ")}}`;
  }
  function value(outermost = false) {
    const token = tokens[at];
    at += 1;
    if (token === "[") return list();
    return token === "{" ? object(outermost) : token;
  }
  return value(true);
}

/** The order of two texts in Python: by code points, where JavaScript's is by halves of them. */
function byCodePoint(one, other) {
  for (let place = 0; ; place += 1) {
    const [left, right] = [one.codePointAt(place), other.codePointAt(place)];
    if (left !== right) return (left ?? -1) - (right ?? -1);
    if (left === undefined) return 0;
  }
}
