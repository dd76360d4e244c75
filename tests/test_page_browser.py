"""The page in a browser: it draws, moves, stays quiet, and follows a run that grows."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import DESKTOP, PHONE, Visit, chromium
from fake_runs import make_event, make_record, make_task, planted_chain, write_log
from test_page import EVIL, asked, evil_run, make_run, scan_run
from test_trackers import snapshot

from crystalmon.report.live.feed import RunFeed
from crystalmon.report.live.server import make_server
from crystalmon.report.page import report_html, write_report
from crystalmon.runs.names import DEFAULT_NAME
from crystalmon.runs.reader import read_run
from crystalmon.runs.records import Event
from crystalmon.runs.run import Run
from crystalmon.runs.store import RunStore
from crystalmon.trackers.tensorboard import TensorBoardTracker

pytestmark = pytest.mark.long

CHARTS = ("phases", "training", "signals", "map-0", "answers-0", "free_energy", "coverage", "cost")
PATIENCE = 60.0
"""Seconds until a page that does not show what it should has failed."""
LAST = 60
"""The last step of the recipe for liquid-tiny."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    stages = [("sft", list(np.linspace(0, 1, 12)), 10), ("dpo", [1.0, 1.02, 1.05], 10)]
    runs = planted_chain(tmp_path_factory.mktemp("chain"), stages, tasks=4)
    logs = (
        {step: {"loss": 2 - step / 100, "grad_norm": 1.0} for step in range(5, 115, 5)}
        | {55: {"eval_loss": 1.5}},
        {step: {"loss": 0.6, "rewards/margins": step / 10} for step in (10, 20)},
    )
    for run, rows in zip(runs, logs, strict=True):
        last = run.records[-1].step
        write_log(RunStore.open(run.folder, run.info, resume_step=last), rows)
    return [read_run(run.folder) for run in runs]


@pytest.fixture(scope="module")
def report(chain: list[Run], tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("page") / "report.html"
    return write_report([run.folder for run in chain], file, layout="chain").as_uri()


def drawn_charts(page: Any) -> set[str]:
    """The charts with a plotted mark in them."""
    script = """() => [...document.querySelectorAll('.chart')].filter((node) =>
      node.querySelector('.main-svg .trace, .main-svg .hm image, .main-svg .barlayer path'))
      .map((node) => node.id.replace('chart-', ''))"""
    return set(page.evaluate(script))


def shown_map(page: Any) -> list[list[float]]:
    return page.evaluate("() => document.getElementById('chart-map-0').data[0].z")


@pytest.mark.parametrize(("size", "dark"), [(DESKTOP, False), (PHONE, True)])
def test_every_chart_is_drawn_and_nothing_is_asked_for(
    browser: Any, report: str, size: tuple[int, int], dark: bool
) -> None:
    visit = Visit(browser, size, dark=dark)
    page = visit.open(report)
    assert drawn_charts(page) == set(CHARTS)
    assert page.locator(".task-card").count() == 4
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]
    assert page.evaluate("document.documentElement.dataset.theme") == ("dark" if dark else "light")
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    assert drawn_charts(page) == set(CHARTS)
    assert visit.said == []
    assert [url for url in visit.asked if not url.startswith(("file:", "data:", "blob:"))] == []
    visit.close()


BROKEN_WORDS = """() => {
  const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const text = walk.currentNode, home = text.parentElement;
    if (home.closest('script, style, svg') || !home.offsetParent) continue;
    for (const word of text.data.matchAll(/[^\\s\\/]+/g)) {
      const range = document.createRange();
      range.setStart(text, word.index);
      range.setEnd(text, word.index + word[0].length);
      const lines = new Set([...range.getClientRects()].map((box) => Math.round(box.top)));
      if (lines.size > 1) found.push(word[0]);
    }
  }
  return found;
}"""


