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

export const byId = (id) => document.getElementById(id);

export const percent = (probability) => `${Math.round(100 * probability)} %`;

export function meter(share, label) {
  return el("div", { class: "meter", role: "img", "aria-label": `${label}: ${percent(share)}` },
    el("i", { style: { width: `${100 * Math.min(1, Math.max(0, share))}%` } }));
}

export const clock = (seconds) => new Date(1000 * seconds).toLocaleTimeString([], { hour12: false });
