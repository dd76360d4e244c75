// Curves along training: phases, signals, distance from the base, cost.

const drawn = new Map();

function plot(id, traces, layout) {
  const node = typeof id === "string" ? $(id) : id;
  const small = narrow();
  const base = {
    autosize: true, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: css("--soft") },
    margin: { l: small ? 40 : 56, r: small ? 8 : 16, t: 10, b: 40 },
    showlegend: false, hovermode: "x unified", dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--ink"), size: 12 } },
  };
  const merged = { ...base, ...layout, margin: { ...base.margin, ...(layout.margin || {}) } };
  const named = merged.hovermode === base.hovermode ? placesOf(traces) : [];
  if (named.length) {
    merged.yaxis99 = { overlaying: "y", visible: false, fixedrange: true, range: [0, 1] };
    merged.xaxis = { ...merged.xaxis, unifiedhovertitle: { text: "<b></b>" } };
  }
  drawn.set(node.id, true);
  return Plotly.react(node, [...named, ...traces], merged, { displayModeBar: false, responsive: true, doubleClick: "reset" });
}

// In a chain a number on the axis names no stage: the first line of what hovers does.
function placesOf(traces) {
  if (comparing() || state.data.lanes[0].runs.length < 2) return [];
  const at = new Map();
  for (const { x, customdata } of traces)
    if (customdata) x.forEach((one, index) => one !== null && at.set(one, new Set(at.get(one)).add(customdata[index])));
  const xs = [...at.keys()].sort((a, b) => a - b);
  return [{
    x: xs, y: xs.map(() => 0), yaxis: "y99", type: "scatter", mode: "lines", line: { color: "rgba(0,0,0,0)" }, name: "",
    customdata: xs.map((x) => [...at.get(x)].join(" · ")), hovertemplate: "<b>%{customdata}</b><extra></extra>",
  }];
}

function axis(extra) {
  return {
    gridcolor: css("--grid"), linecolor: css("--line"), zeroline: false, automargin: false,
    tickfont: { color: css("--soft") }, ticks: "", ...extra,
  };
}

// The step axis of a chain: each stage counts its own steps, so ticks are written per stage.
function stepAxis(extra, columns = 1) {
  const lanes = state.data.lanes;
  const stop = Math.max(...lanes.map((lane) => last(lane.runs).stop));
  const pad = stop * 0.006;
  const common = { range: [-pad, stop + pad], fixedrange: false, showgrid: false };
  if (staged()) return stageAxis(stop, columns, { ...common, range: [-0.5, stop + 0.5], ...extra });
  if (comparing() || lanes[0].runs.length === 1)
    return axis({ ...common, title: { text: "step", standoff: 6 }, unifiedhovertitle: { text: "step %{x}" }, ...extra });
  const values = [], texts = [];
  const each = Math.max(1, Math.round((narrow() ? 6 : 12) / lanes[0].runs.length));
  for (const run of lanes[0].runs) {
    const length = run.stop - run.start;
    const raw = length / each, power = 10 ** Math.floor(Math.log10(raw));
    const unit = Math.max(1, [1, 2, 5, 10].map((k) => k * power).find((k) => k >= raw));
    for (let s = 0; s < length - unit * 0.4 || s === 0; s += unit) {
      values.push(run.start + s);
      texts.push(String(Math.round(s)));
    }
  }
  return axis({ ...common, tickvals: values, ticktext: texts, title: { text: "step within each stage", standoff: 6 }, ...extra });
}

// A scan's stages by name; of many only some, so that none runs into another.
function stageAxis(stop, columns, extra) {
  const names = Array.from({ length: stop + 1 }, (_, step) =>
    [...new Set(state.data.lanes.map((lane) => lane.runs[0].stages[step]).filter(Boolean))].map((name) => plain(clip(name, narrow() ? 12 : 22))).join("<br>"));
  const wide = 10 + 6.6 * Math.max(...names.flatMap((name) => name.split("<br>").map((one) => one.length)));
  const each = Math.ceil(wide / (($("body").clientWidth / columns - edge() - 60) / names.length));
  const shown = names.map((_, step) => step).filter((step) => step % each === 0);
  return axis({ ...extra, tickvals: shown, ticktext: shown.map((step) => names[step]), title: { text: "stage", standoff: 6 } });
}