def test_the_main_figures_have_their_intervals(browser: Any, report: str, chain: list[Run]) -> None:
    visit = Visit(browser)
    tiles = visit.open(report).locator(".tile").all_inner_texts()
    last = chain[-1].records[-1]
    for key, label, digits in (("order", "order", 2), ("liquidity", "liquidity", 3)):
        low, high = (f"{round(end, digits) + 0.0:.{digits}f}" for end in last.ci[key])
        words = f"95%: {low} to {high}\n".replace("-", "−")
        (tile,) = [each for each in tiles if label in each.splitlines()]
        assert words in tile
    began = chain[0].records[0].metrics["liquidity"]
    assert f"began at {began:.3f}" in tile, "the last one looked at is liquidity's"
    visit.close()


def test_on_a_phone_no_word_breaks_and_nothing_sticks_out(browser: Any, report: str) -> None:
    visit = Visit(browser, PHONE)
    page = visit.open(report)
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE[0]
    assert page.evaluate(BROKEN_WORDS) == []
    wider = """() => [...document.querySelectorAll('.scroll')].filter(
      (one) => one.offsetParent && one.scrollWidth > one.clientWidth + 1).map((one) => one.id)"""
    assert page.evaluate(wider) == []
    visit.close()


def test_the_trainers_log_stands_on_the_axis_of_the_curves(
    browser: Any, report: str, chain: list[Run], tmp_path: Path
) -> None:
    visit = Visit(browser)
    page = visit.open(report)
    chart = "document.getElementById('chart-{}')"
    drawn = f"{chart.format('training')}.data.filter((one) => one.name).map((one) => one.name)"
    assert page.evaluate(drawn) == ["loss", "eval_loss", "rewards/margins"]
    for part in ("xaxis.range", "shapes.map((one) => one.x0)"):
        of = [f"{chart.format(name)}.layout.{part}" for name in ("training", "signals")]
        assert page.evaluate(of[0]) == page.evaluate(of[1]) != []
    left = "{}.querySelector('.xaxislayer-above, .xy').getBoundingClientRect().left"
    lefts = [page.evaluate(left.format(chart.format(n))) for n in ("training", "signals")]
    assert lefts[0] == pytest.approx(lefts[1], abs=1)
    page.locator("#log-choice summary").focus()
    page.keyboard.press("Enter")
    page.locator("#log-choice button", has_text="grad_norm").focus()
    page.keyboard.press("Enter")
    assert "grad_norm" in page.evaluate(drawn)
    page.keyboard.press("Enter")
    assert "grad_norm" not in page.evaluate(drawn)
    assert visit.said == []
    file = tmp_path / "old.html"
    file.write_text(report_html([replace(chain[0], read_log=tuple)]), encoding="utf-8")
    page = visit.open(file.as_uri())
    assert not page.locator("#training-section").is_visible()
    assert page.locator("#chart-signals").is_visible()
    visit.close()


def test_a_wording_is_found_by_the_number_of_its_row(
    browser: Any, report: str, chain: list[Run]
) -> None:
    visit = Visit(browser)
    page = visit.open(report)
    page.locator("#wordings summary").focus()
    page.keyboard.press("Enter")
    listed = page.locator("#wordings li").all_inner_texts()
    numbers = page.locator("#chart-map-0 .ytick").all_text_contents()
    assert [f"prompt {number}" for number in numbers] == listed
    values = page.evaluate("[...document.querySelectorAll('#wordings li')].map((one) => one.value)")
    assert [str(value) for value in values] == numbers != sorted(numbers, key=int)
    seed = chain[-1].records[-1].tasks["task-0"].seed
    assert f"wording {seed}, “prompt {seed}”" in page.locator("#detail-words").inner_text()
    page.locator(".task-card").nth(1).click()
    assert page.locator("#wordings").get_attribute("open") is not None
    visit.close()


def test_a_scans_stages_stand_on_the_axis(browser: Any, tmp_path: Path) -> None:
    file = tmp_path / "scan.html"
    file.write_text(report_html([scan_run(tmp_path / "runs" / "olmo")]), encoding="utf-8")
    visit = Visit(browser)
    page = visit.open(file.as_uri())
    assert page.locator("#chart-signals .xtick").all_text_contents() == ["base", "sft", "dpo"]
    assert page.locator("#tick-label").inner_text().startswith("dpo: ")
    page.locator("#all-events summary").click()
    assert "step" not in page.locator("main").inner_text().split("What probing costs")[0]
    assert visit.said == []
    visit.close()


