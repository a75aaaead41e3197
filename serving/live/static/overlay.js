// What moved the decision, over the pictures: red where hiding a region takes from the decided label, blue where it adds.

export function drawOverlay(canvas, map, head, frame) {
  const context = canvas.getContext("2d");
  if (!map) { canvas.width = 1; canvas.dataset.span = ""; return; }
  const fall = map.fall[head];
  const span = spanAt(map.spans, frame);
  const grid = fall[0].length;
  canvas.width = canvas.height = grid;
  canvas.dataset.span = String(span);
  canvas.style.objectFit = "fill";
  const strongest = Math.max(0.0001, ...fall.flat(2).map(Math.abs));
  if (span < 0) return;
  fall[span].forEach((row, y) => row.forEach((value, x) => {
    const share = Math.abs(value) / strongest;
    context.fillStyle = value > 0 ? `rgb(255 59 48 / ${0.65 * share})` : `rgb(43 108 255 / ${0.65 * share})`;
    context.fillRect(x, y, 1, 1);
  }));
}

// A span reaches to the next one's first frame: between two frames that the model saw, the last one counts.
function spanAt(spans, frame) {
  if (frame < spans[0][0] || frame > spans.at(-1)[1]) return -1;
  return spans.findLastIndex(([first]) => frame >= first);
}
