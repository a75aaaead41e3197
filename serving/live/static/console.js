// The operator's page: what the console knows, and the commands to it.

import { listen, post } from "./api.js";
import { answers, latency, sentence } from "./decision.js";
import { announce, byId, clock, el, meter, noticeItems, percent, refill, showWho } from "./dom.js";
import { Players, isStep, isTyping, playerKey } from "./player.js";

const state = { incidents: new Map(), selected: null, revision: null, follow: true, notices: [], problem: "" };
const players = new Players(byId("players"), byId("transport"));

const onError = (detail) => { state.problem = detail; showNotices(); };

async function trigger(secondsAgo) {
  state.follow = true;
  state.problem = "";
  const ago = secondsAgo === undefined ? {} : { seconds_ago: secondsAgo };
  const opened = await post("/api/trigger", { ...ago, source: "operator" }, { onError });
  // A second press within half a second is the same press: no event tells of it, and an older one may be shown.
  if (opened && state.follow && opened.id !== state.selected && state.incidents.has(opened.id)) select(opened.id);
}

function command(name, body) {
  if (!state.selected) return;
  state.revision = null;
  state.problem = "";
  post(`/api/incidents/${state.selected}/${name}`, body, { onError });
}

const current = () => state.incidents.get(state.selected);

function ruling() {
  const all = current()?.rulings ?? [];
  return all[(state.revision ?? all.length) - 1];
}

function select(id, revision = null) {
  state.selected = id;
  state.revision = revision;
  state.follow = id === [...state.incidents.keys()].at(-1);
  show();
}

function take(incident) {
  const isNew = !state.incidents.has(incident.id);
  state.incidents.set(incident.id, incident);
  if (isNew && state.follow) { state.selected = incident.id; state.revision = null; }
  if (isNew || incident.id === state.selected) show(); else showHistory();
}

function show() { showDecision(); showViews(); showHistory(); }

function showDecision() {
  const incident = current();
  const latest = ruling();
  const panel = byId("decision");
  panel.dataset.state = incident?.state ?? "none";
  if (!incident) { panel.replaceChildren(el("p", { class: "empty" }, "Watching. Press F when there is a foul to judge.")); return; }
  const waiting = incident.state === "failed" ? el("p", { class: "failed" }, `No decision: ${incident.message}`)
    : incident.message ? el("p", { class: "failed" }, incident.message)
      : latest ? null : el("p", { class: "asking" }, incident.state === "waiting" ? "Waiting for the pictures" : "Asking the model");
  refill(panel, ...[latest ? answers(latest.document) : null, waiting, meta(incident, latest)].filter(Boolean));
  announce(latest ? sentence(latest.document) : waiting?.textContent ?? "");
  panel.dataset.revision = latest?.revision ?? 0;
  byId("latency").replaceChildren(...(latest ? latency(latest) : []));
}

function meta(incident, latest) {
  const busy = incident.state === "asking" && latest ? "refining…" : "";
  const views = latest ? `${latest.views.length} ${latest.views.length === 1 ? "view" : "views"}` : "";
  return el("div", { class: "meta" },
    el("span", {}, `contact ${clock(incident.contact_s)}`), el("span", {}, incident.trigger === incident.operator ? incident.trigger : `${incident.trigger}, ${incident.operator}`),
    incident.note ? el("span", {}, incident.note) : null, el("span", {}, views),
    incident.rulings.length > 1 ? el("span", { class: "revisions", role: "group", "aria-label": "Answers, each refining the one before" }, "answer ",
      incident.rulings.map((r) => el("button", { type: "button", "aria-pressed": String(r === latest), onclick: () => select(incident.id, r.revision) }, String(r.revision)))) : null,
    latest ? (latest.line ? el("span", {}, `recorded, line ${latest.line}`) : el("span", { class: "unrecorded" }, "NOT RECORDED")) : null,
    latest ? el("span", {}, `artifact ${latest.document.artifact}`) : null,
    el("span", {}, busy));
}

function showViews() {
  const incident = current();
  const latest = ruling();
  const weights = new Map((latest?.views ?? []).map((name, i) => [name, latest.document.view_weights[i]]));
  const rows = (incident?.views ?? []).map((view) => {
    const weight = weights.get(view.name);
    const back = view.state === "dropped";
    const button = view.sha256 || back
      ? el("button", { type: "button", "data-drop": view.name, "aria-label": `${back ? "take back" : "drop"} ${view.name}`, onclick: () => command("drop", { view: view.name, back }) }, back ? "take back" : "drop") : "";
    const middle = weight === undefined || back ? el("td", { class: "why", colspan: 2 }, view.reason ? `${view.state}: ${view.reason}` : view.state)
      : [el("td", { style: { width: "40%" } }, meter(weight, `weight of ${view.name}`)), el("td", { class: "number" }, percent(weight))];
    return el("tr", { "data-view": view.name, "data-state": view.state }, el("td", {}, view.name), middle, el("td", { class: "number" }, button));
  });
  refill(byId("views"), ...rows);
  byId("shifted").textContent = (incident?.shift_frames > 0 ? "+" : "") + String(incident?.shift_frames ?? 0);
  for (const id of ["replay-button", "ask"]) byId(id).disabled = !incident;
  for (const button of document.querySelectorAll("[data-shift]")) button.disabled = !incident;
  const link = byId("case");
  link.setAttribute("aria-disabled", String(!latest));
  if (latest) link.href = `/api/incidents/${incident.id}/case.zip`; else link.removeAttribute("href");
  players.show(incident?.views ?? [], incident?.id);
}