def test_what_one_probe_says_twice_stands_once(browser: Any, tmp_path: Path) -> None:
    store = RunStore.open(tmp_path / "one" / "crystalmon", {}, resume_step=None)
    kinds = [("nucleation_onset", 1), ("nucleation_complete", 1), ("melting", 2)]
    told = "the suite is crystallized: 1 crystallized of 1 task"
    for step in range(3):
        events = [Event(kind, at, None, {}, told) for kind, at in kinds if at == step]
        store.append(make_record(step), events)
    file = write_report([store.folder], tmp_path / "page.html")
    visit = Visit(browser)
    page = visit.open(file.as_uri())
    shown = page.locator("#happened .events li").all_inner_texts()
    assert ["step 1" in line for line in shown] == [True, False]
    assert page.locator("#chart-signals .annotation").all_text_contents() == ["1", "2"]
    assert visit.said == []
    visit.close()


@pytest.mark.parametrize("task", ["coin", None])
def test_a_task_that_nucleates_alone_is_listed(
    browser: Any, tmp_path: Path, task: str | None
) -> None:
    """Of tasks whose suite does too, the suite's event tells how many."""
    store = RunStore.open(tmp_path / "one" / "crystalmon", {}, resume_step=None)
    told = {None: Event("nucleation_onset", 1, None, {}, "the suite is nucleating")}
    told["coin"] = replace(told[None], task="coin")
    for step in range(3):
        store.append(make_record(step), [told["coin"], told[task]] if step == 1 else [])
    visit = Visit(browser)
    page = visit.open(write_report([store.folder], tmp_path / "page.html").as_uri())
    (shown,) = page.locator("#happened .events li").all_inner_texts()
    assert ("nucleation onset in coin" if task else "the suite is nucleating") in shown
    visit.close()


def test_a_task_that_is_not_measurable_has_no_bar(
    browser: Any, chain: list[Run], tmp_path: Path
) -> None:
    run, last = chain[0], chain[0].records[-1]
    tasks = {**last.tasks, "task-1": replace(last.tasks["task-1"], phase="not measurable")}
    held = replace(run, records=(*run.records[:-1], replace(last, tasks=tasks)))
    file = tmp_path / "page.html"
    file.write_text(report_html([held]))
    visit = Visit(browser)
    page = visit.open(file.as_uri())
    shown = page.locator("#won .won").all()
    assert ["not measurable" in one.inner_text() for one in shown] == [False, True, False, False]
    assert [one.locator(".bar i").count() for one in shown] == [1, 0, 1, 1]
    assert all("%" in one.inner_text() for one in shown)
    visit.close()


def test_the_slider_moves_the_heatmaps(browser: Any, report: str, chain: list[Run]) -> None:
    visit = Visit(browser)
    page = visit.open(report)
    slider = page.locator("#slider")
    canvas = "() => document.querySelector('.task-card canvas').toDataURL()"
    last, last_card = shown_map(page), page.evaluate(canvas)
    slider.focus()
    page.keyboard.press("Home")
    assert "sft, step 0: liquid" in page.locator("#tick-label").inner_text()
    assert "step 0, liquid" in slider.get_attribute("aria-valuetext")
    assert page.evaluate(canvas) != last_card
    q = chain[0].records[0].tasks["task-0"].q
    rows = {tuple(row) for row in np.round((np.array(shown_map(page)) ** 2), 2).tolist()}
    assert len(rows) > 8
    assert np.sort(np.array(shown_map(page)) ** 2, axis=None) == pytest.approx(
        np.sort(q, axis=None), abs=0.004
    )
    for _ in range(11):
        page.keyboard.press("ArrowRight")
    assert "sft, step 110" in page.locator("#tick-label").inner_text()
    page.keyboard.press("End")
    assert shown_map(page) == last
    page.locator("#play").click()
    assert int(slider.input_value()) < 5
    visit.wait("document.getElementById('slider').value > 5")
    page.locator("#play").click()
    assert page.locator("#play").inner_text() == "Play"
    assert visit.said == []
    visit.close()


