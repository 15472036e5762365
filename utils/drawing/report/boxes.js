// Tubes of a video, and their boxes on the canvas.

// A tube's box in a frame, undefined where it has none; tube.runs are [first frame, number of frames].
function boxAt(tube, frame) {
  let before = 0;
  for (const [first, n] of tube.runs) {
    const i = before + frame - first;
    if (frame >= first && frame < first + n) return tube.boxes.slice(4 * i, 4 * i + 4);
    before += n;
  }
}

// One box for a person and place, with the captions of all its tubes: simultaneous actions share it.
function boxesAt(tubes, frame, caption) {
  const byPlace = new Map();
  for (const tube of tubes) {
    const box = boxAt(tube, frame);
    if (!box) continue;
    const key = `${tube.side} ${tube.person} ${box}`;
    const entry = byPlace.get(key);
    if (entry) entry.text += `, ${caption(tube, frame, false)}`;
    else byPlace.set(key, { box, tube, text: caption(tube, frame, true) });
  }
  return [...byPlace.values()];
}

// Outlines, then captions in fields of their colour, each at the first place that is free: above a predicted box, below
// an annotated one. scale: canvas pixels of a video pixel; ratio: canvas pixels of a CSS pixel.
function drawBoxes(context, entries, palette, scale, ratio) {
  const { width, height } = context.canvas;
  for (const { box, tube } of entries) {
    const [x0, y0, x1, y1] = box.map((v) => v * scale);
    context.setLineDash(tube.side === "gt" ? [7 * ratio, 5 * ratio] : []);
    for (const [colour, line] of [["#000", 4], [palette[tube.colour % palette.length], 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = line * ratio;
      context.strokeRect(x0, y0, x1 - x0, y1 - y0);
    }
  }
  const size = 12 * ratio, field = size + 4 * ratio, taken = [];
  context.font = `600 ${size}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  for (const { box, tube, text } of entries) {
    const [x0, y0, , y1] = box.map((v) => v * scale);
    const w = Math.min(context.measureText(text).width + 6 * ratio, width), x = Math.max(Math.min(x0, width - w), 0);
    const places = [y0 - field, y1, y0, y1 - field, y0 - 2 * field, y1 + field];
    if (tube.side === "gt") [places[0], places[1]] = [places[1], places[0]];
    const inside = places.map((y) => Math.max(Math.min(y, height - field), 0));
    const free = (y) => !taken.some((t) => x < t.x + t.w && t.x < x + w && y < t.y + field && t.y < y + field);
    const y = inside.find(free) ?? inside[0];
    taken.push({ x, y, w });
    const colour = palette[tube.colour % palette.length];
    context.fillStyle = colour;
    context.fillRect(x, y, w, field);
    context.fillStyle = inkOn(colour);
    context.fillText(text, x + 3 * ratio, y + field / 2, w - 6 * ratio);
  }
}