// Where one stage ends and the next begins, with names at the top.
function stageMarks(named) {
  const shapes = [], annotations = [];
  if (comparing()) return { shapes, annotations };
  const lane = state.data.lanes[0];
  if (lane.runs.length < 2) return { shapes, annotations };
  const room = Math.max(6, Math.floor((narrow() ? 46 : 130) / lane.runs.length));
  lane.runs.forEach((run, index) => {
    if (index)
      shapes.push({ type: "line", x0: run.start, x1: run.start, yref: "paper", y0: 0, y1: 1, line: { color: css("--soft"), width: 1 }, layer: "below" });
    if (named)
      annotations.push({ x: (run.start + run.stop) / 2, y: 1, yref: "paper", yanchor: "bottom", showarrow: false, text: `<b>${plain(clip(run.name, room))}</b>`, font: { color: css("--ink"), size: 12 } });
  });
  return { shapes, annotations };
}

// Of the suite. Those of one probe that say the same, as when it passes two phases at once, are one.
function suiteEvents(lane) {
  const id = (event) => JSON.stringify([event.run, event.step, event.message]);
  return [...new Map(lane.events.filter((event) => event.task === null).map((event) => [id(event), event])).values()];
}

// Numbered flags; the numbers are explained in the list "What happened, when".
function eventMarks() {
  const shapes = [], annotations = [];
  let row = 0, before = -Infinity;
  const stop = Math.max(...state.data.lanes.map((lane) => last(lane.runs).stop));
  state.data.lanes.flatMap((lane, index) => suiteEvents(lane).map((event) => ({ ...event, lane: index }))).map((event, index) => ({ ...event, index })).sort((a, b) => a.x - b.x).forEach(({ index, ...event }) => {
    row = (event.x - before) / stop < (narrow() ? 0.07 : 0.025) ? (row + 1) % 3 : 0;
    before = event.x;
    const colour = comparing() ? laneColour(event.lane) : css("--ink");
    shapes.push({ type: "line", x0: event.x, x1: event.x, yref: "paper", y0: 0, y1: 1, line: { color: colour, width: 1, dash: "4px,3px" }, opacity: 0.75 });
    annotations.push({ x: event.x, y: 1, yref: "paper", yanchor: "bottom", yshift: 1 + 19 * row, showarrow: false, text: `<b>${index + 1}</b>`, font: { size: 11, color: comparing() ? textOn(colour) : css("--card") }, bgcolor: colour, borderpad: 3 });
  });
  return { shapes, annotations };
}

function places(lane) {
  return lane.x.map((_, index) => plain(place(lane, index)));
}

// The charts over training share their left edge, so that a step stands above itself.
const ROOM = () => (narrow() ? 11 : 18);
function edge() {
  const names = state.data.tasks.map((task) => task.name).concat(comparing() ? state.data.lanes.map((lane) => lane.name) : ["suite"]);
  const longest = Math.max(...names.map((name) => Math.min(name.length, ROOM())));
  return Math.max(narrow() ? 40 : 56, 16 + 7 * longest);
}

// One line per stage with gaps between, as band and curve.
function curve(lane, series, options) {
  const { name, colour, dash = "solid", width = 2, scale = 1, unit = "", digits = 3 } = options;
  const xs = [], ys = [], lows = [], highs = [], text = [];
  const where = places(lane);
  lane.x.forEach((x, index) => {
    if (index && lane.stage[index] !== lane.stage[index - 1])
      for (const list of [xs, ys, lows, highs, text]) list.push(null);
    xs.push(x);
    const of = (list) => (known(list[index]) ? list[index] * scale : null);
    ys.push(of(series.v));
    lows.push(series.lo ? of(series.lo) : null);
    highs.push(series.hi ? of(series.hi) : null);
    text.push(where[index]);
  });
  const traces = [];
  if (series.lo)
    for (const part of pieces(xs, lows, highs))
      traces.push({ x: [...part.x, ...part.x.slice().reverse()], y: [...part.high, ...part.low.reverse()], type: "scatter", mode: "none", fill: "toself", fillcolor: rgba(colour, 0.16), hoverinfo: "skip" });
  traces.push({ x: xs, y: ys, type: "scatter", mode: lane.x.length <= 24 ? "lines+markers" : "lines", connectgaps: false, marker: { size: 5 }, line: { color: colour, width, dash }, customdata: text, name: plain(name), hovertemplate: `${plain(name)} %{y:.${digits}f}${unit}<extra></extra>` });
  return traces;
}

