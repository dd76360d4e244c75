// The parts that are words: what is now, what happened, tables.

function drawHead() {
  const { lanes } = state.data;
  $("title").textContent = lanes.map((lane) => lane.name).join("  ·  ");
  const first = lanes[0].runs[0].info, { suites, bases, unlike } = state.data, end = (text) => String(text).split(/[\\/]/).filter(Boolean).pop() || "";
  const parts = [];
  if (suites.length) parts.push(`${suites.length > 1 ? "suites" : "suite"} ${suites.join(", ")}`);
  if (first.model) parts.push(`from ${end(first.model)}`);
  if (bases.length) parts.push(`compared with ${bases.join(", ")}`);
  $("subtitle").textContent = parts.join(" · ");
  $("unlike").textContent = unlike.join(" ");
  document.title = `${lanes.map((lane) => lane.name).join(" · ")} – crystalmon`;
}

function drawNow() {
  fill($("now"), ...state.data.lanes.map((lane, index) => {
    const at = lane.x.length - 1, phase = lane.phase[at], confirmed = lane.looks === phaseName(phase);
    const words = confirmed ? state.data.phases[phase].words : "The last probe shows this. A phase changes once a second probe agrees.";
    const within = ({ lo, hi }, digits) => (lo && known(lo[at]) ? el("span", {}, `95%: ${figures(lo[at], digits)} to ${figures(hi[at], digits)}`) : null);
    const tile = (metric) => {
      const series = lane.series[metric.key], digits = metric.unit ? 3 : 2, start = series.v[0];
      const began = at && metric.unit && known(start) && start ? el("span", {}, `began at ${figures(start, digits)}`) : null;
      return el("div", { class: "tile" },
        el("b", {}, figures(series.v[at], digits), metric.unit ? el("small", {}, ` ${metric.unit}`) : null), within(series, digits), began,
        el("span", { class: "name" }, metric.label), el("span", {}, metric.summary));
    };
    const told = allMetrics().filter((metric) => metric.brief && isTold(lane, metric, holdsSeed));
    return el("div", { class: "lane" },
      el("p", { class: "lane-name" }, comparing() ? swatch(laneColour(index)) : null, comparing() ? ` ${lane.name}, ` : "", `at ${place(lane, at)}${lane.wordings ? `, ${lane.wordings} wordings a task` : ""}`),
      el("div", { class: "phase-now" }, el("span", { class: "phase-word" }, swatch(phaseColour(confirmed ? phase : lane.shown)), lane.looks), el("p", {}, words)),
      el("div", { class: "tiles" }, ...told.map(tile)));
  }));
}