def test_the_keyboard_reaches_and_works_everything(browser: Any, report: str) -> None:
    visit = Visit(browser)
    page = visit.open(report)
    reached: set[str] = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "(document.activeElement.id || document.activeElement.className "
                "|| document.activeElement.tagName)"
            )
        )
    assert {"skip", "theme", "key", "play", "slider", "task-card", "SUMMARY"} <= reached
    page.locator(".task-card").nth(0).focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#detail h3").inner_text() == "task-1"
    assert page.locator(".task-card").nth(1).get_attribute("aria-pressed") == "true"
    curves = "document.getElementById('chart-signals').data.filter((t) => t.name).length"
    before = page.evaluate(curves)
    page.locator(".key").first.focus()
    page.keyboard.press("Enter")
    assert page.evaluate(curves) == before - 1
    assert visit.said == []
    visit.close()


def test_runs_stand_side_by_side(browser: Any, chain: list[Run], tmp_path: Path) -> None:
    file = tmp_path / "two.html"
    file.write_text(report_html([chain[0], chain[1]], layout="compare"), encoding="utf-8")
    visit = Visit(browser)
    page = visit.open(file.as_uri())
    assert {"map-0", "map-1", "signals-0", "signals-3", "drift-0"} <= drawn_charts(page)
    page.locator("#slider").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert page.locator("#tick-label").inner_text().split("\n") == ["step 10", "step 10"]
    assert visit.said == []
    visit.close()


def test_runs_of_other_suites_show_their_own_numbers(browser: Any, tmp_path: Path) -> None:
    runs = [asked(tmp_path / "x", 3, "yes", "a1"), asked(tmp_path / "y", 5, "right", "b2")]
    file = tmp_path / "two.html"
    for layout in ("compare", "chain"):
        file.write_text(report_html(runs, layout=layout), encoding="utf-8")
        visit = Visit(browser)
        page = visit.open(file.as_uri())
        assert "judge a1" in page.locator("#subtitle").inner_text()
        assert "different suites" in page.locator("#unlike").inner_text()
        shown = [one.inner_text().split() for one in page.locator("#won .won").all()]
        led = [["yes", "100%"], ["right", "100%"]]
        assert [words[-2:] for words in shown] == (led if layout == "compare" else led[1:])
        assert visit.said == []
        visit.close()


def test_the_same_advice_names_all_runs_that_it_is_for(browser: Any, tmp_path: Path) -> None:
    runs = [asked(tmp_path / name, 3, "yes", "a1") for name in "xy"]
    held = [
        replace(run, records=(run.records[0], replace(run.records[1], phase="nucleating")))
        for run in runs
    ]
    file = tmp_path / "two.html"
    told = [replace(run, events=(replace(run.events[0], task=None),)) for run in held]
    file.write_text(report_html(told, layout="compare"), encoding="utf-8")
    visit = Visit(browser)
    page = visit.open(file.as_uri())
    (line,) = page.locator(".to-do li").all_inner_texts()
    assert line.startswith("x, y, nucleation onset: Wordings begin to get the same answers. If")
    visit.close()