function showHistory() {
  const items = [...state.incidents.values()].reverse().map((incident) => {
    const document_ = incident.rulings.at(-1)?.document;
    const name = (head) => (head.abstain ? "no decision" : head.label);
    const title = document_ ? `${name(document_.action)}, ${name(document_.offence_severity)}` : incident.state;
    return el("li", {}, el("button", { type: "button", "data-incident": incident.id, "aria-current": String(incident.id === state.selected), onclick: () => select(incident.id) },
      title, el("small", {}, `${clock(incident.contact_s)} · ${incident.trigger}${incident.rulings.length > 1 ? ` · ${incident.rulings.length} answers` : ""}${incident.restored ? " · from the audit log" : ""}`)));
  });
  refill(byId("history"), ...(items.length ? items : [el("li", {}, "nothing yet")]));
}

function showCameras(cameras) {
  byId("cameras").replaceChildren(...cameras.map((camera) =>
    el("li", { class: camera.state === "ok" ? "good" : "poor", "data-camera": camera.name, "data-state": camera.state, title: camera.reason || `${camera.width_px}×${camera.height_px}, ${camera.dropped} frames dropped, ${camera.reconnects} reconnects` },
      camera.name, el("small", {}, camera.state === "ok" ? `${camera.fps.toFixed(0)} fps · ${Math.round(1000 * camera.delay_s)} ms · ${camera.buffer_s.toFixed(0)} s` : camera.state))));
}

function showNotices(notices = state.notices) {
  state.notices = notices;
  const own = state.problem ? [{ key: "own", level: "warning", text: state.problem }] : [];
  byId("notices").replaceChildren(...noticeItems([...notices, ...own]));
}

function showWatching(watching) {
  const pill = byId("watching");
  pill.hidden = !watching.on;
  pill.className = `pill ${watching.inside ? "poor" : "good"}`;
  pill.textContent = `continuous: offence ${percent(watching.level)}${watching.reason ? ` (${watching.reason})` : ""}`;
}

function move(by) {
  const ids = [...state.incidents.keys()];
  const next = ids[ids.indexOf(state.selected) + by];
  if (next) select(next);
}

document.addEventListener("keydown", (event) => {
  if (isTyping(event) || byId("help").open) return;
  const key = event.key.toLowerCase();
  const keys = {
    f: () => trigger(), a: () => command("ask"), t: () => window.toggleTheme(), j: () => move(-1), k: () => move(1),
    "?": () => byId("help").showModal(), "[": () => command("shift", { frames: -1 }), "]": () => command("shift", { frames: 1 }),
  };
  // A key that is held is one press; only frames are stepped on.
  if (event.repeat && !isStep(event)) { event.preventDefault(); return; }
  if (/^[1-9]$/.test(key)) trigger(Number(key));
  else if (keys[key]) keys[key]();
  else if (!playerKey(players, event)) return;
  event.preventDefault();
});

// Blurred after a mouse click (detail > 0), so that Space plays again instead of pressing it again.
const pressed = (event) => { if (event.detail > 0) event.currentTarget.blur(); };
byId("trigger").addEventListener("click", (event) => { pressed(event); trigger(); });
for (const button of document.querySelectorAll("[data-ago]")) button.addEventListener("click", (event) => { pressed(event); trigger(Number(button.dataset.ago)); });
for (const button of document.querySelectorAll("[data-shift]")) button.addEventListener("click", () => command("shift", { frames: Number(button.dataset.shift) }));
byId("ask").addEventListener("click", () => command("ask"));
byId("theme").addEventListener("click", () => window.toggleTheme());
byId("help-open").addEventListener("click", () => byId("help").showModal());
byId("replay-button").addEventListener("click", () => byId("replay").click());
byId("replay").addEventListener("change", async ({ target }) => {
  for (const file of target.files) {
    await post(`/api/incidents/${state.selected}/replay?name=${encodeURIComponent(file.name)}`, file, { type: "video/mp4", onError });
  }
  target.value = "";
});

listen({
  snapshot: (all) => {
    const before = state.selected;
    state.incidents = new Map(all.incidents.map((incident) => [incident.id, incident]));
    // Opened while this page was not connected: shown, unless somebody chose an older one.
    if (state.follow || !state.incidents.has(before)) { state.selected = [...state.incidents.keys()].at(-1) ?? null; if (state.selected !== before) state.revision = null; }
    showCameras(all.cameras); showNotices(all.notices); showWatching(all.watching); show();
    showWho(all.who);
    for (const ago of document.querySelectorAll("[data-default-ago]")) ago.textContent = all.console.contact_offset_s;
  },
  incident: take, cameras: showCameras, notices: showNotices, watching: showWatching,
}, (connected) => {
  if (connected) players.retry();
  const pill = byId("link");
  pill.className = `pill ${connected ? "good" : "poor"}`;
  pill.textContent = connected ? "connected" : "console not reachable, trying again";
});
show();
