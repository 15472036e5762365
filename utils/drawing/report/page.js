// The page: the list of videos, the one that is looked at, and what the user does.

const report = JSON.parse(byId("data").textContent);
const { labels, palette } = report;
const clips = report.videos.map((video, index) => ({ ...video, index, fps: video.fps ?? 25, timed: video.fps !== null }));
const state = { clip: null, tubes: [], errors: [], hiddenClasses: new Set(), hiddenPeople: new Set(), least: 0, order: [] };
const screen_ = byId("screen"), context = screen_.getContext("2d");
const player = new Player(drawFrame, () => { byId("play").textContent = player.playing ? "pause" : "play"; });
const timeline = new Timeline(byId("timeline"), (frame) => player.seek(frame), (key, shown) => {
  shown ? state.hiddenPeople.delete(key) : state.hiddenPeople.add(key);
  refresh();
});

const labelOf = (tube) => labels[tube.label] ?? "";
const scoreOf = (tube) => (tube.side === "pred" ? tube.score.toFixed(2) : "");
const describe = (tube) => [labelOf(tube), scoreOf(tube), tube.error].filter(Boolean).join(" · ");
const caption = (tube, frame, withName) => [withName && tube.name, labelOf(tube), scoreOf(tube)].filter(Boolean).join(" ");

function visible(tube) {
  return byId(tube.side).checked && !state.hiddenClasses.has(tube.label) && !state.hiddenPeople.has(`${tube.side} ${tube.person}`)
    && (tube.side === "gt" || tube.score >= state.least);
}

function drawFrame(frame, picture) {
  const { width, height } = screen_;
  context.fillStyle = "#777";
  context.fillRect(0, 0, width, height);
  if (picture) context.drawImage(picture, 0, 0, width, height);
  const scale = width / state.clip.width, ratio = width / screen_.clientWidth || 1;
  drawBoxes(context, boxesAt(state.tubes.filter(visible), frame, caption), palette, scale, ratio);
  byId("seek").value = frame;
  const seconds = state.clip.timed ? `, ${(frame / state.clip.fps).toFixed(2)} s` : "";
  byId("time").textContent = `frame ${frame} of ${state.clip.n_frames}${seconds}`;
  timeline.move(frame);
}

const redraw = () => state.clip && player.show(player.frame);

// The canvas as wide as its place and no higher than most of the window; sharp on every display.
function resize() {
  if (!state.clip) return;
  const { width, height } = state.clip;
  const wide = Math.max(Math.min(byId("stage").clientWidth, (0.62 * innerHeight * width) / height), 64);
  screen_.style.width = `${wide}px`;
  screen_.width = Math.round(wide * devicePixelRatio);
  screen_.height = Math.round((screen_.width * height) / width);
  redraw();
}

// These two are called by a video's own scripts, which are loaded when the video is looked at.
function loaded(index, tubes) {
  clips[index].tubes = tubes;
  if (state.clip?.index === index) showTubes();
}

async function loadedVideo(index, url) {
  const blob = await (await fetch(url)).blob();
  if (state.clip?.index === index && !player.media) showVideo(URL.createObjectURL(blob));
}

function showVideo(src) {
  player.attach(src, () => { byId("message").textContent = "this browser cannot play the video; boxes are shown without it"; });
}

function choose(index) {
  const clip = clips[index];
  Object.assign(state, { clip, tubes: [], errors: [], hiddenPeople: new Set() });
  byId("name").textContent = clip.name;
  byId("message").textContent = clip.src ? "" : "this video is not in the report: its boxes are shown without it";
  byId("seek").max = Math.max(clip.n_frames - 1, 0);
  for (const row of document.querySelectorAll("#list tbody tr")) row.setAttribute("aria-current", row.dataset.index === String(index));
  player.open(clip);
  resize();
  if (clip.tubes) showTubes();
  const scripts = [clip.tubes ? null : clip.data, clip.src?.endsWith(".js") ? clip.src : null].filter(Boolean);
  for (const src of scripts) document.body.append(make("script", { src, onload: (event) => event.target.remove() }));
  if (clip.src && !clip.src.endsWith(".js")) showVideo(clip.src);
}

function showTubes() {
  const { gt, pred } = state.clip.tubes;
  state.tubes = [...gt.map((tube) => ({ ...tube, side: "gt" })), ...pred.map((tube) => ({ ...tube, side: "pred" }))].filter((tube) => tube.runs.length);
  const present = [...new Set(state.tubes.map((tube) => tube.label))].filter((label) => label >= 0).sort((a, b) => a - b);
  byId("classes").hidden = !present.length;
  byId("classes").replaceChildren(make("legend", {}, "classes"), ...present.map((label) => {
    const box = make("input", { type: "checkbox", onchange: () => {
      box.checked ? state.hiddenClasses.delete(label) : state.hiddenClasses.add(label);
      refresh();
    } });
    box.checked = !state.hiddenClasses.has(label);
    return make("label", {}, box, labels[label]);
  }));
  for (const id of ["previous", "next", "report-errors"]) byId(id).hidden = !report.judged;
  byId("gt").parentElement.hidden = !report.judged;
  refresh();
}

