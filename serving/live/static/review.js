// The review's page: recorded actions, the decision beside the annotation, each view alone, what moved the decision.

import { listen, post } from "./api.js";
import { answers, latency, sentence } from "./decision.js";
import { announce, byId, el, meter, noticeItems, percent, refill, showWho } from "./dom.js";
import { Players, isStep, isTyping, playerKey } from "./player.js";
import { drawOverlay } from "./overlay.js";

const state = { cases: [], incidents: new Map(), examinations: new Map(), caseId: null, incidentId: null, head: "", notices: [], problem: "", stale: new Set() };
const players = new Players(byId("players"), byId("transport"), { onFrame: () => overlay() });
const onError = (detail) => {
  // The console keeps the clips of the last cases only; chosen again, this one is opened anew.
  if (detail.includes("open its case again")) state.stale.add(state.incidentId);
  state.problem = detail;
  showNotices();
};

const currentCase = () => state.cases.find((item) => item.id === state.caseId);
const incident = () => state.incidents.get(state.incidentId);
const examination = () => state.examinations.get(state.incidentId);

async function open(caseId) {
  state.caseId = caseId;
  state.problem = "";
  const known = [...state.examinations.values()].filter((item) => item.case_id === caseId && state.incidents.has(item.incident_id) && !state.stale.has(item.incident_id)).at(-1);
  state.incidentId = known?.incident_id ?? null;
  show();
  if (known) return;
  const opened = await post("/api/cases/open", { id: caseId }, { onError });
  if (opened && state.caseId === caseId) { state.incidentId = opened.id; if (!state.incidents.has(opened.id)) state.incidents.set(opened.id, opened); show(); }
}

function show() { showCases(); showDecision(); showViews(); showExamination(); }

function showCases() {
  refill(byId("cases"), ...state.cases.map((item) => {
    const known = [...state.examinations.values()].filter((e) => e.case_id === item.id).at(-1);
    const document_ = state.incidents.get(known?.incident_id)?.rulings.at(-1)?.document;
    const marks = document_ && item.truth ? [mark(document_.action, item.truth.action), " ", mark(document_.offence_severity, item.truth.offence_severity)] : [];
    const what = item.truth ? `${item.truth.action || "unknown"}, ${item.truth.offence_severity || "unknown"}` : "not annotated";
    return el("li", {}, el("button", { type: "button", "data-case": item.id, "aria-current": String(item.id === state.caseId), onclick: () => open(item.id) },
      item.id, " ", marks, el("small", {}, `${what} · ${item.views.length} ${item.views.length === 1 ? "view" : "views"}`)));
  }));
}

function mark(head, truth) {
  if (!truth) return "";
  const hit = head.top2[0].label === truth;
  return el("b", { class: hit ? "hit" : "miss" }, head.abstain ? "–" : hit ? "✓" : "✗");
}

function showDecision() {
  const now = incident();
  const latest = now?.rulings.at(-1);
  const item = currentCase();
  const panel = byId("decision");
  panel.dataset.state = now?.state ?? "none";
  const text = !item ? "Choose an action." : now?.state === "failed" ? `No decision: ${now.message}` : now?.message || "Asking the model";
  const state_ = latest && now.state !== "failed" ? null : el("p", { class: now?.state === "failed" ? "failed" : item ? "asking" : "empty" }, text);
  const meta = latest ? el("div", { class: "meta" }, el("span", {}, item?.id ?? ""), el("span", {}, `${latest.views.length} views`),
    latest.line ? el("span", {}, `recorded, line ${latest.line}`) : el("span", { class: "unrecorded" }, "NOT RECORDED"), el("span", {}, `artifact ${latest.document.artifact}`)) : null;
  announce(latest ? sentence(latest.document) : text);
  refill(panel, ...[latest ? answers(latest.document, item?.truth ?? undefined) : null, state_, meta].filter(Boolean));
  byId("latency").replaceChildren(...(latest ? latency(latest) : []));
  const facts = Object.entries(item?.facts ?? {});
  byId("facts").replaceChildren(...(facts.length ? facts.map(([key, value]) => el("tr", {}, el("td", {}, key), el("td", {}, value))) : [el("tr", {}, el("td", {}, "none"))]));
}