def test_a_phase_begins_at_its_probe_and_a_retreat_is_listed(browser: Any, tmp_path: Path) -> None:
    store = RunStore.open(tmp_path / "one" / "crystalmon", {}, resume_step=None)
    for step, phase in ((0, "liquid"), (4, "nucleating"), (20, "liquid"), (30, "settling")):
        tasks = {"coin": make_task(phase=phase)}
        event = Event("nucleation_onset", step, None, {}, "the suite is nucleating")
        store.append(make_record(step, phase=phase, tasks=tasks), [event] if step == 4 else [])
    visit = Visit(browser)
    page = visit.open(write_report([store.folder], tmp_path / "page.html").as_uri())
    bars = """() => document.getElementById('chart-phases').data.filter((one) => one.type === 'bar')
      .flatMap((one) => one.base.map((base, at) => [base, one.customdata[at]]))"""
    hover = sorted(
        (base, text.split("<br>")) for base, text in page.evaluate(bars) if "suite" in text
    )
    assert [text[1] for _, text in hover] == [
        "steps 0 to 4",
        "steps 4 to 20",
        "steps 20 to 30",
        "step 30",
    ]
    assert hover[1][0] == 4
    assert 19 < hover[2][0] <= 20
    happened = page.locator("#happened").inner_text()
    assert "step 20 the suite is liquid again" in happened
    assert "step 30 the suite is settling" in happened
    assert "No seed: the answers still move" in page.locator("#detail-words").inner_text()
    assert visit.said == []
    visit.close()


def test_a_name_stays_text(browser: Any, tmp_path: Path) -> None:
    file = tmp_path / "evil.html"
    file.write_text(report_html([evil_run(tmp_path / "run")]), encoding="utf-8")
    visit = Visit(browser)
    page = visit.open(file.as_uri())
    page.wait_for_timeout(300)
    page.locator("#all-events summary").click()
    assert visit.said == []
    assert page.locator("main img, body > img").count() == 0
    assert page.locator("#detail h3").inner_text() == EVIL[0]
    assert EVIL[1] in page.locator("#all-events").inner_text()
    ticks = page.locator("#chart-phases .ytick, #chart-answers-0 .xtick").all_text_contents()
    assert any("<img" in tick for tick in ticks)
    assert any("</sc" in tick for tick in ticks)
    assert any("<b>a</b>&lt;" in tick for tick in ticks)
    page.locator("#chart-map-0").hover()
    page.wait_for_timeout(200)
    assert visit.said == []
    assert page.locator("main img").count() == 0
    visit.close()


@pytest.mark.parametrize("steps", [[], [0]])
def test_few_probes_are_a_right_page(browser: Any, tmp_path: Path, steps: list[int]) -> None:
    file = tmp_path / "few.html"
    file.write_text(report_html([make_run(tmp_path / "few", steps)]), encoding="utf-8")
    visit = Visit(browser)
    page = visit.open(file.as_uri())
    text = page.locator("main").inner_text()
    if steps:
        assert "few has one probe" in text
        assert {"map-0", "answers-0"} <= drawn_charts(page)
    else:
        assert "There is no probe in this run yet" in text
        assert page.locator("#body section:visible").count() == 1
    assert visit.said == []
    visit.close()


# --- watch -----------------------------------------------------------------------------------


@pytest.fixture
def watching(tmp_path: Path) -> Iterator[Callable[[], str]]:
    """Serves the run in tmp_path/run; returns the address."""
    server = make_server(RunFeed([tmp_path / "run"]), 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield lambda: f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_watcher_waits_for_the_run_and_shows_each_probe_at_once(
    browser: Any, tmp_path: Path, watching: Callable[[], str]
) -> None:
    visit = Visit(browser)
    page = visit.page
    page.goto(watching())
    page.wait_for_selector("#message:not([hidden])")
    assert "Waiting for a run in" in page.locator("#message").inner_text()
    store = RunStore.open(tmp_path / "run" / DEFAULT_NAME, {}, resume_step=None)
    visit.wait("document.body.innerText.includes('no probe in this run yet')")
    for step in (0, 1, 2):
        store.append(make_record(step), [make_event(step, task=None)] if step else [])
        visit.wait(f"document.getElementById('live').textContent.endsWith('step {step}')", PATIENCE)
        assert page.evaluate("document.getElementById('slider').value") == str(step)
    assert page.locator("#happened .n").count() == 2
    # the reader looks at an earlier step: news do not take it away
    page.locator("#slider").focus()
    page.keyboard.press("Home")
    store.append(make_record(3), [])
    visit.wait("document.getElementById('live').textContent.endsWith('step 3')")
    assert page.evaluate("document.getElementById('slider').value") == "0"
    assert visit.said == []
    assert {url.split("/")[2] for url in visit.asked if url.startswith("http")} == {
        watching().split("/")[2]
    }
    visit.close()


def ask(address: str, path: str, host: str | None = None) -> tuple[int, bytes]:
    port = int(address.rstrip("/").rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=5) as link:
        link.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {host or f'127.0.0.1:{port}'}\r\n"
            "Connection: close\r\n\r\n".encode()
        )
        answer = b""
        while part := link.recv(65536):
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def test_the_server_answers_this_machine_only(tmp_path: Path, watching: Callable[[], str]) -> None:
    make_run(tmp_path / "run", [0, 1])
    status, body = ask(watching(), "/data?since=")
    data = json.loads(body)
    assert (status, data["payload"]["lanes"][0]["step"]) == (200, [0, 1])
    assert ask(watching(), f"/data?since={data['mark']}")[0] == 204
    assert ask(watching(), "/")[0] == 200
    assert ask(watching(), "/etc/passwd")[0] == 404
    assert ask(watching(), "/data?since=", host="evil.example:80")[0] == 403


