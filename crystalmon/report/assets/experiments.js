// What experiments have found: headline figures, the picture, the table. A picture is an image, so
// that nothing in it can act.

function drawExperiments() {
  const cards = state.data.experiments || [];
  $("experiments-section").hidden = !cards.length;
  fill($("experiments"), ...cards.map(experimentCard));
}

function experimentCard(card) {
  const several = card.steps.length > 1;
  const models = Object.entries(card.models).map(([role, name]) => `${role} ${name}`);
  const when = several ? `steps ${card.steps[0]} to ${last(card.steps)}, ${card.steps.length} times` : known(card.steps[0]) ? `step ${card.steps[0]}` : null;
  const about = [card.where, ...models, when, known(card.seconds) ? `${card.seconds} s` : null].filter(Boolean);
  const head = several ? ["", { num: `step ${card.steps[0]}` }, { num: `step ${last(card.steps)}` }, "95%"] : ["", { num: "" }, "95%"];
  const rows = card.rows.map((row) => [
    spoken(row.key), ...(several ? [{ num: figureOf(row.first && row.first[0]) }] : []), { num: figureOf(row.last[0]) },
    known(row.last[1]) && known(row.last[2]) ? `${figureOf(row.last[1])} to ${figureOf(row.last[2])}` : MISSING,
  ]);
  return el("article", { class: "experiment" },
    el("h3", {}, spoken(card.experiment)),
    el("p", { class: "soft" }, about.join(" · ")),
    card.figure ? el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Figure of ${card.experiment}` },
      el("img", { src: `data:image/svg+xml;base64,${card.figure}`, alt: `${card.experiment}: its figures are in the table below` })) : null,
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Estimates of ${card.experiment}` }, table(head, rows)),
    card.table ? el("details", {}, el("summary", {}, "All of it, as the terminal shows it"), el("pre", { class: "scroll", tabindex: "0" }, card.table)) : null);
}

const figureOf = (value) => (known(value) ? String(value).replace("-", "−") : MISSING);

// A folder of results without a run: nothing else of the page has anything to show.
function drawResultsAlone() {
  $("title").textContent = "Experiments";
  $("subtitle").textContent = [...new Set(state.data.experiments.map((card) => card.where))].join(" · ");
  document.title = "Experiments – crystalmon";
  $("body").hidden = false;
  $("message").hidden = true;
  for (const section of $("body").children) section.hidden = true;
  drawExperiments();
  fill($("caveats"), ...state.data.caveats.map((text) => el("li", {}, text)));
  $("caveats").parentElement.hidden = !state.data.caveats.length;
  drawFooter();
}