function pieces(xs, lows, highs) {
  const parts = [];
  let part = null;
  xs.forEach((x, index) => {
    if (x === null || !known(lows[index]) || !known(highs[index])) { part = null; return; }
    if (!part) parts.push((part = { x: [], low: [], high: [] }));
    part.x.push(x); part.low.push(lows[index]); part.high.push(highs[index]);
  });
  return parts.filter((one) => one.x.length > 1);
}

// --- phases ----------------------------------------------------------------------------------

const SYMBOLS = {
  seed_locked: ["diamond", "seed locked"], seedless_collapse: ["x", "collapse without a seed"],
  support_leak: ["triangle-up", "answers leave the seed’s"], recrystallization: ["star", "another seed takes over"],
  format_drift: ["square", "format drifts"], entropy_collapse: ["hexagon", "answers become sure"],
};

// A phase begins at the probe that told it, and is seen also if that is the last; of a scan each
// stage has as much room on either side.
function begins(lane, index) {
  const run = lane.runs[lane.stage[index]], x = lane.x[index], half = staged() ? 0.5 : 0;
  if (!index || lane.stage[index] !== lane.stage[index - 1]) return run.start - half;
  if (half) return (lane.x[index - 1] + x) / 2;
  return Math.min(x, Math.max(run.stop - 0.008 * last(lane.runs).stop, lane.x[index - 1]));
}

// What the last probe alone shows is a block of its own, unconfirmed.
function blocks(lane, { phase: phases, shown }) {
  const found = [];
  lane.x.forEach((x, index) => {
    const run = lane.runs[lane.stage[index]];
    const final = index === lane.x.length - 1 || lane.stage[index] !== lane.stage[index + 1];
    const from = begins(lane, index), to = final ? run.stop + (staged() ? 0.5 : 0) : begins(lane, index + 1);
    const until = final ? run.stop : lane.x[index + 1];
    const unconfirmed = index === lane.x.length - 1 && known(shown) && shown !== phases[index];
    const phase = unconfirmed ? shown : phases[index];
    if (phase === null || phase === undefined) return;
    const open = last(found);
    if (open && !unconfirmed && open.phase === phase && open.stage === lane.stage[index] && open.to === from) Object.assign(open, { to, until });
    else found.push({ from, to, since: x, until, phase, unconfirmed, stage: lane.stage[index] });
  });
  return found;
}

