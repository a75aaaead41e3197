// Elements without HTML strings: what a server says is text, never markup.

export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "style") Object.assign(node.style, value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

// Replaces what a panel holds; the keyboard's focus stays on what carries the same data-… or text as before.
export function refill(panel, ...children) {
  const focused = panel.contains(document.activeElement) && document.activeElement !== panel ? identity(document.activeElement) : null;
  panel.replaceChildren(...children);
  if (focused) [...panel.querySelectorAll("button, a, input, select")].find((node) => identity(node) === focused)?.focus({ preventScroll: true });
}

const identity = (node) => `${node.tagName} ${JSON.stringify(node.dataset)} ${Object.keys(node.dataset).length ? "" : node.textContent}`;

// Errors first, so that none of them is pushed out by a camera's texts.
export function noticeItems(notices) {
  const rank = (notice) => (notice.level === "error" || notice.key === "own" ? 0 : 1);
  return notices.map((notice, age) => ({ notice, age })).sort((a, b) => rank(a.notice) - rank(b.notice) || b.age - a.age).slice(0, 6)
    .map(({ notice }) => el("li", { class: notice.level, "data-key": notice.key }, notice.text));
}

// Tells a screen reader one sentence, once.
export function announce(text) {
  const region = byId("spoken");
  if (region.textContent !== text) region.textContent = text;
}

export const byId = (id) => document.getElementById(id);

// Who signed in; nothing where nobody has to.
export function showWho(name) {
  byId("who").hidden = !name;
  byId("who").textContent = name ? `signed in as ${name}` : "";
}

export const percent = (probability) => `${Math.round(100 * probability)} %`;

export function meter(share, label) {
  return el("div", { class: "meter", role: "img", "aria-label": `${label}: ${percent(share)}` },
    el("i", { style: { width: `${100 * Math.min(1, Math.max(0, share))}%` } }));
}

export const clock = (seconds) => new Date(1000 * seconds).toLocaleTimeString([], { hour12: false });
