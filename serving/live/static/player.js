// All views of one incident, in step: one time for all, counted in frames of 25 per second from the cut's start.

import { el } from "./dom.js";

export const FPS = 25;
export const CONTACT = 75;
const SPEEDS = [1, 0.5, 0.25, 0.1];
const APART_S = 0.05;

export class Players {
  constructor(screen, transport, { onFrame } = {}) {
    this.screen = screen;
    this.onFrame = onFrame;
    this.videos = new Map();
    this.frame = CONTACT;
    this.speed = 0;
    this.playing = false;
    this.key = "";
    this.incident = undefined;
    transport.append(this.#transport());
  }

  // views: [{name, sha256, state, reason, weight}] of an incident; another one begins at its contact.
  show(views, incident) {
    if (incident !== this.incident) {
      this.incident = incident;
      this.pause();
      this.seek(CONTACT);
    }
    const key = JSON.stringify(views.map((v) => [v.name, v.sha256, v.sha256 ? "" : v.state]));
    if (key === this.key) return;
    this.key = key;
    this.views = views;
    const old = this.videos;
    this.videos = new Map();
    const figures = views.map((view) => (view.sha256 ? this.#figure(view, old) : masked(view)));
    this.screen.replaceChildren(...figures);
    for (const [name, item] of old) if (this.videos.get(name) !== item) URL.revokeObjectURL(item.url);
    this.seek(this.frame);
  }

  #figure(view, old) {
    const known = old.get(view.name);
    if (known?.sha256 === view.sha256) { this.videos.set(view.name, known); return known.figure; }
    const video = el("video", { playsinline: true, preload: "auto", "aria-label": `clip of ${view.name}` });
    video.muted = true;
    const canvas = el("canvas", {});
    const figure = el("figure", { "data-view": view.name }, video, canvas, el("figcaption", {}, view.name));
    const item = { video, canvas, figure, sha256: view.sha256, url: "" };
    this.videos.set(view.name, item);
    this.#load(view, item);
    return figure;
  }

  // As a whole, then from memory: every frame can be sought at once, and nothing is fetched twice.
  async #load(view, item) {
    const response = await fetch(`/api/clips/${view.sha256}.mp4`).catch(() => null);
    if (!response?.ok) { item.isLost = true; item.figure.replaceWith(masked({ ...view, reason: response ? "its clip is no longer kept" : "its clip could not be fetched" })); return; }
    const clip = await response.blob();
    if (this.videos.get(view.name) !== item) return;  // Another incident is shown by now.
    item.url = URL.createObjectURL(clip);
    item.video.src = item.url;
    item.video.addEventListener("loadeddata", () => { this.#place(item.video); this.#tell(); }, { once: true });
    item.video.addEventListener("error", () => item.figure.append(el("figcaption", { style: { top: ".4rem", bottom: "auto" } }, "this browser cannot play its codec")));
  }

  get last() {
    const durations = [...this.videos.values()].map(({ video }) => video.duration).filter(Number.isFinite);
    return Math.max(CONTACT, Math.floor(FPS * Math.max(0, ...durations)) - 1);
  }

  #place(video) { video.currentTime = Math.min((this.frame + 0.5) / FPS, Math.max(0, (video.duration || 9) - 0.001)); }

  seek(frame) {
    this.frame = Math.max(0, Math.min(frame, this.last));
    for (const { video } of this.videos.values()) if (video.readyState > 0) this.#place(video);
    this.#tell();
  }

  step(frames) { this.pause(); this.seek(this.frame + frames); }

  pause() {
    this.playing = false;
    for (const { video } of this.videos.values()) video.pause();
    this.button.textContent = "Play";
  }

  toggle() {
    if (this.playing) { this.pause(); this.seek(this.frame); return; }
    if (this.videos.size === 0) return;
    if (this.frame >= this.last) this.frame = 0;
    this.playing = true;
    this.button.textContent = "Pause";
    for (const { video } of this.videos.values()) { this.#place(video); video.playbackRate = SPEEDS[this.speed]; video.play().catch(() => {}); }
    requestAnimationFrame(() => this.#follow());
  }

  slower() {
    this.speed = (this.speed + 1) % SPEEDS.length;
    this.rate.textContent = `${SPEEDS[this.speed]}×`;
    for (const { video } of this.videos.values()) video.playbackRate = SPEEDS[this.speed];
  }

  // Clips that could not be fetched, once more: the console was away.
  retry() {
    if (![...this.videos.values()].some((item) => item.isLost)) return;
    for (const [name, item] of this.videos) if (item.isLost) this.videos.delete(name);
    this.key = "";
    this.show(this.views, this.incident);
  }

  // The first video that can be played leads; one that is a frame off is put right.
  #follow() {
    if (!this.playing) return;
    const playable = [...this.videos.values()].map(({ video }) => video).filter((video) => video.readyState >= 2 && !video.error);
    const [leader, ...others] = playable;
    if (!leader) {
      if ([...this.videos.values()].every((item) => item.isLost || item.video.error)) this.pause(); else requestAnimationFrame(() => this.#follow());
      return;
    }
    for (const video of others) if (Math.abs(video.currentTime - leader.currentTime) > APART_S) video.currentTime = leader.currentTime;
    this.frame = Math.min(this.last, Math.floor(leader.currentTime * FPS));
    if (leader.ended || this.frame >= this.last) {
      this.frame = 0;
      for (const { video } of this.videos.values()) { this.#place(video); video.play().catch(() => {}); }
    }
    this.#tell();
    requestAnimationFrame(() => this.#follow());
  }

  #tell() {
    const seconds = (this.frame - CONTACT) / FPS;
    const where = this.frame === CONTACT ? "contact" : `contact ${seconds < 0 ? "−" : "+"}${Math.abs(seconds).toFixed(2)} s`;
    this.where.textContent = where;
    this.slider.max = String(this.last);
    this.slider.value = String(this.frame);
    this.slider.setAttribute("aria-valuetext", where);
    this.onFrame?.(this.frame);
  }

  #transport() {
    this.button = el("button", { type: "button", onclick: () => this.toggle(), title: "Space" }, "Play");
    this.rate = el("button", { type: "button", onclick: () => this.slower(), title: "Slow motion (S)" }, "1×");
    this.slider = el("input", { type: "range", min: 0, max: 102, step: 1, value: CONTACT, "aria-label": "Frame", oninput: () => { this.pause(); this.seek(Number(this.slider.value)); } });
    this.where = el("output", { id: "where" }, "contact");
    return el("div", { class: "transport" },
      this.button, this.rate,
      el("button", { type: "button", onclick: () => this.step(-1), "aria-label": "One frame back" }, "◀ frame"),
      el("button", { type: "button", onclick: () => this.step(1), "aria-label": "One frame on" }, "frame ▶"),
      el("button", { type: "button", onclick: () => this.step(CONTACT - this.frame), title: "C" }, "Contact"),
      this.slider, this.where);
  }
}

function masked(view) {
  return el("figure", { class: "masked", "data-view": view.name },
    el("figcaption", {}, view.name), el("div", {}, view.state === "waiting" ? "waiting for its pictures" : `not in the decision: ${view.reason || view.state}`));
}

// Keys that both pages share; returns whether the key was one of them.
export function playerKey(players, event) {
  const jump = event.shiftKey ? 10 : 1;
  const keys = {
    " ": () => players.toggle(), ArrowLeft: () => players.step(-jump), ArrowRight: () => players.step(jump),
    c: () => players.step(CONTACT - players.frame), s: () => players.slower(),
  };
  const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  act?.();
  return Boolean(act);
}

export const isStep = (event) => event.key === "ArrowLeft" || event.key === "ArrowRight";

// True where a key belongs to what has the focus.
export function isTyping(event) {
  const tag = event.target.tagName;
  return event.ctrlKey || event.metaKey || event.altKey || (tag === "INPUT" && event.target.type !== "range") || tag === "SELECT" ||
    (tag === "BUTTON" && (event.key === " " || event.key === "Enter")) || (tag === "INPUT" && event.key.startsWith("Arrow"));
}