// After a switch: timeline, list of errors and picture.
function refresh() {
  const events = state.clip.tubes?.events ?? [];
  const wrong = state.tubes.filter((tube) => tube.error && visible(tube));
  const text = (tube) => [tube.error, labelOf(tube), tube.name, scoreOf(tube)].filter(Boolean).join(", ");
  state.errors = [...events, ...wrong.map((tube) => ({ frame: tube.runs[0][0], text: text(tube) }))].sort((a, b) => a.frame - b.frame);
  byId("count").textContent = state.errors.length === 1 ? "1 error" : `${state.errors.length} errors`;
  byId("errors").replaceChildren(...state.errors.map((error) =>
    make("li", {}, make("button", { onclick: () => player.seek(error.frame) }, `frame ${error.frame}: ${error.text}`))));
  timeline.show(state.clip, state.tubes, visible, describe, state.hiddenPeople, palette);
  redraw();
}

function jumpToError(by) {
  const at = player.wanted ?? player.frame;
  const frames = [...new Set(state.errors.map((error) => error.frame))].filter((frame) => (frame - at) * by > 0);
  if (frames.length) player.seek(by > 0 ? Math.min(...frames) : Math.max(...frames));
}

// The list of videos, sorted by a column: the name, or a count of what went wrong.
function showList(column = report.columns[0] ?? "name", falling = column !== "name") {
  const value = (clip) => (column === "name" ? clip.name : clip.counts[column] ?? 0);
  const compare = (a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0) * (falling ? -1 : 1) || a.index - b.index;
  const heads = ["name", ...report.columns].map((name) => make("th", {
    scope: "col", "aria-sort": name === column ? (falling ? "descending" : "ascending") : "none",
  }, make("button", { onclick: () => showList(name, name === column ? !falling : name !== "name") }, name)));
  state.order = [...clips].sort(compare);
  const rows = state.order.map((clip) => make("tr", { "data-index": clip.index, "aria-current": clip === state.clip },
    make("th", { scope: "row" }, make("button", { onclick: () => choose(clip.index) }, clip.name)),
    ...report.columns.map((name) => make("td", {}, String(clip.counts[name] ?? 0)))));
  document.querySelector("#list thead").replaceChildren(make("tr", {}, ...heads));
  document.querySelector("#list tbody").replaceChildren(...rows);
  search();
}

function search() {
  const text = byId("search").value.toLowerCase();
  let n = 0;
  for (const row of document.querySelectorAll("#list tbody tr")) {
    row.hidden = !clips[row.dataset.index].name.toLowerCase().includes(text);
    n += !row.hidden;
  }
  byId("found").textContent = n === 1 ? "1 video" : `${n} videos`;
}

function nextVideo(by) {
  const rows = [...document.querySelectorAll("#list tbody tr")].filter((row) => !row.hidden);
  const row = rows[rows.findIndex((r) => r.dataset.index === String(state.clip?.index)) + by];
  if (row) {
    choose(Number(row.dataset.index));
    row.scrollIntoView({ block: "nearest" });
  }
}

const toggle = () => (player.playing ? player.pause() : player.play());
const ACTIONS = { // button's id (or none), keys, what it does
  play: [" ", toggle],
  back: ["ArrowLeft", () => player.step(-1)],
  forward: ["ArrowRight", () => player.step(1)],
  next: ["n", () => jumpToError(1)],
  previous: ["p", () => jumpToError(-1)],
  "": ["j", () => nextVideo(1)],
  "-": ["k", () => nextVideo(-1)],
};

function start() {
  byId("title").textContent = report.title;
  for (const [name, text] of Object.entries(report.facts)) byId("facts").append(make("div", {}, make("dt", {}, name), make("dd", {}, text)));
  for (const [id, [, action]] of Object.entries(ACTIONS)) byId(id)?.addEventListener("click", action);
  document.addEventListener("keydown", (event) => {
    const at = event.target, types = ["search", "range"];
    if (event.ctrlKey || event.altKey || event.metaKey || at.tagName === "SELECT" || (at.type === "search" && event.key !== "Escape")) return;
    if (types.includes(at.type) && event.key.startsWith("Arrow")) return; // moves the slider
    if (event.key === " " && ["BUTTON", "SUMMARY", "INPUT"].includes(at.tagName) && at.type !== "range") return; // presses it
    const action = Object.values(ACTIONS).find(([key]) => key === event.key);
    if (!action) return;
    event.preventDefault();
    action[1]();
  });
  byId("search").addEventListener("input", search);
  byId("seek").addEventListener("input", (event) => player.seek(Number(event.target.value)));
  byId("rate").addEventListener("change", (event) => player.setRate(Number(event.target.value)));
  byId("score").addEventListener("input", (event) => {
    state.least = Number(event.target.value);
    byId("least").textContent = state.least.toFixed(2);
    refresh();
  });
  for (const side of ["gt", "pred"]) byId(side).addEventListener("change", refresh);
  new ResizeObserver(resize).observe(byId("stage"));
  showMetrics(report);
  showList();
  byId("viewer").hidden = !clips.length;
  if (clips.length) choose(state.order[0].index);
}

start();