function showViews() {
  const now = incident();
  const latest = now?.rulings.at(-1);
  const weights = new Map((latest?.views ?? []).map((name, i) => [name, latest.document.view_weights[i]]));
  refill(byId("views"), ...(now?.views ?? []).map((view) => {
    const weight = weights.get(view.name);
    const back = view.state === "dropped";
    const button = view.sha256 ? el("button", { type: "button", "data-drop": view.name, onclick: () => post(`/api/incidents/${now.id}/drop`, { view: view.name, back }, { onError }) }, back ? "take back" : "drop") : "";
    const middle = weight === undefined || back ? el("td", { class: "why", colspan: 2 }, view.reason || view.state)
      : [el("td", { style: { width: "45%" } }, meter(weight, `weight of ${view.name}`)), el("td", { class: "number" }, percent(weight))];
    return el("tr", { "data-view": view.name, "data-state": view.state }, el("td", {}, view.name), middle, el("td", { class: "number" }, button));
  }));
  const link = byId("case");
  link.setAttribute("aria-disabled", String(!latest));
  if (latest) link.href = `/api/incidents/${now.id}/case.zip`; else link.removeAttribute("href");
  byId("ask").disabled = !latest;
  const usable = (now?.views ?? []).filter((view) => view.sha256 && view.state === "used").map((view) => view.name);
  const select = byId("saliency-view");
  if (JSON.stringify([...select.options].map((o) => o.value)) !== JSON.stringify(usable)) {
    const kept = select.value;
    select.replaceChildren(...usable.map((name) => el("option", { value: name }, name)));
    if (usable.includes(kept)) select.value = kept;
  }
  players.show(now?.views ?? [], now?.id);
}

function showExamination() {
  const found = examination();
  const item = currentCase();
  const rows = Object.entries(found?.alone ?? {}).map(([name, document_]) => el("tr", { "data-alone": name }, el("td", {}, name),
    ...["action", "offence_severity"].map((head) => el("td", {}, document_[head].top2[0].label, " ", percent(document_[head].confidence), document_[head].abstain ? " (unsure)" : "", " ", item?.truth ? mark(document_[head], item.truth[head]) : ""))));
  const failed = Object.entries(found?.failed ?? {}).map(([name, reason]) => el("tr", {}, el("td", {}, name), el("td", { class: "why", colspan: 2 }, reason)));
  byId("alone").replaceChildren(...rows, ...failed);
  const job = found?.job ?? {};
  const running = job.total !== undefined;
  byId("explain").disabled = running || !byId("saliency-view").value;
  byId("cancel").disabled = !running;
  byId("progress").hidden = !running;
  if (running) { byId("progress").max = job.total; byId("progress").value = job.done; }
  const text = job.error ?? (running ? `hiding regions of ${job.view}: ${job.done} of ${job.total} questions` : explained(found));
  byId("saliency-text").textContent = text;
  overlay();
}

function explained(found) {
  const names = Object.keys(found?.saliency ?? {});
  if (names.length === 0) return "Hides one region of a few frames at a time and asks again, at low priority.";
  const head = state.head || "action";
  return names.map((name) => {
    const map = found.saliency[name];
    const flat = map.fall[head].flat(2);
    return `${name}: without its strongest region, “${map.label[head]}” falls by ${points(Math.max(0, ...flat))} of ${points(map.base[head])}`;
  }).join(". ");
}

const points = (share) => `${(100 * share).toFixed(1)} %`;

function overlay() {
  const found = examination();
  for (const [name, { canvas }] of players.videos) drawOverlay(canvas, state.head ? found?.saliency[name] : undefined, state.head, players.frame);
}

