// Numbers of a plot: their text, their place on an axis, smoothing. Not here: drawing.
"use strict";

/** A number in few characters: up to `digits` of them, an exponent where it is very large or small. */
function short(value, digits = 5) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e15 || size < 1e-3) return value.toExponential(Math.min(digits, 8) - 2).replace(/\.?0+e/, "e").replace("e+", "e");
  const notation = size >= 1e5 && digits <= 5 ? "compact" : "standard";
  return new Intl.NumberFormat("en", { notation, maximumSignificantDigits: digits }).format(value);
}

/** The labels of an axis: as many digits as tell its ticks apart. */
function labels(values) {
  const known = values.filter((value) => value !== null), step = known.length > 1 ? Math.abs(known[1] - known[0]) : 0;
  const largest = Math.max(...known.map(Math.abs)), needed = step > 0 ? Math.ceil(Math.log10(largest / step)) + 2 : 5;
  return values.map((value) => (value === null ? "" : short(value, Math.min(Math.max(5, needed), 15))));
}

/** Seconds in the unit that fits the longest. */
function unitOf(name, longest) {
  if (name !== "seconds") return { label: name, by: 1 };
  if (longest > 7200) return { label: "hours", by: 3600 };
  return longest > 300 ? { label: "minutes", by: 60 } : { label: "seconds", by: 1 };
}

/** An exponential moving average in which the first values count no more than the later; gaps stay gaps.
 *  counts: how many values each one stands for. */
function smoothed(y, decay, counts) {
  let sum = 0, weight = 0;
  return y.map((value, place) => {
    if (value === null) return null;
    const kept = decay ** (counts ? counts[place] : 1);
    sum = sum * kept + value * (1 - kept);
    weight = weight * kept + 1 - kept;
    return weight > 0 ? sum / weight : value;
  });
}

/** Lines with x of their own on one x: where a line has no point, undefined, which is no gap. */
function joined(lines) {
  const at = lines.map(() => 0), xs = [], ys = lines.map(() => []);
  for (;;) {
    let next = Infinity;
    lines.forEach((line, n) => { if (at[n] < line.x.length) next = Math.min(next, line.x[at[n]]); });
    if (next === Infinity) return [xs, ...ys];
    xs.push(next);
    lines.forEach((line, n) => ys[n].push(line.x[at[n]] === next ? line.y[at[n]++] : undefined));
  }
}

/** The limits of an axis for values from low to high. */
function limits(low, high, log, tight) {
  if (low === null || low === undefined || !Number.isFinite(low)) return log ? [0.1, 1] : [0, 1];
  if (log) return low === high ? [low / 10, high * 10] : tight ? [low, high] : uPlot.rangeLog(low, high, 10, false);
  if (high - low <= 1e-12 * Math.max(Math.abs(low), Math.abs(high))) return [low - (Math.abs(low) * 0.1 || 1), high + (Math.abs(low) * 0.1 || 1)];
  const pad = tight ? 0 : (high - low) * 0.06, most = 8e307;
  return [Math.max(low - pad, -most), Math.min(high + pad, most)];
}

/** Where an axis has ticks, about `count` of them: uPlot's own rule ends at 1e15, and counts up to it. */
function ticks(low, high, count, log) {
  const decades = log ? Math.log10(high / low) : 0;
  if (decades >= 1) {
    const first = Math.ceil(Math.log10(low) - 1e-9), last = Math.floor(Math.log10(high) + 1e-9);
    const by = Math.max(1, Math.ceil((last - first) / count)), found = [];
    for (let power = first; power <= last; power += by) {
      for (const part of decades < count / 3 ? [1, 2, 5] : [1]) {
        const value = Number(`${part}e${power}`);
        if (value >= low * (1 - 1e-9) && value <= high * (1 + 1e-9)) found.push(value);
      }
    }
    return found;
  }
  const rough = high / count - low / count, power = 10 ** Math.floor(Math.log10(rough));
  const by = power * ([1, 2, 2.5, 5].find((part) => part * power >= rough) ?? 10), found = [];
  for (let n = Math.ceil(low / by); n * by <= high && found.length < 100; n++) found.push(Number((n * by).toPrecision(12)));
  return found;
}

/** A value on an axis x of a series at the place where another of its axes has `at`. */
function converted(series, arrays, from, to, at) {
  const source = arrays[series.x[from]], target = arrays[series.x[to]];
  if (!source || !target || !source.length) return null;
  const next = source.findIndex((x) => x >= at);
  if (next < 0) return target[target.length - 1];
  if (next === 0) return target[0];
  const share = (at - source[next - 1]) / (source[next] - source[next - 1] || 1);
  return target[next - 1] + share * (target[next] - target[next - 1]);
}

/** The value of a line at the point nearest to x. */
function nearest({ x, y }, at) {
  let low = 0, high = x.length - 1;
  if (high < 0) return null;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (x[middle] <= at) low = middle; else high = middle;
  }
  return at - x[low] <= x[high] - at ? y[low] : y[high];
}
