// Panels drawn as SVG: lines, stacked areas, big numbers, heat maps.
// A series is {name, points: [[unix seconds, value or null]]}.

import { format, ticks } from "./units.js";

const COLOURS = ["#2f6fde", "#e0842b", "#2f9e63", "#b24fc4", "#d6303f", "#2a9fb0", "#8a6d3b", "#5b61c9", "#8aa32b", "#c2528b"];
const GREEN = "#1f8f4d";
const RED = "#d6303f";
const SVG = "http://www.w3.org/2000/svg";
const LEFT = 62;
const BOTTOM = 18;

export const colour = (index) => COLOURS[index % COLOURS.length];

function node(name, attributes = {}, text = "") {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

const finite = (value) => value !== null && Number.isFinite(value);
const lastOf = (series) => series.points.map(([, value]) => value).filter(finite).at(-1) ?? null;

function stacked(all) {
  const floor = new Map();
  return all.map((series) => ({
    ...series,
    points: series.points.map(([at, value]) => {
      const below = floor.get(at) ?? 0;
      const top = below + (finite(value) ? value : 0);
      floor.set(at, top);
      return [at, top, below];
    }),
  }));
}

// Pieces without gaps.
function pieces(points) {
  const found = [];
  let open = null;
  for (const point of points) {
    if (!finite(point[1])) { open = null; continue; }
    if (!open) found.push(open = []);
    open.push(point);
  }
  return found;
}

function frame(body, range, low, high, unit) {
  const width = body.clientWidth, height = body.clientHeight;
  const svg = node("svg", { viewBox: `0 0 ${width} ${height}` });
  const x = (at) => LEFT + ((at - range.start) / (range.end - range.start)) * (width - LEFT - 6);
  const y = (value) => height - BOTTOM - ((value - low) / (high - low)) * (height - BOTTOM - 8);
  for (const value of ticks(low, high, unit)) {
    svg.append(node("line", { class: "rule", x1: LEFT, x2: width - 6, y1: y(value), y2: y(value) }));
    svg.append(node("text", { x: LEFT - 6, y: y(value) + 3.5, "text-anchor": "end" }, format(value, unit)));
  }
  times(svg, range, x, height);
  body.replaceChildren(svg);
  return { svg, x, y, width, height };
}

function times(svg, range, x, height) {
  const span = range.end - range.start;
  const step = [15, 30, 60, 120, 300, 600, 900].find((size) => span / size <= (x(range.end) - LEFT) / 60) ?? 1800;
  for (let at = Math.ceil(range.start / step) * step; at < range.end; at += step) {
    const clock = new Date(at * 1000).toTimeString().slice(0, step < 60 ? 8 : 5);
    if (x(at) < LEFT + 20 || x(at) > x(range.end) - 18) continue;
    svg.append(node("text", { x: x(at), y: height - 4, "text-anchor": "middle" }, clock));
  }
}

export function timeseries(body, panel, all, range) {
  const { defaults } = panel.fieldConfig;
  const custom = defaults.custom ?? {};
  const isStacked = custom.stacking?.mode === "normal";
  const drawn = isStacked ? stacked(all) : all;
  const values = drawn.flatMap((series) => series.points.map((point) => point[1])).filter(finite);
  const limit = custom.thresholdsStyle ? defaults.thresholds.steps.at(-1).value : null;
  const low = Math.min(defaults.min ?? Infinity, ...values);
  const top = Math.max(...values);
  // A limit far above everything would press the lines flat: then it stays out of the picture.
  const shown = limit !== null && limit < top * 6 + 1e-9 ? limit : null;
  const high = Math.max(top, shown ?? 0) * 1.06 || (limit ?? 1);
  const chart = frame(body, range, low, high, defaults.unit);
  drawn.map((series, index) => [series, index]).reverse().forEach(([series, index]) => {
    for (const piece of pieces(series.points)) draw(chart, piece, colour(index), custom.fillOpacity ?? 0, low);
  });
  if (limit !== null && limit <= high) {
    const at = chart.y(limit);
    chart.svg.append(node("line", { class: "limit", x1: LEFT, x2: chart.width - 6, y1: at, y2: at }));
  }
  return chart;
}

function draw(chart, piece, stroke, opacity, low) {
  const line = piece.map(([at, value]) => `${chart.x(at).toFixed(1)},${chart.y(value).toFixed(1)}`);
  const base = piece.map(([at, , below]) => `${chart.x(at).toFixed(1)},${chart.y(below ?? low).toFixed(1)}`).reverse();
  if (piece.length === 1) {
    chart.svg.append(node("circle", { cx: chart.x(piece[0][0]), cy: chart.y(piece[0][1]), r: 2, fill: stroke }));
    return;
  }
  if (opacity) {
    const fill = { points: [...line, ...base].join(" "), fill: stroke, "fill-opacity": opacity / 100, stroke: "none" };
    chart.svg.append(node("polygon", fill));
  }
  chart.svg.append(node("polyline", { points: line.join(" "), fill: "none", stroke, "stroke-width": 1.4 }));
}

export function legend(all, unit) {
  const list = document.createElement("ul");
  list.className = "legend";
  all.forEach((series, index) => {
    const item = document.createElement("li");
    const mark = document.createElement("i");
    mark.style.background = colour(index);
    const value = document.createElement("b");
    value.textContent = format(lastOf(series), unit);
    item.append(mark, series.name, value);
    list.append(item);
  });
  return list;
}

function judged(steps, value) {
  const reached = steps.filter((step) => step.value === null || value >= step.value).at(-1);
  return reached?.color === "red" ? RED : GREEN;
}

export function stat(body, panel, all, range) {
  const { defaults } = panel.fieldConfig;
  if (panel.options.textMode === "name") {
    const names = document.createElement("div");
    names.className = "names";
    names.append(...all.map((series) => Object.assign(document.createElement("span"), { textContent: series.name })));
    body.replaceChildren(names);
    return;
  }
  const value = lastOf(all[0]);
  const steps = defaults.thresholds.steps;
  const paint = steps.length > 1 ? judged(steps, value) : "var(--text)";
  const text = Object.assign(document.createElement("div"), { className: "value", textContent: format(value, defaults.unit) });
  text.style.color = paint;
  body.replaceChildren(text, spark(body, all[0], range, steps.length > 1 ? paint : COLOURS[0]));
}

function spark(body, series, range, stroke) {
  const width = body.clientWidth, height = Math.max(body.clientHeight * 0.34, 1);
  const values = series.points.map(([, value]) => value).filter(finite);
  const low = Math.min(0, ...values), high = Math.max(...values, low + 1e-12);
  const svg = node("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none" });
  const chart = {
    svg,
    x: (at) => ((at - range.start) / (range.end - range.start)) * width,
    y: (value) => height - ((value - low) / (high - low)) * (height - 2),
  };
  for (const piece of pieces(series.points)) draw(chart, piece, stroke, 15, low);
  return svg;
}