@pytest.mark.slow
def test_a_watcher_keeps_up_with_a_training(
    browser: Any, tmp_path: Path, watching: Callable[[], str]
) -> None:
    pytest.importorskip("trl")
    command = [sys.executable, "recipes/sft.py", "--config", "recipes/liquid-tiny/sft.yaml"]
    command += ["--model_name_or_path", "liquid-tiny", "--output_dir", str(tmp_path / "run")]
    root = Path(__file__).resolve().parents[1]
    log = (tmp_path / "log").open("w")
    training = subprocess.Popen(
        [*command, "--report_to", "none", "--disable_tqdm", "true"],
        cwd=root,
        env={"OMP_NUM_THREADS": "1", **os.environ},
        stdout=log,
        stderr=log,
    )
    visit = Visit(browser)
    visit.page.goto(watching())
    seen: dict[int, float] = {}
    script = "document.getElementById('live').textContent"
    ended = float("inf")
    while time.time() < ended + PATIENCE and (training.poll() is None or LAST not in seen):
        step = str(visit.page.evaluate(script)).rpartition("step ")[2]
        if step.isdigit():
            seen.setdefault(int(step), time.time())
        if training.poll() is not None:
            ended = min(ended, time.time())
        time.sleep(0.02)
    log.close()
    assert training.returncode == 0, (tmp_path / "log").read_text()[-2000:]
    records = read_run(tmp_path / "run").records
    assert max(seen, default=-1) == records[-1].step == LAST
    assert min(seen.values()) < ended, "nothing was shown while it trained"
    # a probe is seen when it, or a later one, is shown
    delays = [min(at for step, at in seen.items() if step >= r.step) - r.time for r in records]
    print(f"{len(delays)} probes, seen after at most {max(delays):.2f} s")
    assert visit.said == []
    visit.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_tensorboard_itself_shows_the_layout_the_pictures_and_the_trainers_charts(
    browser: Any, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "runs" / "Jan01_host")) as trainers:
        trainers.add_scalar("train/loss", 1.0, 0)
    tracker = TensorBoardTracker(output_dir=str(tmp_path))
    for step in range(5):
        tracker.log(step, {"crystalmon/order": step / 5})
    tracker.show(snapshot())
    tracker.close()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(tmp_path)]
    board = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        began = time.monotonic()
        while time.monotonic() - began < 60:
            with socket.socket() as link:
                if link.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.5)
        for tab, text in (
            ("custom_scalars", "Do the wordings still answer differently?"),
            ("images", "crystalmon/answers"),
            ("timeseries", "train/loss"),
        ):
            page = browser.new_page()
            page.goto(f"http://127.0.0.1:{port}/#{tab}")
            found = page.get_by_text(text).first
            found.wait_for(timeout=30_000)
            assert found.is_visible(), text
            page.close()
    finally:
        board.kill()
        board.wait()