function drawPhases() {
  const { lanes, tasks } = state.data;
  const detailed = lanes.length <= 3;
  const rows = [];
  lanes.forEach((lane, index) => {
    rows.push({ lane, index, suite: true, label: comparing() ? lane.name : "suite", history: lane, height: 1.7 });
    if (detailed)
      for (const task of tasks)
        if (probes(lane, task)) rows.push({ lane, index, task: task.name, label: task.name, history: lane.tasks[task.name], height: 1 });
  });
  let y = 0;
  for (const row of rows) {
    y -= row.height / 2 + (row.suite && y < 0 ? 0.8 : 0);
    row.y = y;
    y -= row.height / 2 + (row.suite ? 0.15 : 0);
  }
  const present = new Set();
  const stop = Math.max(...lanes.map((lane) => last(lane.runs).stop));
  const pixels = (block) => ((block.to - block.from) / stop) * ($("chart-phases").clientWidth - edge() - 16);
  const words = (block) => (block.unconfirmed ? `looks ${phaseName(block.phase)}` : phaseName(block.phase));
  const label = (block) => (pixels(block) > 14 + 7.4 * words(block).length ? `<b>${words(block)}</b>` : "");
  const byPhase = state.data.phases.map(() => ({ x: [], base: [], y: [], width: [], text: [], hover: [], pattern: [] }));
  const marks = {};
  for (const row of rows) {
    for (const block of blocks(row.lane, row.history)) {
      const into = byPhase[block.phase], run = row.lane.runs[block.stage];
      present.add(block.phase);
      into.base.push(block.from); into.x.push(block.to - block.from); into.y.push(row.y);
      into.width.push(row.height * (row.suite ? 0.92 : 0.8));
      into.text.push(row.suite ? label(block) : "");
      into.pattern.push(block.unconfirmed ? "/" : "");
      const [from, to] = staged() ? [Math.ceil(block.from), Math.floor(block.to)] : [block.since - run.start, block.until - run.start];
      into.hover.push(`${plain(row.label)}: ${words(block)}${block.unconfirmed ? ", unconfirmed" : ""}<br>${plain(ofRun(row.lane, run, stepSpan(run, from, to)))}`);
    }
    if (row.task === undefined) continue;
    for (const event of row.lane.events)
      if (event.task === row.task && SYMBOLS[event.kind]) {
        const into = (marks[event.kind] ||= { x: [], y: [], text: [] });
        into.x.push(event.x); into.y.push(row.y);
        into.text.push(`${plain(placeOf(row.lane, row.lane.runs[event.run], event.step))}: ${plain(event.task)}<br>${plain(clip(event.message, 90))}`);
      }
  }
  const traces = byPhase.map((one, index) => ({
    type: "bar", orientation: "h", x: one.x, base: one.base, y: one.y, width: one.width,
    text: one.text, textposition: "inside", insidetextanchor: "middle", textangle: 0, constraintext: "none",
    insidetextfont: { color: textOn(phaseColour(index)), size: 12 },
    marker: { color: phaseColour(index), line: { width: 0 }, pattern: { shape: one.pattern, size: 6, fillmode: "overlay", solidity: 0.15 } }, customdata: one.hover, hovertemplate: "%{customdata}<extra></extra>",
  })).filter((trace) => trace.x.length);
  for (const [kind, one] of Object.entries(marks))
    traces.push({ type: "scatter", mode: "markers", x: one.x, y: one.y, marker: { symbol: SYMBOLS[kind][0], size: 8, color: "#14181d", line: { color: "#fff", width: 1.2 } }, customdata: one.text, hovertemplate: "%{customdata}<extra></extra>" });
  const room = ROOM(), marked = stageMarks(true);
  const height = 64 + -y * (detailed ? 15 : 22);
  const node = $("chart-phases");
  node.style.height = `${height}px`;
  node.setAttribute("aria-label", lanes.map((lane) => `${lane.name}: ${blocks(lane, lane).map(words).join(", then ")}`).join(". "));
  plot("chart-phases", traces, {
    height, barmode: "overlay", hovermode: "closest", margin: { l: edge(), t: marked.annotations.length ? 24 : 8, b: 42 },
    xaxis: stepAxis({}), yaxis: axis({ range: [y, 0.1], showgrid: false, fixedrange: true, tickvals: rows.map((r) => r.y), ticktext: rows.map((r) => (r.suite ? `<b>${plain(clip(r.label, room))}</b>` : plain(clip(r.label, room)))) }),
    ...marked,
  });
  const names = [...present].sort().map((index) => el("span", {}, swatch(phaseColour(index)), phaseName(index)));
  const glyphs = { diamond: "◆", x: "✕", "triangle-up": "▲", star: "★", square: "■", hexagon: "⬢" };
  const symbols = Object.keys(marks).map((kind) => el("span", {}, `${glyphs[SYMBOLS[kind][0]]} ${SYMBOLS[kind][1]}`));
  const hatched = traces.some((trace) => trace.marker.pattern?.shape.includes("/")) ? [el("span", {}, "hatched: the last probe alone, unconfirmed")] : [];
  fill($("phase-legend"), ...names, ...symbols, ...hatched);
}

// --- signals ---------------------------------------------------------------------------------

