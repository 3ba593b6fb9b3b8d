// Controls of the whole page: what stands on the x axes, smoothing, colours. Not here: the drawing of a plot.
"use strict";

{
  const { plots, arrays } = JSON.parse(document.querySelector('script[type="application/json"]').textContent);
  const charts = [...document.querySelectorAll("[data-plot]")].map((holder) => new Chart(holder, plots[holder.dataset.plot], arrays));
  const longest = (series) => arrays[series.y].length;
  const smooth = plots.flatMap((plot) => plot.series).filter((series) => series.smooth && series.kind === "line" && longest(series) >= FEWEST);
  const state = { x: plots.length ? plots[0].x : "step", smoothing: smooth.some((series) => longest(series) >= 200) ? 0.9 : 0 };
  const toolbar = document.querySelector(".toolbar");

  let waiting = false;
  const draw = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      for (const chart of charts) chart.draw(state);
      document.documentElement.dataset.drawn = String(charts.length);
    });
  };

  const labelled = (text, ...elements) => {
    const label = document.createElement("label");
    label.append(text, ...elements);
    toolbar.append(label);
  };
  const choice = (text, options, change) => {
    const select = document.createElement("select");
    for (const option of options) select.append(new Option(option, option));
    select.addEventListener("change", () => change(select.value));
    labelled(text, select);
  };

  const several = plots.flatMap((plot) => plot.series.flatMap((series) => (Object.keys(series.x).length > 1 ? Object.keys(series.x) : [])));
  if (several.length) {
    state.x = several[0];
    choice("x axis", [...new Set(several)], (x) => { state.x = x; draw(); });
  }
  if (smooth.length) {
    const slider = document.createElement("input"), shown = document.createElement("output");
    Object.assign(slider, { type: "range", min: 0, max: 100, step: 1 });
    // The slider moves the number of points averaged over, 1 / (1 - decay), from 1 to 1000 by equal factors.
    slider.value = String(Math.round((100 * Math.log10(1 / (1 - state.smoothing))) / 3));
    shown.textContent = state.smoothing.toFixed(3);
    slider.addEventListener("input", () => {
      state.smoothing = 1 - 10 ** ((-3 * slider.value) / 100);
      shown.textContent = state.smoothing.toFixed(3);
      draw();
    });
    slider.title = "decay of an exponential moving average; the values themselves stay faint";
    labelled("smoothing", slider, shown);
  }
  choice("colours", ["as the system", "light", "dark"], (theme) => {
    if (theme === "as the system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    draw();
  });

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  const now = () => { for (const chart of charts) chart.draw(state); };
  addEventListener("beforeprint", now);
  matchMedia("print").addEventListener("change", now);
  addEventListener("afterprint", now);
  let width = 0;
  new ResizeObserver(() => {
    if (document.body.clientWidth === width) return;
    width = document.body.clientWidth;
    draw();
  }).observe(document.body);
  for (const details of document.querySelectorAll("details:has([data-plot])")) details.addEventListener("toggle", draw);
  draw();
}