function drawHappened() {
  const { lanes, tasks } = state.data, items = [];
  let number = 0;
  lanes.forEach((lane) => {
    const groups = new Map();
    const suite = new Set(lane.events.filter((event) => event.task === null).map((event) => `${event.run} ${event.kind}`)); // it counts its tasks
    for (const event of lane.events) if (event.task !== null && event.kind !== "early_warning") {
      const id = `${event.run} ${event.kind}`;
      if (!groups.has(id)) groups.set(id, { ...event, tasks: new Set(), to: event.step });
      groups.get(id).tasks.add(event.task);
      groups.get(id).to = event.step;
    }
    const rows = suiteEvents(lane).map((event) => ({ x: event.x, event, n: ++number }));
    for (const [id, group] of groups) if (!(suite.has(id) && /^nucleation/.test(group.kind))) rows.push({ x: group.x, group });
    rows.push(...untold(lane));
    rows.sort((a, b) => a.x - b.x || (a.n ?? Infinity) - (b.n ?? Infinity) || 0);
    const when = (event, to) => (comparing() && lane.runs.length === 1 ? `${lane.name}, ` : "") + ofRun(lane, lane.runs[event.run], stepSpan(lane.runs[event.run], event.step, to)) + " ";
    for (const { event, group, change, n } of rows) {
      const quiet = (one, to, words) => items.push(el("li", {}, el("span", { class: "n none" }, "·"), el("span", {}, el("span", { class: "when" }, when(one, to)), words)));
      if (change) quiet(change, change.step, change.words);
      else if (event) items.push(el("li", {}, el("span", { class: "n" }, String(n)), el("span", {}, el("span", { class: "when" }, when(event, event.step)), event.message)));
      else {
        const names = [...group.tasks], asked = tasks.filter((task) => probes(lane, task)).length;
        const who = names.length === 1 ? names[0] : names.length === asked ? `all ${names.length} tasks` : names.length <= 3 ? names.join(", ") : `${names.length} of ${asked} tasks`;
        quiet(group, group.to, `${spoken(group.kind)} in ${who}`);
      }
    }
  });
  fill($("happened"), el("h2", {}, "What happened, when"), items.length ? el("ol", { class: "events" }, ...items.slice(0, 14)) : el("p", { class: "lead" }, lanes.some((lane) => /unconfirmed/.test(lane.looks)) ? "Nothing confirmed so far." : "No event so far."),
    items.length > 14 ? el("p", { class: "soft" }, `and ${items.length - 14} more, in the table at the end`) : null,
    ...lanes.filter((lane) => lane.unconfirmed).map((lane) => el("p", { class: "soft" }, `${comparing() ? `${lane.name}, unconfirmed` : "Unconfirmed"}, by the last probe alone: ${lane.unconfirmed}.`)),
    ...whatToDo(lanes));
}

// Where the suite has become settling, or liquid again: no event tells it.
function untold(lane) {
  const words = { liquid: "the suite is liquid again", settling: "the suite is settling" };
  return lane.phase.map((phase, at) => ({ phase: phaseName(phase), at })).filter(({ phase, at }) => at && lane.stage[at] === lane.stage[at - 1] &&
    words[phase] && ![phase, "not measurable"].includes(phaseName(lane.phase[at - 1])))
    .map(({ phase, at }) => ({ x: lane.x[at], change: { run: lane.stage[at], step: lane.step[at], words: words[phase] } }));
}

// One line a kind of event; of runs that give the same advice, once, with the names of all.
function whatToDo(lanes) {
  const lines = new Map();
  for (const run of lanes.flatMap((lane) => lane.runs)) for (const [kind, text] of run.advice) {
    const id = `${kind} ${text}`;
    if (!lines.has(id)) lines.set(id, { names: [], kind, text });
    lines.get(id).names.push(run.name);
  }
  if (!lines.size) return [];
  const several = lanes.flatMap((lane) => lane.runs).length > 1;
  return [el("h3", {}, "What to do"), el("ul", { class: "to-do" }, ...[...lines.values()].map(({ names, kind, text }) =>
    el("li", {}, el("b", {}, `${several ? `${names.join(", ")}, ` : ""}${spoken(kind)}: `), text)))];
}

function drawWon() {
  const { lanes, tasks } = state.data;
  $("leader").textContent = lanes.filter((lane) => lane.leader).map((lane) => `${comparing() ? `${lane.name}: ` : ""}${lane.leader}.`).join(" ");
  $("few").textContent = lanes.some((lane) => lane.wordings) ? ": these are few, and can be far from all" : "";
  const now = (lane, task) => lane.tasks[task.name].phase[last(lane.frames)];
  fill($("won"), ...tasks.filter((task) => lanes.some((lane) => known(now(lane, task)))).map((task) => {
    const lines = lanes.map((lane, index) => {
      if (!known(now(lane, task))) return null;
      const means = pooled(slice(lane, task, lane.frames.length - 1), task);
      const top = means.indexOf(Math.max(...means)), base = history(lane, task.name).base;
      const before = base ? pooled(base, task)[top] : null;
      const colour = comparing() ? laneColour(index) : css("--accent");
      const unknown = phaseName(now(lane, task)) === "not measurable";
      return el("div", { title: `${comparing() ? lane.name + ", " : ""}${task.name}: ${task.choices[top]} ${percent(means[top])}, in the base ${percent(before)}` },
        el("div", { class: "row" }, comparing() ? swatch(colour) : el("span", { class: "task" }, task.name), el("b", { class: "top" }, task.choices[top]), el("span", { class: "share" }, percent(means[top]))),
        el("div", { class: "bar" }, unknown ? null : el("i", { style: { width: `${100 * means[top]}%`, background: colour } }), known(before) ? el("u", { style: { left: `${100 * before}%` } }) : null),
        unknown ? el("div", { class: "unknown" }, "not measurable") : null);
    });
    return el("div", { class: "won" }, comparing() ? el("div", { class: "task" }, task.name) : null, ...lines.filter(Boolean));
  }));
}

