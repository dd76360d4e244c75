// What all parts of the page share: the state, the theme, small helpers.
// Text enters the document through text nodes only, so no name in a run can become markup.

const state = { data: null, tick: 0, task: 0, hidden: new Set(), theme: "light", follow: true };

const $ = (id) => document.getElementById(id);

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key === "style") Object.assign(node.style, value);
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function fill(node, ...children) {
  node.replaceChildren(...children.filter((child) => child !== null && child !== undefined));
}

// Plotly reads some tags in labels: with these escaped it shows every text as it is.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const clip = (text, length) => (text.length > length ? text.slice(0, length - 1) + "…" : text);
const spoken = (kind) => kind.replace(/_/g, " ");

const MISSING = "–";
const known = (value) => typeof value === "number" && Number.isFinite(value);
const fixed = (value, digits) => (known(value) ? value.toFixed(digits).replace(/^-(?=[0.]*$)/, "").replace("-", "−") : MISSING);
// no more digits than the page was given: four figures
const figures = (value, digits) => fixed(value, Math.min(digits, Math.max(0, 3 - Math.floor(Math.log10(Math.abs(value) || 1)))));
const percent = (value) => (known(value) ? `${Math.round(100 * value)}%` : MISSING);
const last = (list) => list[list.length - 1];

function bytes(text) {
  const raw = atob(text);
  const out = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
  return out;
}
const probability = (byte) => (byte / 255) ** 2;

// Colours come with the data: the palette of Okabe and Ito. On dark ground the deep ones are lifted.
const LIFTED = {
  "#0072B2": "#4C9FE0", "#56B4E9": "#A5D8F6", "#000000": "#E9EDF2", "#009E73": "#2CB98D",
  "#8A8A8A": "#9AA0A6", "#D55E00": "#F07A2B",
};
const LANE_COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8A8A8A"];
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
const shown = (colour) => (state.theme === "dark" && LIFTED[colour]) || colour;
const laneColour = (index) => shown(LANE_COLOURS[index % LANE_COLOURS.length]);
const phaseColour = (index) => shown(state.data.phases[index].colour);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function rgba(hex, alpha) {
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  return `rgba(${r},${g},${b},${alpha})`;
}
// Black or white, whichever contrasts more by the WCAG's relative luminance.
function textOn(hex) {
  const [r, g, b] = [1, 3, 5].map((i) => (parseInt(hex.slice(i, i + 2), 16) / 255) ** 2.2);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.18 ? "#14181d" : "#fff";
}

// From no probability to certainty; one hue, so that only lightness carries meaning.
const RAMP = {
  light: [[0, "#F4F7FA"], [0.3, "#B9DCF2"], [0.6, "#3F93CC"], [0.85, "#0A5590"], [1, "#062F57"]],
  dark: [[0, "#12171E"], [0.3, "#143D5E"], [0.6, "#2B81BD"], [0.85, "#8CCBF3"], [1, "#EDF8FF"]],
};
function rampTable() {
  const stops = RAMP[state.theme];
  const table = new Uint8ClampedArray(256 * 4);
  const parts = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  for (let i = 0; i < 256; i++) {
    const t = i / 255;
    let k = 0;
    while (k < stops.length - 2 && t > stops[k + 1][0]) k++;
    const w = (t - stops[k][0]) / (stops[k + 1][0] - stops[k][0]);
    const a = parts(stops[k][1]), b = parts(stops[k + 1][1]);
    for (let c = 0; c < 3; c++) table[4 * i + c] = a[c] + w * (b[c] - a[c]);
    table[4 * i + 3] = 255;
  }
  return table;
}

// The brief metrics of one section of the catalogue, as the payload lists them.
const CRYSTALLIZATION = "Crystallization", DISTANCE = "Distance from the base";
const allMetrics = () => Object.entries(state.data.metrics).map(([key, metric]) => ({ key, ...metric }));
const briefMetrics = (section) => allMetrics().filter((metric) => metric.brief && metric.section === section);
const holdsSeed = (values) => Number.isFinite(last(values)), hasHeldSeed = (values) => values.some(Number.isFinite);
const isTold = (lane, metric, told = hasHeldSeed) => lane.series[metric.key] && (!metric.brief_if_held || told(lane.series.seed_mass?.v ?? []));

const swatch = (colour) => el("span", { class: "swatch", style: { background: colour }, "aria-hidden": "true" });
const phaseName = (index) => state.data.phases[index].name;
const comparing = () => state.data.lanes.length > 1;
const narrow = () => window.innerWidth < 760;

// Runs that are compared need not have the same tasks.
const probes = (lane, task) => lane.tasks[task.name].phase.some(known);
// A step is called by its number in a training, and by the stage's name in a scan.
const counted = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
const stepName = (run, step) => run.stages[step] ?? `step ${step}`;
const stepSpan = (run, from, to) => (from === to ? stepName(run, from) : run.stages[from] ? `${stepName(run, from)} to ${stepName(run, to)}` : `steps ${from} to ${to}`);
const ofRun = (lane, run, text) => (lane.runs.length > 1 ? `${run.name}, ` : "") + text;
const placeOf = (lane, run, step) => ofRun(lane, run, stepName(run, step));
const place = (lane, index) => placeOf(lane, lane.runs[lane.stage[index]], lane.step[index]);
const staged = () => state.data.lanes.every((lane) => lane.runs.length === 1 && Object.keys(lane.runs[0].stages).length);
function table(head, rows) {
  const numeric = (cell) => cell && cell.num !== undefined;
  const cellOf = (tag, cell) =>
    cell instanceof Node ? el(tag, {}, cell)
      : numeric(cell) ? el(tag, { class: `num ${cell.cls || ""}` }, cell.num)
      : el(tag, cell && cell.cls ? { class: cell.cls } : {}, String((cell && cell.text) ?? cell));
  return el("table", {},
    el("thead", {}, el("tr", {}, ...head.map((cell) => cellOf("th", cell)))),
    el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map((cell) => cellOf("td", cell))))));
}
