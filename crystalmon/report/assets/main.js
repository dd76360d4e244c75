// Draw everything, and again when the data, the theme or the width changes.

function say(text) {
  $("message").textContent = text;
  $("message").hidden = false;
}

function draw() {
  const { lanes } = state.data;
  if (!lanes.length) return drawResultsAlone();
  const probed = lanes.some((lane) => lane.x.length);
  drawHead();
  $("body").hidden = false;
  for (const section of $("body").children) section.hidden = section.id === "unlike" ? !state.data.unlike.length : !probed && !section.classList.contains("limits");
  drawWords();
  if (!probed) return say("There is no probe in this run yet. The first one is written at step 0.");
  $("message").hidden = true;
  for (const part of [drawNow, drawHappened, drawScans, drawPhases, drawTraining, drawSignals, drawAnswers, drawWon, drawDrift, drawSeeds, drawKinetics, drawExperiments, drawCost]) part();
}

function show(data) {
  const probed = data.lanes.filter((lane) => lane.x.length);
  state.data = { ...data, lanes: probed.length ? probed : data.lanes };
  draw();
  document.documentElement.dataset.ready = "true";
}

function setTheme(theme) {
  state.theme = theme;
  document.documentElement.dataset.theme = theme;
  $("theme").textContent = theme === "dark" ? "Light" : "Dark";
  $("theme").setAttribute("aria-label", `Switch to ${theme === "dark" ? "light" : "dark"} colours`);
}

const dark = matchMedia("(prefers-color-scheme: dark)");
setTheme(dark.matches ? "dark" : "light");
dark.addEventListener("change", () => { setTheme(dark.matches ? "dark" : "light"); if (state.data) draw(); });
$("theme").addEventListener("click", () => { setTheme(state.theme === "dark" ? "light" : "dark"); if (state.data) draw(); });

let wide = narrow();
window.addEventListener("resize", () => { if (narrow() !== wide) { wide = narrow(); if (state.data) draw(); } });

document.addEventListener("keydown", (event) => {
  if (event.target.matches("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
  const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (move && $("cards").contains(event.target)) {
    const cards = [...$("cards").children], next = cards[cards.indexOf(document.activeElement) + move];
    if (next) { next.focus(); next.click(); event.preventDefault(); }
  }
});

if (LIVE) follow();
else show(JSON.parse($("data").textContent));