// Of a scan: whether the paper's picture holds, and its figures, as images that can run nothing.
function drawScans() {
  const scans = state.data.scans || [];
  $("scans-section").hidden = !scans.length;
  fill($("scans"), ...scans.map((scan) => el("article", { class: "scan" },
    scans.length > 1 ? el("h3", {}, scan.name) : null,
    el("ul", { class: "verdicts" }, ...scan.verdicts.map((one) => el("li", {},
      el("b", {}, one.claim), el("span", { class: `verdict ${one.verdict.replace(/ /g, "-")}` }, one.verdict), el("span", { class: "soft" }, one.reason)))),
    ...scan.figures.map((one) => el("figure", {},
      el("figcaption", {}, el("h3", {}, one.title), el("p", { class: "soft" }, one.words)),
      el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": one.title },
        el("img", { src: `data:image/svg+xml;base64,${one.picture}`, alt: `${scan.name}: ${one.title}. ${one.words}` })))))));
}

function drawSeeds() {
  const { lanes, tasks } = state.data, rows = [];
  let tested = false;
  for (const lane of lanes) for (const task of tasks) {
    const seeds = lane.tasks[task.name].seed, seed = last(seeds.filter(known));
    const events = lane.events.filter((event) => event.task === task.name);
    const ends = lane.tasks[task.name].ends, seedless = seedlessOf(lane, task);
    const since = seeds.length - [...seeds].reverse().findIndex((one) => known(one) && one !== seed);
    const from = since > seeds.length ? 0 : since, start = known(seed) ? seeds.indexOf(seed, from) : -1;
    const locked = events.find((event) => event.kind !== "early_warning" && event.x >= (start < 0 ? 0 : lane.x[start]) && ["seed_locked", "recrystallization"].includes(event.kind));
    if (!known(seed) && !seedless && !ends.length) continue;
    const p = known(seed) ? locked && locked.p : seedless && seedless.p;
    tested ||= known(p);
    const width = task.choices.length, base = history(lane, task.name).base;
    const likeliest = known(seed) ? seed : seedless ? null : ends[0];
    const answers = known(likeliest) && base ? pooled(base.subarray(likeliest * width, (likeliest + 1) * width), task).map((value, c) => [value, task.choices[c]]).sort((a, b) => b[0] - a[0]).slice(0, 3).map(([value, text]) => `${text} ${percent(value)}`).join(", ") : MISSING;
    const event = known(seed) ? locked : seedless;
    rows.push([...(comparing() ? [{ text: lane.name, cls: "task" }] : []), { text: task.name, cls: "task" }, { text: known(seed) ? task.prompts[seed] : seedless ? SEEDLESS : openWords(ends, task), cls: "quote" }, { text: answers, cls: "answers" }, { num: event ? placeOf(lane, lane.runs[event.run], event.step) : known(seed) ? "from the start" : "open" }, { num: known(p) ? (p < 0.001 ? "< 0.001" : p.toFixed(3)) : MISSING, cls: "p" }]);
  }
  $("seeds-section").hidden = !rows.length;
  const head = [...(comparing() ? ["run"] : []), "task", "wording", "its answers in the base", { num: "decided" }, { num: "p" }];
  const keep = (row) => (tested ? row : row.slice(0, -1));
  const drawn = table(keep(head), rows.map(keep));
  drawn.className = "told";
  fill($("seeds"), drawn);
}