// Those without unit share an axis; liquidity, in nats, is there only where it has no `order`.
function signalsOf(lane) {
  const there = briefMetrics(CRYSTALLIZATION).filter((metric) => isTold(lane, metric)), plain = there.filter((metric) => !metric.unit);
  return (lane.series.order ? plain : there).map((metric, index) => ({ ...metric, dash: DASHES[index % DASHES.length], width: index ? 2 : 3, label: withUnit(metric) }));
}

function withUnit(metric) {
  return metric.label + (metric.unit ? ` [${metric.unit}]` : "");
}

function key(signal, colour, value, redraw) {
  const dash = { dash: "7 4", dot: "2 4", dashdot: "7 3 2 3", longdash: "12 4", longdashdot: "12 3 2 3" }[signal.dash] || "";
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("width", 26); svg.setAttribute("height", 8); svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
  for (const [name, to] of Object.entries({ x1: 0, x2: 26, y1: 4, y2: 4, stroke: colour, "stroke-width": signal.width, "stroke-dasharray": dash }))
    line.setAttribute(name, to);
  svg.append(line);
  return el("button", { type: "button", class: "key", "data-key": signal.key, "aria-pressed": String(!state.hidden.has(signal.key)), onclick: () => {
    state.hidden.has(signal.key) ? state.hidden.delete(signal.key) : state.hidden.add(signal.key);
    redraw();
    const again = document.querySelector(`.key[data-key="${signal.key}"]`);
    if (again) again.focus();
  } }, svg, el("span", {}, signal.label + " ", el("b", {}, value), el("small", {}, signal.summary)));
}

function drawSignals() {
  if (comparing()) return drawFacets($("signals"), CRYSTALLIZATION, "signals");
  const lane = state.data.lanes[0];
  const there = signalsOf(lane);
  const now = (signal) => fixed(last(lane.series[signal.key].v), 2);
  let chart = $("chart-signals");
  if (!chart) {
    fill($("signals"), el("div", { class: "keys" }), (chart = el("div", { id: "chart-signals", class: "chart", role: "img" })));
  }
  fill($("signals").firstChild, ...there.map((signal) => key(signal, shown(signal.colour), now(signal), drawSignals)));
  const visible = there.filter((signal) => !state.hidden.has(signal.key)).reverse();
  const traces = visible.flatMap((signal) => curve(lane, lane.series[signal.key], { ...signal, name: signal.label, colour: shown(signal.colour), unit: "" }));
  const flags = eventMarks(), stages = stageMarks(false);
  const height = narrow() ? 300 : 360;
  chart.style.height = `${height}px`;
  chart.setAttribute("aria-label", "Along training: " + there.map((signal) => `${signal.label} ends at ${now(signal)}`).join(", "));
  plot(chart, traces, { height, margin: { l: edge(), t: flags.annotations.length ? 30 + 19 * Math.max(0, ...flags.annotations.map((a) => (a.yshift - 1) / 19)) : 10 }, xaxis: stepAxis({ hoverformat: ".0f" }), yaxis: axis({ tickformat: ".1f", rangemode: "normal", fixedrange: true, autorangeoptions: { include: [0, 1.02] } }), shapes: [...stages.shapes, ...flags.shapes], annotations: [...stages.annotations, ...flags.annotations] });
}

// Runs side by side: one small chart a metric, one line a run.
function drawFacets(home, section, name) {
  const { lanes } = state.data;
  const there = briefMetrics(section).filter((metric) => lanes.some((lane) => lane.series[metric.key]));
  if (!$(`chart-${name}-0`) || home.querySelectorAll(".facet").length !== there.length)
    fill(home, el("div", { class: "legend" }), el("div", { class: "facets" }, ...there.map((metric, index) =>
      el("div", { class: "facet" }, el("h3", {}, withUnit(metric) + " ", el("small", {}, metric.summary)), el("div", { id: `chart-${name}-${index}`, class: "chart", role: "img", "aria-label": `${withUnit(metric)} of each run along training` })))));
  fill(home.firstChild, ...lanes.map((lane, index) => el("span", {}, swatch(laneColour(index)), lane.name)));
  there.forEach((metric, index) => {
    const traces = lanes.flatMap((lane, at) => (lane.series[metric.key] ? curve(lane, lane.series[metric.key], { name: clip(lane.name, 30), colour: laneColour(at), dash: DASHES[at % DASHES.length], width: 2.4 }) : []));
    const flags = index === 0 && name === "signals" ? eventMarks() : { shapes: [], annotations: [] };
    $(`chart-${name}-${index}`).style.height = "240px";
    plot(`chart-${name}-${index}`, traces, { height: 240, margin: { t: flags.annotations.length ? 46 : 10 }, xaxis: stepAxis({}, narrow() ? 1 : 2), yaxis: axis({ fixedrange: true, rangemode: "tozero" }), ...flags });
  });
}

