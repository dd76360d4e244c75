// Prompts × choices: small maps of all tasks, one large map, and the answers pooled over prompts.

const cache = new Map();

function history(lane, name) {
  const id = `${state.data.lanes.indexOf(lane)} ${name}`;
  if (!cache.has(id)) cache.set(id, { all: bytes(lane.history[name] || ""), base: lane.base[name] ? bytes(lane.base[name]) : null });
  return cache.get(id);
}

// The slider's ticks: for each, the frame that every lane shows.
function ticks() {
  const { lanes } = state.data;
  if (lanes.length === 1) return lanes[0].frames.map((_, index) => [index]);
  const xs = [...new Set(lanes.flatMap((lane) => lane.frames.map((index) => lane.x[index])))].sort((a, b) => a - b);
  const at = lanes.map(() => 0);
  return xs.map((x) => lanes.map((lane, index) => {
    while (at[index] + 1 < lane.frames.length && lane.x[lane.frames[at[index] + 1]] <= x) at[index]++;
    return at[index];
  }));
}

function slice(lane, task, frame) {
  const size = task.prompts.length * task.choices.length;
  return history(lane, task.name).all.subarray(frame * size, (frame + 1) * size);
}

// Prompts by their likeliest choice in the base, and by how likely it is: each keeps its line,
// the same one in all runs that are compared.
function rowOrder(lane, task) {
  const width = task.choices.length;
  const from = history(lane, task.name).base || slice(lane, task, 0);
  const best = task.prompts.map((_, p) => {
    let top = 0;
    for (let c = 1; c < width; c++) if (from[p * width + c] > from[p * width + top]) top = c;
    return { p, top, value: from[p * width + top] };
  });
  return best.sort((a, b) => a.top - b.top || b.value - a.value).map((one) => one.p);
}

function pooled(values, task) {
  const width = task.choices.length, sums = new Array(width).fill(0);
  for (let i = 0; i < values.length; i++) sums[i % width] += probability(values[i]);
  const total = sums.reduce((a, b) => a + b, 0);
  return sums.map((sum) => (total > 0 ? sum / total : 0));
}

