// The metrics, and one function for each kind of chart.

const percent = (share) => `${(100 * Math.min(Math.max(share, 0), 1)).toFixed(2)}%`;

const interval = (row) => (row.low === null || row.low === undefined ? "" : `${number(row.low)} to ${number(row.high)}`);

// Rows {name, value, low, high, series, note}, a bar each, its length from 0 to the largest value (at least 1).
function bars(chart, palette) {
  const series = [...new Set(chart.rows.map((row) => row.series).filter(Boolean))];
  const most = chart.most ?? Math.max(1, ...chart.rows.map((row) => row.high ?? row.value ?? 0));
  const colour = (row) => palette[series.length ? (6 + Math.max(series.indexOf(row.series), 0) * 2) % 7 : 6];
  const grid = make("div", { class: "bars" });
  for (const row of chart.rows) {
    const box = make("div", { class: "track" }, make("div", { class: "fill", style: { width: percent((row.value ?? 0) / most), background: colour(row) } }));
    if (interval(row)) {
      const low = Math.max(row.low, 0); // an interval may begin below zero
      box.append(make("div", { class: "whisker", style: { left: percent(low / most), width: percent((row.high - low) / most) } }));
    }
    const text = [number(row.value), interval(row) && `(${interval(row)})`, row.note].filter(Boolean).join(" ");
    grid.append(make("span", {}, row.name), box, make("span", { class: "number" }, text));
  }
  const key = series.map((name) =>
    make("span", {}, make("i", { style: { background: colour({ series: name }) } }), name));
  return [key.length ? make("p", { class: "key" }, ...key) : "", grid];
}

// Curves {name, note, x, y}, values from 0 to 1, in a panel each.
function curves(chart, palette) {
  const panels = chart.curves.map((curve) => {
    const points = curve.x.map((x, i) => `${(100 * x).toFixed(1)},${(100 - 100 * curve.y[i]).toFixed(1)}`);
    const area = points.length ? `${points[0].split(",")[0]},100 ${points.join(" ")} ${points.at(-1).split(",")[0]},100` : "";
    const picture = make("svg:svg", { viewBox: "-1 -1 102 102", role: "img", "aria-label": `${curve.name}: ${chart.y} over ${chart.x}` },
      make("svg:path", { d: "M0 0V100H100M50 100V0M0 50H100M0 0H100V100", class: "grid" }),
      make("svg:polygon", { points: area, fill: palette[0], opacity: "0.35" }),
      make("svg:polyline", { points: points.join(" "), class: "line" }));
    return make("figure", {}, make("figcaption", {}, make("b", {}, curve.name), make("br"), curve.note), picture);
  });
  return [make("p", { class: "hint" }, `across: ${chart.x}, up: ${chart.y}, both from 0 to 1`), make("div", { class: "panels" }, ...panels)];
}

// Counts by row and column; a cell's shade is its share of the row.
function matrix(chart) {
  const head = chart.columns.map((name) => make("th", { scope: "col" }, make("span", {}, name)));
  const lines = chart.counts.map((counts, i) => {
    const total = Math.max(counts.reduce((a, b) => a + b, 0), 1);
    const cells = counts.map((n, j) => make("td", {
      title: `${chart.rows[i]} → ${chart.columns[j]}: ${n} (${percent(n / total)})`,
      style: { "--share": percent(n / total) }, class: n / total > 0.5 ? "much" : "",
    }, n ? String(n) : ""));
    return make("tr", {}, make("th", { scope: "row" }, chart.rows[i]), ...cells);
  });
  const table = make("table", { class: "matrix" }, make("thead", {}, make("tr", {}, make("td"), ...head)), make("tbody", {}, ...lines));
  return [make("p", { class: "hint" }, chart.note ?? ""), make("div", { class: "scroll" }, table)];
}

const CHARTS = { bars, curves, matrix };

function showMetrics(report) {
  for (const row of report.metrics) {
    byId("metrics").append(make("div", {}, make("dt", {}, row.name), make("dd", {}, make("b", {}, row.count ? String(row.value) : number(row.value)), interval(row) && ` ${interval(row)}`)));
  }
  for (const chart of report.charts) {
    const details = make("details", { class: chart.kind === "curves" || chart.rows?.length > 30 || chart.columns?.length > 12 ? "card wide" : "card", open: !chart.folded }, make("summary", {}, make("h2", {}, chart.title)));
    details.append(...CHARTS[chart.kind](chart, report.palette));
    byId("charts").append(details);
  }
}