// --- distance from the base, and cost ----------------------------------------------------------

// One chart a panel. Parts of a metric add up to it, so they are stacked under its line.
function drawDrift() {
  if (comparing()) return drawFacets($("drift"), DISTANCE, "drift");
  const lane = state.data.lanes[0], metrics = allMetrics().filter((metric) => metric.section === DISTANCE);
  const panels = [...new Set(metrics.map((metric) => metric.panel))].map((title) => metrics.filter((metric) => metric.panel === title));
  if (!$(`chart-${panels[0][0].key}`))
    fill($("drift"), el("div", { class: "facets" }, ...panels.map((panel) => el("div", { class: "facet" },
      el("h3", {}, panel[0].label + (panel[0].unit ? ` [${panel[0].unit}] ` : " "), el("small", {}, panel[0].summary)),
      el("div", { class: "legend" }, ...(panel.length > 1 ? panel : []).map((metric) => el("span", { title: metric.summary, "data-colour": metric.colour }, metric.label))),
      el("div", { id: `chart-${panel[0].key}`, class: "chart", role: "img", "aria-label": `${panel.map((metric) => metric.label).join("; ")} along training` })))));
  for (const entry of $("drift").querySelectorAll(".legend span[data-colour]"))
    fill(entry, swatch(shown(entry.dataset.colour)), entry.textContent);
  const stages = stageMarks(true), top = stages.annotations.length ? 24 : 10;
  for (const panel of panels) {
    const there = panel.filter((metric) => lane.series[metric.key]);
    const traces = there.filter((metric) => metric.part).flatMap((metric) => areas(lane, metric));
    for (const metric of there.filter((one) => !one.part))
      traces.push(...curve(lane, lane.series[metric.key], { name: metric.label, colour: shown(metric.colour) }));
    const range = panel[0].unit ? { rangemode: "tozero" } : { range: [0, 1.04], tickformat: ".0%" };
    $(`chart-${panel[0].key}`).style.height = "250px";
    plot(`chart-${panel[0].key}`, traces, { height: 250, margin: { t: top }, xaxis: stepAxis({}, narrow() ? 1 : 2), yaxis: axis({ ...range, fixedrange: true }), ...stages });
  }
}

function areas(lane, metric) {
  return lane.runs.map((run, stage) => {
    const at = lane.x.map((_, i) => i).filter((i) => lane.stage[i] === stage);
    return { x: at.map((i) => lane.x[i]), y: at.map((i) => lane.series[metric.key].v[i]), type: "scatter", mode: "lines", line: { width: 0 }, stackgroup: `stage${stage}`, fillcolor: rgba(shown(metric.colour), 0.55), name: plain(metric.label), hovertemplate: `${plain(metric.label)} %{y:.3f}<extra></extra>` };
  });
}

function drawCost() {
  const traces = state.data.lanes.flatMap((lane, index) => curve(lane, { v: lane.seconds }, { name: comparing() ? clip(lane.name, 30) : "seconds", colour: comparing() ? laneColour(index) : css("--accent"), width: 1.6, unit: " s" }));
  $("chart-cost").style.height = "170px";
  plot("chart-cost", traces, { height: 170, margin: { l: edge() }, xaxis: stepAxis({}), yaxis: axis({ rangemode: "tozero", title: { text: "s per probe" }, fixedrange: true, nticks: 4 }), ...stageMarks(false) });
}