function paint(canvas, values, order, width, ramp) {
  canvas.width = width; canvas.height = order.length;
  const image = new ImageData(width, order.length);
  order.forEach((p, row) => {
    for (let c = 0; c < width; c++) image.data.set(ramp.subarray(4 * values[p * width + c], 4 * values[p * width + c] + 4), 4 * (row * width + c));
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
}

let allTicks = [], orders = [], playing = null;

function drawAnswers() {
  const { lanes, tasks } = state.data;
  cache.clear();
  allTicks = ticks();
  if (state.follow || state.tick >= allTicks.length) state.tick = Math.max(0, allTicks.length - 1);
  state.task = Math.min(state.task, Math.max(0, tasks.length - 1));
  orders = tasks.map((task) => rowOrder(lanes.find((lane) => probes(lane, task)), task));
  drawPlayer();
  fill($("cards"), ...tasks.map((task, index) => el("button", { type: "button", class: "task-card", "aria-pressed": String(index === state.task), title: task.name, onclick: () => choose(index) },
    el("span", { class: "name" }, swatch("transparent"), el("span", {}, task.name)),
    el("span", { class: "maps" }, ...lanes.map((lane) => el("canvas", { "aria-hidden": "true", title: lane.name }))))));
  drawDetail();
  showTick();
}

function choose(index) {
  state.task = index;
  [...$("cards").children].forEach((card, at) => card.setAttribute("aria-pressed", String(at === index)));
  drawDetail();
  showTick();
}

function drawPlayer() {
  let slider = $("slider");
  if (!slider) {
    slider = el("input", { type: "range", id: "slider", min: 0, step: 1, "aria-label": "Step of training", oninput: () => { state.tick = Number(slider.value); state.follow = state.tick === allTicks.length - 1; showTick(); } });
    fill($("player"), el("button", { type: "button", id: "play", onclick: play }, "Play"), slider, el("div", { class: "label", id: "tick-label", "aria-live": "off" }));
  }
  slider.max = Math.max(0, allTicks.length - 1);
  slider.value = state.tick;
  slider.disabled = $("play").disabled = allTicks.length < 2;
}

function play() {
  if (playing) { clearInterval(playing); playing = null; $("play").textContent = "Play"; return; }
  if (state.tick >= allTicks.length - 1) state.tick = 0;
  $("play").textContent = "Pause";
  state.follow = false;
  showTick();
  const pause = Math.max(50, Math.min(250, 8000 / allTicks.length));
  playing = setInterval(() => {
    state.tick = Math.min(state.tick + 1, allTicks.length - 1);
    showTick();
    if (state.tick === allTicks.length - 1) { state.follow = true; play(); }
  }, pause);
}

function showTick() {
  const { lanes, tasks } = state.data;
  if (!allTicks.length) return;
  const now = allTicks[state.tick], ramp = rampTable();
  const slider = $("slider");
  slider.value = state.tick;
  const words = lanes.map((lane, index) => (lane.frames.length ? place(lane, lane.frames[now[index]]) : "no probe"));
  const phases = lanes.map((lane, index) => (lane.frames.length ? lane.phase[lane.frames[now[index]]] : null));
  slider.setAttribute("aria-valuetext", words.map((word, i) => `${word}${phases[i] === null ? "" : ", " + phaseName(phases[i])}`).join("; "));
  fill($("tick-label"), ...lanes.flatMap((lane, index) => [phases[index] === null ? null : swatch(phaseColour(phases[index])), el("span", {}, comparing() ? words[index] : `${words[index]}: ${phases[index] === null ? "" : phaseName(phases[index])}`)]));
  tasks.forEach((task, index) => {
    const card = $("cards").children[index];
    const canvases = card.querySelectorAll("canvas");
    lanes.forEach((lane, at) => {
      canvases[at].hidden = !probes(lane, task);
      canvases[at].style.visibility = known(lane.tasks[task.name].phase[lane.frames[now[at]]]) ? "" : "hidden";
      if (!canvases[at].hidden) paint(canvases[at], slice(lane, task, now[at]), orders[index], task.choices.length, ramp);
    });
    const lane = lanes.find((one) => probes(one, task));
    const phase = lane && lane.tasks[task.name].phase[lane.frames[now[lanes.indexOf(lane)]]];
    card.querySelector(".swatch").style.background = known(phase) ? phaseColour(phase) : "transparent";
    card.setAttribute("aria-label", `${task.name}${known(phase) ? ", " + phaseName(phase) : ""}`);
  });
  moveDetail(now);
}

function drawDetail() {
  const { lanes, tasks } = state.data, task = tasks[state.task];
  if (!task) return fill($("detail"));
  const strip = el("canvas", { "aria-hidden": "true", width: 256, height: 1 });
  strip.getContext("2d").putImageData(new ImageData(rampTable(), 256, 1), 0, 0);
  const maps = lanes.map((lane, index) => !probes(lane, task) ? null : el("div", {},
    comparing() ? el("p", { class: "lane-name" }, lane.name) : null,
    el("div", { id: `chart-map-${index}`, class: "chart", role: "img" }),
    el("div", { id: `chart-answers-${index}`, class: "chart", role: "img" })));
  fill($("detail"), el("h3", {}, task.name), el("p", { class: "soft", id: "detail-words" }),
    el("div", { class: "scale" }, "never", strip, "always", el("span", {}, "▶ the seed’s row")),
    el("div", { class: comparing() ? "maps-big two" : "maps-big" }, ...maps), wordingList(task));
}

// Which wording a row is: by its index in the suite, as in events and records.
function wordingList(task) {
  const seeds = new Set(state.data.lanes.map((lane) => last(lane.tasks[task.name].seed.filter(known))));
  return el("details", { id: "wordings", ...(state.listed ? { open: "" } : {}), ontoggle: (event) => { state.listed = event.target.open; } },
    el("summary", {}, `The ${counted(task.prompts.length, "wording")}, row by row: sorted by what the base answers, numbered as in records`),
    el("ol", {}, ...orders[state.task].map((p) => el("li", { value: p, class: seeds.has(p) ? "seed" : null }, el("span", { class: "quote" }, task.prompts[p])))));
}

function seedNow(lane, task, frame) {
  const seeds = lane.tasks[task.name].seed, at = lane.frames[frame];
  if (known(seeds[at])) return { seed: seeds[at], later: false };
  const final = last(seeds.filter(known));
  return known(final) ? { seed: final, later: true } : null;
}

function moveDetail(now) {
  const { lanes, tasks } = state.data, task = tasks[state.task];
  if (!task) return;
  const width = task.choices.length, words = [];
  const ticksText = task.choices.map((choice) => plain(clip(choice, narrow() ? 8 : 14)));
  const upright = ticksText.join("").length * 7 > (narrow() ? 300 : comparing() ? 480 : 1000);
  const sparse = width > (narrow() ? 16 : 40) ? Math.ceil(width / (narrow() ? 12 : 26)) : 1;
  const vals = task.choices.map((_, c) => c).filter((c) => c % sparse === 0);
  const xaxis = axis({ tickvals: vals, ticktext: vals.map((c) => ticksText[c]), tickangle: upright && sparse === 1 ? -90 : 0, showgrid: false, fixedrange: true, range: [-0.5, width - 0.5] });
  const bottom = upright && sparse === 1 ? 20 + 6.6 * Math.max(...ticksText.map((t) => t.length)) : 26;
  lanes.forEach((lane, index) => {
    if (!probes(lane, task)) return;
    const values = slice(lane, task, now[index]), order = orders[state.task];
    const asked = (p) => values.subarray(p * width, (p + 1) * width).some((v) => v > 0); // a probe may ask a few wordings only
    const z = order.map((p) => Array.from(values.subarray(p * width, (p + 1) * width), (v) => (asked(p) ? v / 255 : null)));
    const hover = order.map((p) => task.choices.map((choice, c) => `${p}. ${plain(clip(task.prompts[p], narrow() ? 44 : 90)).replace(/\n/g, " ↵ ")}<br><b>${plain(choice)}</b> ${asked(p) ? `${(100 * probability(values[p * width + c])).toFixed(1)}%` : "not asked by this probe"}`));
    const seed = seedNow(lane, task, now[index]);
    const rows = order.map((_, at) => at).filter((at) => order.length <= 32 || (at + 1) % 5 === 0 || !at);
    const row = seed ? order.indexOf(seed.seed) : -1;
    const height = Math.max(150, Math.min(420, order.length * 13)) + bottom + 8;
    const node = $(`chart-map-${index}`);
    node.style.height = `${height}px`;
    const means = pooled(values, task);
    const top = means.indexOf(Math.max(...means));
    node.setAttribute("aria-label", `${task.name}: probability of each choice for each of ${counted(order.length, "prompt")}; on average the likeliest is ${task.choices[top]}, ${percent(means[top])}`);
    plot(node, [{ type: "heatmap", z, zmin: 0, zmax: 1, xgap: width < 60 ? 1 : 0, ygap: 1, colorscale: RAMP[state.theme], showscale: false, text: hover, hovertemplate: "%{text}<extra></extra>" }], {
      height, hovermode: "closest", margin: { t: 6, b: bottom, l: 44 }, xaxis,
      yaxis: axis({ autorange: "reversed", fixedrange: true, showgrid: false, tickvals: rows, ticktext: rows.map((at) => `${order[at]}`), tickfont: { color: css("--soft"), size: 10 }, ticklabelstandoff: 12 }),
      annotations: row < 0 ? [] : [{ x: 0, xref: "paper", xanchor: "right", y: row, text: "▶", showarrow: false, font: { color: shown("#D55E00"), size: 13 } }],
    });
    const bars = [];
    const base = history(lane, task.name).base;
    const add = (name, y, colour) => bars.push({ type: "bar", name, x: task.choices.map((_, c) => c), y, marker: { color: colour }, customdata: task.choices.map(plain), hovertemplate: `${name} %{y:.1%}<extra></extra>` });
    if (base) add("base", pooled(base, task), shown("#8A8A8A"));
    if (base && seed) add("seed", pooled(base.subarray(seed.seed * width, (seed.seed + 1) * width), task), shown("#E69F00"));
    add("now", means, shown("#0072B2"));
    const below = $(`chart-answers-${index}`);
    below.style.height = "220px";
    below.setAttribute("aria-label", `${task.name}: answers in the base, in the seed and now: ${means.map((m, c) => `${task.choices[c]} ${percent(m)}`).slice(0, 12).join(", ")}`);
    plot(below, bars, { height: 220, barmode: "group", bargap: 0.25, showlegend: true, legend: { orientation: "h", x: 0, y: 1.16, font: { color: css("--ink") } }, margin: { t: 28, b: bottom, l: 44 }, xaxis: { ...xaxis, hoverformat: "" }, yaxis: axis({ tickformat: ".0%", fixedrange: true, rangemode: "tozero", nticks: 5 }) });
    const of = comparing() ? `${lane.name}: ` : "";
    if (!seed) words.push(`${of}${openEnd(lane, task)}`);
    else words.push(`${of}${seed.later ? "The wording that wins later" : "The seed"} is wording ${seed.seed}, “${clip(task.prompts[seed.seed], 110)}”`);
  });
  $("detail-words").textContent = `${words.join("; ")}.`;
}
