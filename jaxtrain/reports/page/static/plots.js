// Draws the plots of a page by uPlot, from the numbers in its JSON. Not here: the controls of the whole page.
"use strict";

const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3]];
const COLOURS = 8;
const FEWEST = 20; // points of a series that is smoothed

/** A colour of the page's style, as it is now. */
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** One plot of the page. */
class Chart {
  constructor(holder, spec, arrays) {
    Object.assign(this, { holder, spec, arrays, hidden: new Set(), logX: spec.logX, logY: spec.logY });
    this.figure = holder.closest("figure");
    this.readout = this.figure.querySelector(".readout");
    this.note = document.createElement("p");
    this.note.className = "note";
    this.readout.after(this.note);
    this.controls();
    holder.addEventListener("keydown", (event) => this.key(event));
  }

  /** Buttons that hide series, and switches of logarithmic scales. */
  controls() {
    const place = this.figure.querySelector(".controls");
    this.spec.series.forEach((series, n) => {
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-pressed", "true");
      button.title = "show or hide";
      const swatch = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      swatch.setAttribute("viewBox", "0 0 24 8");
      swatch.setAttribute("width", "24");
      swatch.setAttribute("height", "8");
      swatch.setAttribute("aria-hidden", "true");
      const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
      line.setAttribute("d", "M0 4H24");
      line.setAttribute("stroke", series.faint ? "var(--faint)" : `var(--c${n % COLOURS})`);
      line.setAttribute("stroke-width", series.kind === "line" ? "3" : "8");
      line.setAttribute("stroke-dasharray", this.dash(n).join(" "));
      swatch.append(line);
      button.append(swatch, series.name);
      button.addEventListener("click", () => {
        const show = this.hidden.has(n);
        if (show) this.hidden.delete(n); else this.hidden.add(n);
        button.setAttribute("aria-pressed", String(show));
        this.draw();
      });
      place.append(button);
    });
    const switches = document.createElement("span");
    switches.className = "switches";
    place.append(switches);
    for (const axis of ["Y", "X"]) {
      const label = document.createElement("label"), box = document.createElement("input");
      box.type = "checkbox";
      box.checked = this[`log${axis}`];
      box.addEventListener("change", () => { this[`log${axis}`] = box.checked; this.draw(); });
      label.append(box, `log ${axis.toLowerCase()}`);
      switches.append(label);
    }
  }

  dash(n) {
    const { kind, faint } = this.spec.series[n];
    return faint ? [4, 4] : kind === "line" ? DASHES[Math.floor(n / COLOURS) % DASHES.length] : [];
  }

  /** The lines to draw: of each series, the values, their smoothed form, and the edges of the band. */
  lines(x, smoothing) {
    const { arrays } = this, lines = [], bands = [];
    let lost = 0, longest = 0;
    this.spec.series.forEach((series, n) => {
      if (this.hidden.has(n) || !(x in series.x)) return;
      const own = arrays[series.x[x]], smooth = smoothing > 0 && series.smooth && series.kind === "line" && own.length >= FEWEST;
      longest = Math.max(longest, ...own.slice(-1));
      const add = (at, y, how, counted) => {
        const kept = [], values = [];
        at.forEach((each, place) => {
          if (each === null) return;
          if (this.logX && !(each > 0)) { lost += counted ? 1 : 0; return; }
          const bad = y[place] !== null && this.logY && !(y[place] > 0);
          lost += counted && bad ? 1 : 0;
          kept.push(each);
          values.push(bad ? null : y[place]);
        });
        lines.push({ x: kept, y: values, n, series, ...how });
        return lines.length;
      };
      if ("low" in series) {
        const low = add(own, arrays[series.low], { role: "edge" }), high = add(own, arrays[series.high], { role: "edge" });
        bands.push({ series: [high, low], n });
      }
      add(own, arrays[series.y], { role: smooth ? "raw" : "main" }, true);
      if (smooth) {
        const { mean } = series;
        if (mean) add(arrays[mean.x[x]], smoothed(arrays[mean.y], smoothing, arrays[mean.count]), { role: "main" });
        else add(own, smoothed(arrays[series.y], smoothing), { role: "main" });
      }
    });
    return { lines, bands, lost, longest };
  }