function showNotices(notices = state.notices) {
  state.notices = notices;
  const own = state.problem ? [{ key: "own", level: "warning", text: state.problem }] : [];
  byId("notices").replaceChildren(...noticeItems([...notices, ...own]));
}

function showHead(head) {
  state.head = head;
  for (const button of document.querySelectorAll("[data-head]")) button.setAttribute("aria-pressed", String(button.dataset.head === head));
  showExamination();
}

async function explain() {
  const view = byId("saliency-view").value;
  if (!view || !state.incidentId) return;
  if (!state.head) showHead("action");
  await post(`/api/incidents/${state.incidentId}/explain`, { view }, { onError });
}

async function addFiles(files) {
  const name = `dropped-${new Date().toISOString().slice(11, 19).replaceAll(":", "")}`;
  for (const file of files) {
    const path = `/api/cases/add?case=${name}&name=${encodeURIComponent(file.name.replace(/\.\w+$/, ""))}`;
    if (await post(path, file, { type: "video/mp4", onError }) === undefined) return;
  }
  if (files.length) await open(name);
}

function move(by) {
  const next = state.cases[state.cases.findIndex((item) => item.id === state.caseId) + by];
  if (next) open(next.id);
}

document.addEventListener("keydown", (event) => {
  if (isTyping(event) || byId("help").open) return;
  if (event.repeat && !isStep(event)) { event.preventDefault(); return; }
  const keys = { j: () => move(1), k: () => move(-1), e: explain, t: () => window.toggleTheme(), a: () => byId("ask").click(), "?": () => byId("help").showModal() };
  const act = keys[event.key.toLowerCase()];
  if (act) act(); else if (!playerKey(players, event)) return;
  event.preventDefault();
});
byId("explain").addEventListener("click", explain);
byId("cancel").addEventListener("click", () => post("/api/cancel", {}, { onError }));
byId("ask").addEventListener("click", () => state.incidentId && post(`/api/incidents/${state.incidentId}/ask`, {}, { onError }));
byId("theme").addEventListener("click", () => window.toggleTheme());
byId("help-open").addEventListener("click", () => byId("help").showModal());
byId("add-button").addEventListener("click", () => byId("add").click());
byId("add").addEventListener("change", async ({ target }) => { await addFiles([...target.files]); target.value = ""; });
for (const button of document.querySelectorAll("[data-head]")) button.addEventListener("click", () => showHead(button.dataset.head));
const zone = document.body;
zone.addEventListener("dragover", (event) => { event.preventDefault(); zone.classList.add("drop-target"); });
zone.addEventListener("dragleave", () => zone.classList.remove("drop-target"));
zone.addEventListener("drop", (event) => { event.preventDefault(); zone.classList.remove("drop-target"); addFiles([...event.dataTransfer.files]); });

listen({
  snapshot: (all) => {
    showWho(all.who);
    state.cases = all.cases;
    state.incidents = new Map(all.incidents.map((item) => [item.id, item]));
    state.examinations = new Map(all.examinations.map((item) => [item.incident_id, item]));
    if (state.incidentId && !state.examinations.has(state.incidentId)) { state.incidentId = null; if (state.caseId) open(state.caseId); }
    showNotices(all.notices); show();
  },
  cases: (cases) => { state.cases = cases; showCases(); },
  incident: (item) => { state.incidents.set(item.id, item); if (item.id === state.incidentId) show(); else showCases(); },
  examination: (item) => { state.examinations.set(item.incident_id, item); if (item.incident_id === state.incidentId) { showExamination(); showCases(); } },
  notices: showNotices,
}, (connected) => {
  if (connected) players.retry();
  const pill = byId("link");
  pill.className = `pill ${connected ? "good" : "poor"}`;
  pill.textContent = connected ? "connected" : "not reachable, trying again";
});
show();
