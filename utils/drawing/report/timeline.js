// Who does what, when: a row for each person, of ground truth and prediction next to each other, on one axis of frames.

// Each person's runs in as few lanes as keep simultaneous ones apart: [{side, name, colour, lanes: [[{tube, first, n}]]}].
function rowsOf(tubes) {
  const rows = new Map();
  const runs = tubes.flatMap((tube) => tube.runs.map(([first, n]) => ({ tube, first, n })));
  for (const run of runs.sort((a, b) => a.first - b.first)) {
    const { side, person, name, colour } = run.tube, key = `${side} ${person}`;
    if (!rows.has(key)) rows.set(key, { key, side, person, name, colour, lanes: [] });
    const { lanes } = rows.get(key);
    const free = lanes.find((lane) => lane.at(-1).first + lane.at(-1).n <= run.first);
    (free ?? lanes[lanes.push([]) - 1]).push(run);
  }
  const order = [...rows.values()];
  return order.sort((a, b) => a.colour - b.colour || (a.side > b.side) - (a.side < b.side) || a.person - b.person);
}

const MOST_ROWS = 300;

class Timeline {
  // seek(frame): the user points at a frame; toggle(key, shown): shows or hides a person.
  constructor(root, seek, toggle) {
    Object.assign(this, { root, seek, toggle });
    this.cursor = make("div", { class: "cursor" });
  }

  show(clip, tubes, visible, describe, hidden, palette) {
    this.n = Math.max(clip.n_frames, 1);
    const page = make("div"); // scrolls with its cursor
    const rows = rowsOf(tubes);
    for (const row of rows.slice(0, MOST_ROWS)) {
      const { key } = row, colour = palette[row.colour % palette.length];
      const box = make("input", { type: "checkbox", onchange: (event) => this.toggle(key, event.target.checked) });
      box.checked = !hidden.has(key);
      const lanes = row.lanes.map((lane) => make("div", { class: "lane" }, ...lane.filter((run) => visible(run.tube)).map((run) => this.bar(run, colour, describe))));
      const time = make("div", { class: "lanes", onclick: (event) => this.seek(this.frameAt(event)) }, ...lanes);
      page.append(make("div", { class: "row" }, make("label", { title: "show or hide this person" }, box, row.name), time));
    }
    if (rows.length > MOST_ROWS) page.append(make("p", { class: "hint" }, `and ${rows.length - MOST_ROWS} more people`));
    page.append(make("div", { class: "over" }, this.cursor));
    this.root.replaceChildren(page);
  }

  bar({ tube, first, n }, colour, describe) {
    const text = describe(tube);
    return make("button", {
      class: [tube.side, tube.error && "wrong", tube.label < 0 && "idle"].filter(Boolean).join(" "), title: `${text}, frames ${first} to ${first + n - 1}`,
      style: { left: percent(first / this.n), width: percent(n / this.n), "--colour": colour, color: inkOn(colour) },
      // a click with a pointer jumps where it points, one by the keyboard to the beginning
      onclick: (event) => { event.stopPropagation(); this.seek(event.detail ? this.frameAt(event) : first); },
    }, make("span", {}, (tube.error ? "✗ " : "") + text));
  }

  frameAt(event) {
    const { left, width } = event.target.closest(".lanes").getBoundingClientRect();
    return Math.floor((this.n * (event.clientX - left)) / width);
  }

  move(frame) {
    this.cursor.style.left = percent((frame + 0.5) / this.n);
  }
}