const SEEDLESS = "Seedless: no base wording answers like this";
function seedlessOf(lane, task) {
  return !lane.tasks[task.name].ends.some(known) && lane.events.find((event) => event.task === task.name && event.kind === "seedless_collapse");
}

// What there is to say of a task without a seed.
function openEnd(lane, task) {
  const { ends, phase } = lane.tasks[task.name];
  if (seedlessOf(lane, task)) return SEEDLESS;
  return ends.length ? `No seed so far; may end on: ${openWords(ends, task)}` : `No seed: ${state.data.phases[last(phase.filter(known))].words}`;
}

// The wordings that answers may still end on, at 95%; of two choices many are alike.
function openWords(ends, task) {
  const wordings = ends.filter(known), none = ends.length > wordings.length;
  if (!wordings.length) return "none of the base’s wordings, unconfirmed";
  if (ends.length === 1) return `“${clip(task.prompts[ends[0]], 70)}”, unconfirmed`;
  const alike = wordings.length > 1 && task.choices.length <= 3 ? ` (of ${task.choices.length} choices: many are alike)` : "";
  const words = `${counted(wordings.length, "wording")}${alike}`;
  if (!known(ends[0])) return `none of the base’s, or ${words}`;
  return `${words}${none ? " or none" : ""}, likeliest “${clip(task.prompts[ends[0]], 70)}”`;
}

// A table whose rows begin with the run that they are of; of one run that goes without saying.
function runTable(head, rows) {
  const several = state.data.lanes.flatMap((lane) => lane.runs).length > 1;
  const drawn = table(several ? ["run", ...head] : head, rows.map(([run, ...cells]) => (several ? [{ text: run, cls: "name" }, ...cells] : cells)));
  drawn.className = "told"; // on a phone the last cell of a row stands under the others
  return drawn;
}

function drawKinetics() {
  const rows = state.data.kinetics;
  $("kinetics-section").hidden = !rows.length;
  fill($("kinetics"), runTable(["task", "verdict", ""], rows.map((row) => [row.run, { text: row.task ?? "suite", cls: "task" }, { text: row.verdict ?? MISSING, cls: "name" }, { text: row.text ?? "", cls: "words" }])));
}

function drawWords() {
  const { lanes } = state.data;
  const cost = lanes.flatMap((lane) => lane.runs.map((run, stage) => {
    if (!run.probes) return null;
    return `${run.name}: ${counted(run.probes, "probe")} took ${fixed(run.seconds, 1)} s, monitoring ${known(run.share) ? (100 * run.share).toFixed(1) : MISSING}% of the run`;
  })).filter(Boolean);
  $("cost-words").textContent = cost.join("; ") + ".";
  fill($("caveats"), ...state.data.caveats.map((text) => el("li", {}, text)));
  const all = lanes.flatMap((lane) => lane.events.map((event) => [lane.runs[event.run].name, { text: stepName(lane.runs[event.run], event.step), cls: "name" }, { text: event.task ?? "suite", cls: "task" }, { text: spoken(event.kind), cls: "name" }, { text: event.message, cls: "words" }]));
  $("all-events").hidden = !all.length;
  $("all-events").querySelector("summary").textContent = all.length === 1 ? "The event" : `All ${all.length} events`;
  fill($("all-events").querySelector("div"), runTable(["when", "task", "event", "in words"], all));
  const settings = lanes.flatMap((lane) => lane.runs.flatMap((run) => Object.entries(run.info).map(([key, value]) => [run.name, { text: spoken(key), cls: "name" }, { text: typeof value === "object" && value !== null ? Object.entries(value).map(([k, v]) => `${k} ${v}`).join(", ") : String(value), cls: "long" }])));
  fill($("settings").querySelector("div"), runTable(["", ""], settings));
  drawFooter();
}

function drawFooter() {
  $("footer").textContent = `crystalmon ${state.data.version}. The words from physics are names for entropies and divergences of probability distributions, and claim no more.`;
}