  /** Draws the plot anew. page: { x, smoothing } as the page's controls have them. */
  draw(page = this.page) {
    this.page = page;
    const { spec } = this, x = spec.series.some((series) => page.x in series.x) ? page.x : spec.x;
    const width = this.holder.clientWidth;
    if (!width) return;
    const { lines, bands, lost, longest } = this.lines(x, page.smoothing);
    const unit = unitOf(x, longest);
    for (const line of lines) if (unit.by !== 1) line.x = line.x.map((at) => at / unit.by);
    const data = joined(lines), empty = !lines.some((line) => line.y.some((y) => y !== null));
    const scales = [this.logX && "x", this.logY && "y"].filter(Boolean).join(" and ");
    this.note.textContent = empty
      ? lines.length ? `Nothing is above 0, which a logarithmic ${scales} axis needs.` : "All series are hidden."
      : lost ? `Left out, since a logarithmic axis begins above 0: ${lost.toLocaleString("en")} point${lost > 1 ? "s" : ""}.` : "";
    this.marks = spec.marks.map(([at, text, kind]) => {
      const from = x === spec.x ? at : spec.series.map((s) => converted(s, this.arrays, spec.x, x, at)).find((v) => v !== null);
      return { at: from === undefined || from === null ? null : from / unit.by, text, kind };
    }).filter((mark) => mark.at !== null);
    this.shown = { lines, unit, data };
    this.plot?.destroy();
    this.plot = new uPlot(this.options(width, unit, lines, bands), data, this.holder);
    this.readout.textContent = "";
  }

  options(width, unit, lines, bands) {
    const { spec } = this, log = (on) => (on ? { distr: 3, log: 10 } : { distr: 1 });
    const least = spec.least ?? [Infinity, -Infinity], text = colour("muted"), grid = { stroke: colour("grid"), width: 1 };
    const split = (space) => (u, side, low, high) =>
      ticks(low, high, Math.max(2, Math.floor((side ? u.bbox.height : u.bbox.width) / uPlot.pxRatio / space)), side ? this.logY : this.logX);
    const axis = { stroke: text, grid, ticks: grid, font: "11px system-ui, sans-serif", labelFont: "11px system-ui, sans-serif", filter: (_, splits) => splits };
    const label = (_, values) => labels(values);
    const room = (_, values) => 18 + 6.5 * Math.max(3, ...(values ?? []).map((value) => value.length));
    return {
      width, height: Math.max(220, Math.min(300, Math.round(width * 0.56))), legend: { show: false }, padding: [14, 26, 0, 0],
      scales: {
        x: { time: false, ...log(this.logX), range: (_, low, high) => limits(low, high, this.logX, true) },
        y: { ...log(this.logY), range: (_, low, high) => (low === null || this.logY ? limits(low, high, this.logY)
          : limits(Math.min(low, least[0]), Math.max(high, least[1]), false, low >= least[0] && high <= least[1])) },
      },
      axes: [
        { ...axis, label: unit.label, labelSize: 16, size: 30, values: label, splits: split(64) },
        { ...axis, label: spec.y, labelSize: spec.y ? 16 : 0, size: room, values: label, splits: split(36) },
      ],
      series: [{}, ...lines.map((line) => this.style(line))],
      bands: bands.map(({ series, n }) => ({ series, fill: colour(`c${n % COLOURS}`) + "2e" })),
      cursor: { drag: { x: true, y: false }, y: false, points: { show: false }, sync: { key: unit.label, scales: ["x", null] } },
      hooks: { draw: [(u) => this.drawMarks(u)], setCursor: [(u) => this.say(u)] },
    };
  }