// Buckets are cumulative: a row holds what is in its bucket and not in the one below.
export function heatmap(body, panel, all, range) {
  const unit = panel.options.yAxis.unit;
  const rows = all.map((series) => ({ top: Number(series.name.replace("+Inf", "Infinity")), points: new Map(series.points) }));
  rows.sort((a, b) => a.top - b.top);
  const times_ = [...new Set(all.flatMap((series) => series.points.map(([at]) => at)))].sort((a, b) => a - b);
  const cells = rows.map((row, index) => times_.map((at) => {
    const below = index ? rows[index - 1].points.get(at) ?? 0 : 0;
    return Math.max((row.points.get(at) ?? 0) - below, 0);
  }));
  const used = cells.map((row) => row.some((value) => value > 1e-9));
  const first = Math.max(used.indexOf(true) - 1, 0), last = Math.min(used.lastIndexOf(true) + 1, rows.length - 1);
  drawHeat(body, { rows, cells, times: times_, first, last, unit }, range);
}

function drawHeat(body, { rows, cells, times: at, first, last, unit }, range) {
  const width = body.clientWidth, height = body.clientHeight;
  const svg = node("svg", { viewBox: `0 0 ${width} ${height}` });
  const x = (time) => LEFT + ((time - range.start) / (range.end - range.start)) * (width - LEFT - 6);
  const tall = (height - BOTTOM - 8) / (last - first + 1), wide = at.length > 1 ? x(at[1]) - x(at[0]) : 4;
  const most = Math.max(...cells.flat(), 1e-12);
  for (let row = first; row <= last; row += 1) {
    const top = height - BOTTOM - (row - first + 1) * tall;
    const name = Number.isFinite(rows[row].top) ? format(rows[row].top, unit) : "more";
    svg.append(node("text", { x: LEFT - 6, y: top + 4, "text-anchor": "end" }, name));
    cells[row].forEach((value, index) => {
      if (value <= 0) return;
      const strength = Math.sqrt(value / most);
      const fill = `hsl(${32 - 18 * strength} 92% ${92 - 48 * strength}%)`;
      const place = { x: x(at[index]) - wide, y: top + 0.5, width: wide + 0.4, height: tall - 1, fill };
      if (place.x >= LEFT - wide / 2) svg.append(node("rect", place));
    });
  }
  times(svg, range, x, height);
  body.replaceChildren(svg);
}
