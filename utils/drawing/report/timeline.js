// Who does what, when: a row for each person, of ground truth and prediction next to each other, on one axis of frames.

// Each person's tubes in as few lanes as keep simultaneous ones apart: [{side, person, colour, lanes: [[tube]]}].
function rowsOf(tubes) {
  const rows = new Map();
  for (const tube of tubes) {
    const key = `${tube.side} ${tube.person}`;
    if (!rows.has(key)) rows.set(key, { side: tube.side, person: tube.person, name: tube.name, colour: tube.colour, lanes: [] });
    const { lanes } = rows.get(key), begin = tube.runs[0][0];
    const lane = lanes.find((l) => end(l.at(-1)) <= begin) ?? lanes[lanes.push([]) - 1];
    lane.push(tube);
  }
  const order = [...rows.values()];
  return order.sort((a, b) => a.colour - b.colour || (a.side > b.side) - (a.side < b.side) || a.person - b.person);
}

const end = (tube) => tube.runs.at(-1)[0] + tube.runs.at(-1)[1];

class Timeline {
  // seek(frame): the user points at a frame; toggle(key, shown): shows or hides a person.
  constructor(root, seek, toggle) {
    Object.assign(this, { root, seek, toggle });
    this.cursor = make("div", { class: "cursor" });
  }

  show(clip, tubes, visible, describe, hidden, palette) {
    this.n = Math.max(clip.n_frames, 1);
    this.root.replaceChildren();
    for (const row of rowsOf([...tubes].sort((a, b) => a.runs[0][0] - b.runs[0][0]))) {
      const key = `${row.side} ${row.person}`, colour = palette[row.colour % palette.length];
      const box = make("input", { type: "checkbox", onchange: (event) => this.toggle(key, event.target.checked) });
      box.checked = !hidden.has(key);
      const lanes = row.lanes.map((lane) => make("div", { class: "lane" }, ...lane.filter(visible).flatMap((tube) => this.bars(tube, colour, describe))));
      const time = make("div", { class: "lanes", onclick: (event) => this.seek(this.frameAt(event)) }, ...lanes);
      this.root.append(make("div", { class: "row" }, make("label", { title: "show or hide this person" }, box, row.name), time));
    }
    this.root.append(make("div", { class: "over" }, this.cursor));
  }

  bars(tube, colour, describe) {
    const text = describe(tube);
    return tube.runs.map(([first, n]) => make("button", {
      class: `${tube.side} ${tube.error ? "wrong" : ""}`, title: `${text}, frames ${first} to ${first + n - 1}`,
      style: { left: percent(first / this.n), width: percent(n / this.n), "--colour": colour, color: inkOn(colour) },
      // a click with a pointer jumps where it points, one by the keyboard to the beginning
      onclick: (event) => { event.stopPropagation(); this.seek(event.detail ? this.frameAt(event) : first); },
    }, make("span", {}, (tube.error ? "✗ " : "") + text)));
  }

  frameAt(event) {
    const { left, width } = event.target.closest(".lanes").getBoundingClientRect();
    return Math.floor((this.n * (event.clientX - left)) / width);
  }

  move(frame) {
    this.cursor.style.left = percent((frame + 0.5) / this.n);
  }
}
