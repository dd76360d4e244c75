// The trainer's own log, on the step axis and with the flags of the curves below it.

const EVAL = "eval_";
const significant = (value) => {
  if (!known(value)) return MISSING;
  const small = value !== 0 && Math.abs(value) < 0.001;
  return (small ? value.toExponential(2) : String(Number(value.toPrecision(3)))).replace(/-/g, "−");
};
const logged = (lane) => lane.runs.some((run) => Object.keys(run.log).length);
const isEval = (key) => key.startsWith(EVAL);

function shownPanels() {
  return state.data.log.filter((panel) => (state.logged ? state.logged.has(panel.key) : panel.first));
}

function toggleLogged(key) {
  state.logged ||= new Set(shownPanels().map((panel) => panel.key));
  state.logged.has(key) ? state.logged.delete(key) : state.logged.add(key);
}

// One line a lane and key, with a gap where the next stage begins.
function loggedCurve(lane, index, key, row) {
  const xs = [], ys = [], text = [];
  for (const run of lane.runs) {
    const curve = run.log[key];
    if (!curve) continue;
    if (xs.length) for (const list of [xs, ys, text]) list.push(null);
    curve.step.forEach((step, at) => {
      xs.push(run.start + step);
      ys.push(curve.v[at]);
      text.push(plain((lane.runs.length > 1 ? `${run.name}, ` : "") + `step ${step}`));
    });
  }
  if (!xs.length) return null;
  const colour = loggedColour(key, index), name = comparing() ? `${clip(lane.name, 30)}: ${key}` : key;
  return {
    x: xs, y: ys, customdata: text, yaxis: row ? `y${row + 1}` : "y", type: "scatter", connectgaps: false, name: plain(name),
    mode: isEval(key) || xs.length <= 24 ? "lines+markers" : "lines", marker: { size: 5 },
    line: { color: colour, width: 1.7, dash: isEval(key) ? "dot" : "solid" },
    hovertemplate: `${plain(name)} %{y:.3~g}<extra></extra>`,
  };
}

const loggedColour = (key, index) => (comparing() ? laneColour(index) : shown(isEval(key) ? "#E69F00" : "#0072B2"));

// A panel's name and, of a single lane, where each of its curves ends.
function panelTitle(panel) {
  const name = `<b>${plain(clip(panel.key, narrow() ? 36 : 60))}</b>`;
  if (comparing()) return name;
  const lane = state.data.lanes[0];
  const ends = panel.keys.map((key) => {
    const curves = lane.runs.map((run) => run.log[key]).filter(Boolean);
    const label = panel.keys.length > 1 && isEval(key) ? "eval " : "";
    return `<span style="color:${loggedColour(key, 0)}">${label}${significant(last(last(curves).v))}</span>`;
  });
  return `${name}  ${ends.join("   ")}`;
}

function drawTraining() {
  const { lanes, log } = state.data;
  $("training-section").hidden = !log.length;
  if (!log.length) return;
  if (!$("chart-training"))
    fill($("training"), el("div", { class: "legend" }), el("div", { id: "chart-training", class: "chart", role: "img" }),
      el("details", { id: "log-choice" }, el("summary"), el("div", { class: "chips", role: "group", "aria-label": "Curves of the trainer’s log" })));
  fill($("training").firstChild, ...(comparing() ? lanes.map((lane, index) => (logged(lane) ? el("span", {}, swatch(laneColour(index)), lane.name) : null)) : []));
  drawChoice();
  const panels = shownPanels(), node = $("chart-training");
  node.hidden = !panels.length;
  if (!panels.length) return;
  const band = 24, height = narrow() ? 64 : 74, inner = panels.length * (band + height);
  const traces = panels.flatMap((panel, row) => lanes.flatMap((lane, index) => panel.keys.map((key) => loggedCurve(lane, index, key, row)))).filter(Boolean);
  const flags = eventMarks(), stages = stageMarks(false);
  const axes = {}, titles = [];
  panels.forEach((panel, row) => {
    const top = 1 - (row * (band + height)) / inner;
    axes[row ? `yaxis${row + 1}` : "yaxis"] = axis({ domain: [Math.max(0, top - (band + height) / inner), top - band / inner], fixedrange: true, nticks: 4, exponentformat: "e", zeroline: false });
    titles.push({ x: 0, xref: "paper", xanchor: "left", y: top, yref: "paper", yanchor: "top", yshift: -3, showarrow: false, align: "left", text: panelTitle(panel), font: { size: 12, color: css("--ink") }, bgcolor: css("--card"), borderpad: 1 });
  });
  const above = flags.annotations.length ? 22 + Math.max(...flags.annotations.map((flag) => flag.yshift - 1)) : 4;
  const total = above + inner + 42;
  node.style.height = `${total}px`;
  node.setAttribute("aria-label", "The trainer’s log along training: " + panels.map((panel) => panel.keys.join(" and ")).join("; "));
  plot(node, traces, {
    height: total, margin: { l: edge(), t: above, b: 42 }, hoversubplots: "axis",
    xaxis: stepAxis({ anchor: panels.length > 1 ? `y${panels.length}` : "y", hoverformat: ".0f" }), ...axes,
    shapes: [...stages.shapes, ...flags.shapes], annotations: [...stages.annotations, ...flags.annotations, ...titles],
  });
}

function drawChoice() {
  const { log } = state.data, chosen = new Set(shownPanels());
  $("log-choice").querySelector("summary").textContent = `Choose curves: ${chosen.size} of ${log.length} shown`;
  fill($("log-choice").querySelector("div"), ...log.map((panel) => el("button", { type: "button", class: "chip", "data-log": panel.key, "aria-pressed": String(chosen.has(panel)), onclick: () => {
    toggleLogged(panel.key);
    drawTraining();
    [...$("log-choice").querySelectorAll("button")].find((one) => one.dataset.log === panel.key)?.focus();
  } }, panel.key)));
}
