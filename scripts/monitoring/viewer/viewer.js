// Shows a Grafana dashboard's JSON file without Grafana: resolves its variables, runs its queries, draws its panels.
// For the demonstration. What it knows of Grafana is what our two dashboards use.

import { heatmap, legend, stat, timeseries } from "./charts.js";
import { format } from "./units.js";

const REFRESH_MS = 5000;
const POINTS = 120;
const chosen = new URLSearchParams(location.search);
const byId = (id) => document.getElementById(id);
const tip = document.body.appendChild(Object.assign(document.createElement("div"), { className: "tip" }));

async function ask(path, parameters = {}) {
  const answer = await fetch(`api/v1/${path}?${new URLSearchParams(parameters)}`);
  const document_ = await answer.json();
  if (document_.status !== "success") throw new Error(document_.error ?? answer.statusText);
  return document_.data;
}

// Of `label_values(metric, label)`, Grafana's own notation.
async function valuesOf(variable) {
  const [, metric, label] = variable.query.query.match(/^label_values\((\w+), (\w+)\)$/);
  return ask(`label/${label}/values`, { "match[]": metric });
}

function resolve(text, variables) {
  return text.replace(/\$\{?(\w+)\}?/g, (whole, name) => variables[name] ?? whole);
}

const nameOf = (template, labels) => template.replace(/{{(\w+)}}/g, (_, label) => labels[label] ?? "").trim();

async function seriesOf(target, variables, range) {
  const data = await ask("query_range", { query: resolve(target.expr, variables), ...range });
  return data.result.map((found) => ({
    name: nameOf(target.legendFormat, found.metric),
    points: filled(found.values, range),
  }));
}

// Prometheus leaves gaps out; a picture needs them.
function filled(values, range) {
  const known = new Map(values.map(([at, value]) => [Math.round((at - range.start) / range.step), Number(value)]));
  const count = Math.round((range.end - range.start) / range.step);
  return Array.from({ length: count + 1 }, (_, index) => {
    const value = known.get(index);
    return [range.start + index * range.step, value === undefined || Number.isNaN(value) ? null : value];
  });
}

const quiet = (series) => series.points.every(([, value]) => !value);

// Many series that are always zero (errors that do not happen) would fill the legend: the moving ones come first.
function sorted(all) {
  return [...all.filter((series) => !quiet(series)), ...all.filter(quiet)];
}

async function drawPanel(panel, article, variables, range) {
  const body = article.querySelector(".body");
  try {
    const found = await Promise.all(panel.targets.map((target) => seriesOf(target, variables, range)));
    const all = panel.type === "heatmap" ? found.flat() : sorted(found.flat());
    const hasData = all.some((series) => series.points.some(([, value]) => value !== null));
    article.querySelector(".legend")?.remove();
    if (!hasData) { body.innerHTML = '<div class="none">no data</div>'; return false; }
    if (panel.type === "timeseries") {
      article.append(legend(all, panel.fieldConfig.defaults.unit));
      hover(body, timeseries(body, panel, all, range), panel, all, range);
    } else {
      ({ stat, heatmap })[panel.type](body, panel, all, range);
    }
    return true;
  } catch (error) {
    body.replaceChildren(Object.assign(document.createElement("div"), { className: "none", textContent: error.message }));
    return false;
  }
}

function hover(body, chart, panel, all, range) {
  body.onmousemove = (event) => {
    const inside = event.clientX - body.getBoundingClientRect().left;
    const index = Math.round(((inside - chart.x(range.start)) / (chart.x(range.end) - chart.x(range.start))) * POINTS);
    const at = range.start + index * range.step;
    const lines = all.filter((series) => series.points[index]?.[1] != null)
      .map((series) => `${series.name}  ${format(series.points[index][1], panel.fieldConfig.defaults.unit)}`);
    tip.textContent = [new Date(at * 1000).toLocaleTimeString(), ...lines].join("\n");
    Object.assign(tip.style, { display: "block", left: `${event.clientX + 14}px`, top: `${event.clientY + 10}px` });
  };
  body.onmouseleave = () => { tip.style.display = "none"; };
}

function place(element, { x, y, w, h }) {
  Object.assign(element.style, { gridColumn: `${x + 1} / span ${w}`, gridRow: `${y + 1} / span ${h}` });
  return element;
}

// `?from=Latency` shows the rows from that one on.
function shown(panels) {
  const first = panels.find((panel) => panel.type === "row" && panel.title === chosen.get("from"))?.gridPos.y ?? 0;
  return panels.filter((panel) => panel.gridPos.y >= first)
    .map((panel) => ({ ...panel, gridPos: { ...panel.gridPos, y: panel.gridPos.y - first } }));
}

function build(board) {
  const panels = [];
  for (const panel of shown(board.panels)) {
    if (panel.type === "row") {
      byId("grid").append(place(Object.assign(document.createElement("h2"), { textContent: panel.title }), panel.gridPos));
      continue;
    }
    const article = place(document.createElement("article"), panel.gridPos);
    article.className = panel.type;
    article.title = panel.description ?? "";
    article.append(
      Object.assign(document.createElement("h3"), { textContent: panel.title }),
      Object.assign(document.createElement("div"), { className: "body" }),
    );
    byId("grid").append(article);
    panels.push([panel, article]);
  }
  return panels;
}

function option(select, value) {
  select.append(Object.assign(document.createElement("option"), { value, textContent: value }));
}

async function start() {
  const names = await (await fetch("dashboards")).json();
  const name = chosen.get("dashboard") ?? names[0];
  const board = await (await fetch(`dashboards/${name}.json`)).json();
  byId("title").textContent = document.title = board.title;
  for (const other of names) {
    const link = Object.assign(document.createElement("a"), { href: `?dashboard=${other}`, textContent: other });
    if (other === name) link.setAttribute("aria-current", "page");
    byId("boards").append(link);
  }
  const variable = board.templating.list.find((found) => found.type === "query");
  for (const value of await valuesOf(variable)) option(byId("namespace"), value);
  byId("minutes").value = chosen.get("minutes") ?? "5";
  const panels = build(board);
  const redraw = () => refresh(panels);
  byId("minutes").onchange = byId("namespace").onchange = redraw;
  await redraw();
  document.body.dataset.drawn = "yes";
  if (!chosen.has("still")) setInterval(redraw, REFRESH_MS);
}

async function refresh(panels) {
  const { scrape_interval_s: scrape } = await (await fetch("settings")).json();
  const minutes = Number(byId("minutes").value);
  const end = Math.floor(Date.now() / 1000);
  const step = Math.max((minutes * 60) / POINTS, scrape);
  const range = { start: end - minutes * 60, end, step };
  // As Grafana computes it: at least four scrapes, or one step and a scrape.
  const interval = Math.max(4 * scrape, step + scrape, Number(chosen.get("window") ?? 0));
  const variables = { namespace: byId("namespace").value, __rate_interval: `${Math.ceil(interval)}s` };
  const drawn = await Promise.all(panels.map(([panel, article]) => drawPanel(panel, article, variables, range)));
  byId("state").textContent = `${drawn.filter(Boolean).length} of ${drawn.length} panels have data`;
}

start().catch((error) => { byId("grid").textContent = `Cannot show this dashboard: ${error.message}`; });
