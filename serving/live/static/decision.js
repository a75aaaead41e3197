// The decision in large type, the same for the console and the review.

import { el, meter, percent } from "./dom.js";

const CARDS = { "Offence + Yellow card": "yellow", "Offence + Red card": "red" };

function answer(title, head, truth) {
  const [first, second] = head.top2;
  const card = CARDS[first.label];
  const label = head.abstain
    ? el("div", { class: "label unsure" }, "No decision")
    : el("div", { class: "label" }, card ? el("span", { class: `card ${card}`, "aria-hidden": "true" }) : null, first.label);
  return el("div", { class: "answer" },
    el("h2", {}, title), label,
    head.abstain
      ? el("div", { class: "sure" }, `too unsure: at best ${first.label} ${percent(first.probability)}`)
      : el("div", { class: "sure" }, percent(first.probability)),
    meter(first.probability, first.label),
    el("div", { class: "second" }, `then ${second.label} ${percent(second.probability)}`),
    truth === undefined ? null : truthLine(truth, first.label));
}

function truthLine(truth, label) {
  if (!truth) return el("div", { class: "truth" }, "annotated: unknown");
  const hit = truth === label;
  return el("div", { class: "truth" }, "annotated: ", el("b", { class: hit ? "hit" : "miss" }, `${truth} ${hit ? "✓" : "✗"}`));
}

// The decision in one sentence, for those who hear it.
export function sentence(document_) {
  const say = (title, head) => `${title}: ${head.abstain ? "no decision" : `${head.top2[0].label}, ${percent(head.top2[0].probability)}`}.`;
  return `${say("Action class", document_.action)} ${say("Offence and severity", document_.offence_severity)}`;
}

// `truth`: {action, offence_severity} in review, undefined in the console.
export function answers(document_, truth) {
  return el("div", { class: "answers" },
    answer("Action class", document_.action, truth?.action),
    answer("Offence and severity", document_.offence_severity, truth?.offence_severity));
}

export function latency(ruling) {
  const longest = Math.max(...Object.values(ruling.stages_s), 0.001);
  return Object.entries(ruling.stages_s).map(([stage, seconds]) =>
    el("div", { class: "stage" }, el("span", {}, stage), meter(seconds / longest, stage),
      el("span", { class: "number" }, seconds < 10 ? `${Math.round(1000 * seconds)} ms` : `${seconds.toFixed(1)} s`)));
}