  style({ n, series, role, y }) {
    const own = series.faint ? colour("faint") : colour(`c${n % COLOURS}`), count = y.filter((v) => v !== null && v !== undefined).length;
    const found = { stroke: own, width: 1.6, dash: this.dash(n), spanGaps: false, points: { show: count <= 30, size: 5, fill: own } };
    if (series.faint) return { ...found, width: 1, points: { show: false } };
    if (role === "edge") return { ...found, width: 0.5, stroke: own + "66", points: { show: false } };
    if (role === "raw") return { ...found, width: 1, stroke: own + "48", points: { show: false } };
    if (series.kind === "points") return { ...found, paths: () => null, points: { show: true, size: 5, width: 0, fill: own + "88", stroke: own + "88" } };
    if (series.kind === "bars") return { ...found, paths: uPlot.paths.bars({ size: [0.9, 60] }), fill: own + "77", points: { show: false } };
    return found;
  }

  /** Vertical lines with their texts, where these do not cover each other. */
  drawMarks(u) {
    const { ctx, bbox } = u, scale = uPlot.pxRatio, { left, top, width, height } = bbox;
    ctx.save();
    ctx.font = `${10 * scale}px system-ui, sans-serif`;
    ctx.textAlign = "right";
    let free = -Infinity;
    for (const { at, text, kind } of [...this.marks].sort((a, b) => a.at - b.at)) {
      const x = Math.round(u.valToPos(at, "x", true));
      if (!(x >= left - 1 && x <= left + width + 1)) continue;
      ctx.strokeStyle = ctx.fillStyle = colour(["restart", "warning", "damage", "save"].includes(kind) ? kind : "event");
      ctx.lineWidth = scale;
      ctx.setLineDash(kind === "save" ? [] : [3 * scale, 3 * scale]);
      ctx.beginPath();
      ctx.moveTo(x, kind === "save" ? top + height - 7 * scale : top);
      ctx.lineTo(x, top + height);
      ctx.stroke();
      if (kind === "save" || x < free) continue;
      free = x + 13 * scale;
      ctx.save();
      ctx.translate(x - 3 * scale, top + 4 * scale);
      ctx.rotate(-Math.PI / 2);
      ctx.fillText(text.length > 26 ? `${text.slice(0, 25)}…` : text, 0, 0);
      ctx.restore();
    }
    ctx.restore();
  }

  /** Says the values under the cursor, and the event there. */
  say(u) {
    const { idx, left } = u.cursor;
    if (idx === null || idx === undefined || left < 0) { this.readout.textContent = ""; return; }
    const at = this.shown.data[0][idx], said = [`${this.shown.unit.label} ${short(at)}`];
    for (const line of this.shown.lines) {
      if (line.role === "edge" || line.role === "raw") continue;
      const value = nearest(line, at);
      if (value !== null && value !== undefined) said.push(`${line.series.name} ${short(value)}`);
    }
    const mark = this.marks.find((each) => Math.abs(u.valToPos(each.at, "x") - left) < 6);
    this.readout.textContent = said.join(" · ") + (mark ? ` · ${mark.text}` : "");
  }

  /** Moves the cursor by the arrow keys, Home and End; Escape shows all again. */
  key(event) {
    const u = this.plot, count = this.shown?.data[0].length;
    if (!u || !count) return;
    const now = u.cursor.idx ?? -1, by = { ArrowRight: 1, ArrowLeft: -1, PageDown: 10, PageUp: -10 }[event.key];
    let next = by === undefined ? { Home: 0, End: count - 1 }[event.key] : now + by;
    if (event.key === "Escape") { this.draw(); return; }
    if (next === undefined) return;
    event.preventDefault();
    next = Math.max(0, Math.min(count - 1, next));
    u.setCursor({ left: u.valToPos(this.shown.data[0][next], "x"), top: 10 });
  }
}
