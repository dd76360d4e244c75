"""The page: what is in it, and that no name, gap or damage breaks it."""

from __future__ import annotations

import base64
import json
import math
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_runs import make_event, make_record, make_task, planted_chain, write_log

from crystalmon.cli.main import main
from crystalmon.metrics.catalogue import METRICS, NOT_MEASURABLE
from crystalmon.report.frames import MAX_FRAMES, MAX_PROBES, base_answers, encode, pick_frames
from crystalmon.report.lanes import lane_names, make_lanes
from crystalmon.report.page import report_html, write_report
from crystalmon.report.payload import build_payload, kinetics_rows
from crystalmon.report.summary import stage_table
from crystalmon.report.training_log import MAX_LOGGED, log_curves, log_panels
from crystalmon.runs.reader import RunReader
from crystalmon.runs.records import SCHEMA_VERSION, ProbeRecord
from crystalmon.runs.run import Run
from crystalmon.runs.store import RunStore
from crystalmon.runs.trainer_log import LogRow
from crystalmon.runs.wordings import task_texts
from crystalmon.suites.tasks import load_suite

EVIL = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(2)</script>",
    "<b>a</b>&lt;<!--",
    "%%data%%",
)


def payload_of(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def make_run(folder: Path, steps: list[int], **info: Any) -> Run:
    store = RunStore.open(folder / "crystalmon", info, resume_step=None)
    for step in steps:
        store.append(make_record(step), [make_event(step)] if step == 2 else [])
    return RunReader(folder).read()


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    stages = [("sft", list(np.linspace(0, 1, 10)), 10), ("dpo", [1.0, 1.05], 20)]
    return planted_chain(tmp_path_factory.mktemp("chain"), stages, tasks=3)


# --- lanes -----------------------------------------------------------------------------------


def test_a_run_continues_the_run_that_its_model_comes_from(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a" / "sft", [0, 4], model="tiny")
    second = make_run(tmp_path / "a" / "dpo", [0, 2], model=str(first.folder.parent))
    third = make_run(tmp_path / "b" / "dpo", [0], model="a/sft/checkpoint-4")
    other = make_run(tmp_path / "b" / "sft", [0], model="tiny")
    lanes = make_lanes([first, second, other])
    assert [lane.name for lane in lanes] == ["sft → dpo", "sft"]
    assert lanes[0].starts == (0, 4, 6)
    assert lanes[0].positions.tolist() == [0, 4, 4, 6]
    assert lanes[0].stages.tolist() == [0, 0, 1, 1]
    assert [lane.name for lane in make_lanes([first, third])] == ["sft → dpo"]
    assert len(make_lanes([first, other], "chain")) == 1
    assert len(make_lanes([first, second], "compare")) == 2


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / folder / "sft", [0]) for folder in "ab"]
    assert lane_names(make_lanes(runs)) == ["a/sft", "b/sft"]
    assert "<title>a/sft · b/sft</title>" in report_html(runs)
    assert lane_names(make_lanes(runs[:1])) == ["sft"]


def test_lanes_refuse_nonsense() -> None:
    with pytest.raises(ValueError, match="layout must be one of auto, chain, compare, got 'x'"):
        make_lanes([], "x")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="runs must hold at least one run"):
        make_lanes([])


# --- frames ----------------------------------------------------------------------------------


def test_frames_keep_the_ends_and_the_changes_of_phase(chain: list[Run]) -> None:
    (lane,) = make_lanes(chain, "chain")
    assert pick_frames(lane) == list(range(12))
    picked = pick_frames(lane, limit=8)
    assert len(picked) <= 8
    phases = [record.phase for record in lane.records]
    changes = [i for i in range(1, 12) if phases[i] != phases[i - 1]]
    assert {0, 9, 10, 11, *changes} <= set(picked)


def test_a_byte_tells_a_probability_to_half_a_percent() -> None:
    q = np.array([[0.0, 1.0, 0.5, 0.001, np.nan]])
    read = (np.frombuffer(base64.b64decode(encode(q)), np.uint8) / 255) ** 2
    np.testing.assert_allclose(read, [0.0, 1.0, 0.5, 0.001, 0.0], atol=0.004)
    assert abs(read[3] - 0.001) < 0.0002


def test_the_base_is_read_without_the_safetensors_library(tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.numpy").save_file
    run = make_run(tmp_path / "x", [0])
    assert base_answers(run) == {}
    b = np.random.default_rng(0).dirichlet(np.ones(3), size=4)
    (run.folder / "reference").mkdir()
    file = run.folder / "reference" / "reference.safetensors"
    save_file({"log_choice/coin": np.log(b * 0.7), "log_p": np.zeros((4, 9), np.float32)}, file)
    np.testing.assert_allclose(base_answers(run)["coin"], b)
    payload = build_payload(make_lanes([run]))
    assert payload["lanes"][0]["base"]["coin"] == encode(b)
    for damage in (b"", b"\xff" * 40, file.read_bytes()[:100]):
        file.write_bytes(damage)
        assert base_answers(run) == {}


# --- payload ---------------------------------------------------------------------------------


def test_the_payload_holds_the_curves(chain: list[Run]) -> None:
    lane = build_payload(make_lanes(chain, "chain"))["lanes"][0]
    order = lane["series"]["order"]
    low, _ = chain[0].intervals("order")
    np.testing.assert_allclose(order["v"][:10], chain[0].series("order")[1], rtol=1e-3)
    np.testing.assert_allclose(order["lo"][:10], low, rtol=1e-3, atol=1e-4)
    assert lane["series"]["entropy"] is None
    assert lane["x"] == [*range(0, 100, 10), 90, 110]
    suite = [event for event in lane["events"] if event["task"] is None]
    assert [event["x"] for event in suite] == [e.step for e in chain[0].events if e.task is None]


def test_the_scripts_learn_every_curve_from_the_catalogue(chain: list[Run]) -> None:
    payload = build_payload(make_lanes(chain, "chain"))
    drawn = [m for m in METRICS if m.panel and m.level == "both" and m.key != "phase"]
    assert list(payload["metrics"]) == list(payload["lanes"][0]["series"]) == [m.key for m in drawn]
    for metric in drawn:
        told = payload["metrics"][metric.key]
        assert (told["section"], told["panel"]) == metric.panel
        assert (told["label"], told["summary"]) == (metric.label, metric.summary)
    colours = [told["colour"] for told in payload["metrics"].values()]
    assert len(set(colours)) == len(colours)
    parts = [key for key, told in payload["metrics"].items() if told["part"]]
    assert parts == ["free_energy_choice", "free_energy_format"]


def test_p_values_and_kinetics_are_shown_when_there_are_any(chain: list[Run]) -> None:
    run = replace(
        chain[0], events=(replace(make_event(10, "seed_locked"), evidence={"p_value": 0.004}),)
    )
    payload = build_payload(make_lanes([run]))
    assert payload["lanes"][0]["events"][0]["p"] == 0.004
    assert payload["kinetics"] == [{"run": "sft", **row} for row in kinetics_rows(run)]
    assert payload["kinetics"][0]["task"] is None
    assert kinetics_rows(replace(run, records=run.records[:1])) == []


def test_a_long_run_is_fitted_too(chain: list[Run]) -> None:
    rise = np.where(np.arange(300) < 120, 0.1, 0.9)
    records = tuple(
        replace(chain[0].records[0], step=step, metrics={"order": value}, tasks={})
        for step, value in enumerate(rise.tolist())
    )
    (row,) = kinetics_rows(replace(chain[0], records=records))
    assert row["verdict"] == "abrupt"


def test_a_rise_is_fitted_though_the_suite_was_never_measurable(chain: list[Run]) -> None:
    run = chain[0]
    records = tuple(replace(record, phase=NOT_MEASURABLE) for record in run.records)
    fits = [row for row in kinetics_rows(run) if row["verdict"] != "Avrami fit"]
    assert fits
    assert kinetics_rows(replace(run, records=records)) == fits


def test_the_words_come_from_the_bundled_suite_only_if_it_is_the_same(tmp_path: Path) -> None:
    suite = load_suite("liquid-tiny")
    coin = suite["coin"]
    q = np.full((len(coin.prompts), len(coin.choices)), 0.5)
    record = make_record(0, tasks={"coin": replace(make_task(), q=q)})
    for known, digest in ((True, suite.hash), (False, "another")):
        info = {"suite": "liquid-tiny", "suite_hash": digest}
        run = Run(tmp_path, info, (record,), ())
        texts, found = task_texts(run)
        assert found is known
        assert (texts["coin"].choices == coin.choice_texts) is known
    kept = {"coin": {"prompts": list(coin.prompts), "choices": ["H", "T"]}}
    texts, found = task_texts(Run(tmp_path, {"suite_texts": kept}, (record,), ()))
    assert found
    assert texts["coin"].choices == ("H", "T")
    texts, found = task_texts(Run(tmp_path, {}, (record,), ()), suite)
    assert found


@pytest.mark.parametrize(
    ("suite", "base", "said"),
    [
        ("letters", "a", "different suites (digits: sft; letters: dpo)"),
        ("digits", "b", "different bases (a, b)"),
        ("digits", "a", ""),
    ],
)
def test_runs_that_must_not_be_compared_are_named(
    chain: list[Run], suite: str, base: str, said: str
) -> None:
    infos = [
        {"suite": name, "suite_hash": name, "reference_model": model}
        for name, model in (("digits", "a"), (suite, base))
    ]
    runs = [replace(run, info=info) for run, info in zip(chain, infos, strict=False)]
    told = " ".join(build_payload(make_lanes(runs))["unlike"])
    assert said in told
    assert told.count("different") == bool(said)


def test_each_base_of_a_chain_is_named_with_the_stages_compared_with_it(chain: list[Run]) -> None:
    def bases(*models: str) -> list[str]:
        infos = [{"reference_model": model} for model in models]
        runs = [replace(run, info=info) for run, info in zip(chain, infos, strict=False)]
        return build_payload(make_lanes(runs, "chain"))["bases"]

    assert bases("hub/tiny", "hub/tiny") == ["tiny"]
    first, second = (run.name for run in chain[:2])
    assert bases("hub/tiny", "runs/0-warm/") == [f"tiny ({first})", f"0-warm ({second})"]


def asked(folder: Path, wordings: int, answer: str, digest: str, suite: str = "judge") -> Run:
    """A run of one task, `right`, that ends sure of one of its suite's own answers."""
    choices = [answer, "no"]
    prompts = [f"{suite} {digest} asks {n}" for n in range(wordings)]
    texts = {"right": {"prompts": prompts, "choices": choices}}
    info = {"suite": suite, "suite_hash": digest, "suite_texts": texts}
    store = RunStore.open(folder / "crystalmon", info, resume_step=None)
    for step, sure in enumerate((0.5, 1.0)):
        task = replace(make_task(), q=np.tile([sure, 1 - sure], (wordings, 1)))
        events = [make_event(step, task="right")] if step else []
        store.append(make_record(step, tasks={"right": task}), events)
    return RunReader(folder).read()


@pytest.mark.parametrize("layout", ["compare", "chain"])
@pytest.mark.parametrize(
    ("one", "other"),
    [(("a1", "judge3"), ("b2", "judge2")), (("a1b2c", "judge"), ("f0e1d", "judge"))],
)
def test_tasks_of_one_name_with_other_words_stand_apart(
    tmp_path: Path, layout: Any, one: tuple[str, str], other: tuple[str, str]
) -> None:
    runs = [asked(tmp_path / "x", 3, "yes", *one), asked(tmp_path / "y", 5, "right", *other)]
    data = build_payload(make_lanes(runs, layout))
    labels = [
        suite if suite != "judge" else f"judge {digest[:4]}" for digest, suite in (one, other)
    ]
    assert data["suites"] == labels
    assert f"({labels[0]}: x; {labels[1]}: y)" in data["unlike"][0]
    names = [f"right ({label})" for label in labels]
    shown = {task["name"]: (len(task["prompts"]), task["choices"][0]) for task in data["tasks"]}
    assert shown == {names[0]: (3, "yes"), names[1]: (5, "right")}
    assert [event["task"] for lane in data["lanes"] for event in lane["events"]] == names
    for place, (name, wordings) in enumerate(zip(names, (3, 5), strict=True)):
        lane = data["lanes"][place if layout == "compare" else 0]
        raw = np.frombuffer(base64.b64decode(lane["history"][name]), np.uint8)
        answers = raw.reshape(-1, wordings, 2)
        frames = [at for at, phase in enumerate(lane["tasks"][name]["phase"]) if phase is not None]
        assert len(frames) == 2
        assert (answers[frames[-1], :, 0] == 255).all()
        assert len(base64.b64decode(lane["base"][name])) == 2 * wordings


def test_a_run_that_lost_its_words_has_those_of_its_suite(tmp_path: Path) -> None:
    runs = [asked(tmp_path / name, 3, "yes", "a1") for name in "xy"]
    bare = {key: value for key, value in runs[0].info.items() if key != "suite_texts"}
    data = build_payload(make_lanes([replace(runs[0], info=bare), runs[1]]))
    ((name, choices),) = [(task["name"], task["choices"]) for task in data["tasks"]]
    assert (name, choices) == ("right", ["yes", "no"])
    assert data["unlike"] == []


def test_what_the_run_cannot_tell_is_said(chain: list[Run]) -> None:
    costly = replace(chain[0].records[0], share=0.5, metrics={"coverage": 0.4})
    run = Run(Path("x/crystalmon"), {"max_steps": 9}, (costly,), (), superseded=3, doubtful=(0,))
    said = " ".join(build_payload(make_lanes([run]), notes=["a torn line"])["caveats"])
    for part in (
        "a torn line",
        "one probe",
        "from step 1 to 9",
        "hold 40%",
        "3 older probes",
        "50%",
        "may be wrong",
    ):
        assert part in said
    many = tuple(replace(chain[0].records[0], step=step) for step in range(MAX_FRAMES + 1))
    said = " ".join(build_payload(make_lanes([replace(run, records=many)]))["caveats"])
    assert f"show {MAX_FRAMES} of the probes" in said


def test_a_very_long_run_is_thinned_and_keeps_what_stands_out(chain: list[Run]) -> None:
    first, count = chain[0].records[0], 3000
    rng = np.random.default_rng(0)
    (name, task), *_ = first.tasks.items()

    def record(step: int) -> ProbeRecord:
        metrics = {key: value + 0.01 * rng.random() for key, value in first.metrics.items()}
        metrics |= {"order": 0.1 if step < 1000 else 0.8}
        metrics |= {1234: {"order": 0.99}, 1777: {"coverage": 0.01}}.get(step, {})
        phase = "melting" if step == 2500 else "liquid"
        return replace(
            first,
            step=step,
            metrics=metrics,
            phase="crystallized" if step == 2000 else "liquid",
            seconds=99.0 if step == 2222 else 0.1,
            tasks={name: replace(task, phase=phase, metrics={"order": 0.0})},
        )

    run = replace(chain[0], records=tuple(record(step) for step in range(count)))
    payload = build_payload(make_lanes([run]))
    (lane,) = payload["lanes"]
    assert MAX_PROBES / 2 < len(lane["x"]) <= MAX_PROBES
    assert lane["x"] == sorted(lane["step"])
    turns = {1999, 2000, 2001, 2499, 2500, 2501}
    assert {0, 1234, 1777, 2222, count - 1, *turns} <= set(lane["x"])
    assert max(lane["series"]["order"]["v"]) == 0.99
    curves = [lane["stage"], lane["seconds"], lane["phase"], lane["tasks"][name]["phase"]]
    assert {len(each) for each in curves} == {len(lane["x"])}
    assert len(lane["frames"]) <= MAX_FRAMES
    assert lane["x"].index(2000) in lane["frames"]
    assert lane["runs"][0]["probes"] == count
    assert lane["runs"][0]["seconds"] == pytest.approx(0.1 * count + 98.9)
    assert payload["kinetics"][0]["verdict"] == "abrupt"
    assert f"at most {MAX_PROBES}" in " ".join(payload["caveats"])


# --- the trainer's log -----------------------------------------------------------------------


def logged_run(folder: Path, rows: dict[int, dict[str, float]], **info: Any) -> Run:
    """A run with a probe at step 0, and this log."""
    make_run(folder, [0], **info)
    store = RunStore.open(folder / "crystalmon", info, resume_step=0)
    write_log(store, rows)
    return RunReader(folder).read()


def test_the_page_gets_the_trainers_curves_and_what_to_show_first(tmp_path: Path) -> None:
    sft = logged_run(
        tmp_path / "sft",
        {
            10: {"grad_norm": 1.5, "loss": 2.0, "learning_rate": 1e-4},
            11: {"eval_loss": 2.5, "eval_runtime": 3.0, "eval_samples_per_second": 9.0},
            20: {"grad_norm": math.inf, "loss": 1.0, "learning_rate": 1.23456e-5},
            21: {"train_runtime": 9.0, "train_loss": 1.5, "total_flos": 1e15},
        },
    )
    grpo = logged_run(tmp_path / "grpo", {5: {"loss": 0.0, "reward": 0.5, "reward_std": 0.1}})
    payload = build_payload(make_lanes([sft, grpo], "chain"))
    panels = [(each["key"], each["keys"], each["first"]) for each in payload["log"]]
    assert panels == [
        ("loss", ["loss", "eval_loss"], True),
        ("reward", ["reward"], True),
        ("grad_norm", ["grad_norm"], False),
        ("learning_rate", ["learning_rate"], False),
        ("reward_std", ["reward_std"], False),
    ]
    first, second = payload["lanes"][0]["runs"]
    assert first["log"]["loss"] == {"step": [10, 20], "v": [2.0, 1.0]}
    assert first["log"]["grad_norm"]["v"] == [1.5, None]
    assert first["log"]["learning_rate"]["v"] == [1e-4, 1.235e-5]
    assert first["log"]["eval_loss"] == {"step": [11], "v": [2.5]}
    # the axis holds the log, which goes on after the last probe
    assert (second["start"], second["stop"]) == (21, 26)


def test_what_people_look_at_comes_first_and_is_little(tmp_path: Path) -> None:
    names = ("x", "objective/kl", "kl", "rewards/margins", "reward", "loss", "objective/scores")
    run = logged_run(tmp_path / "a", {1: dict.fromkeys(names, 1.0)})
    shown = [each["key"] for each in log_panels(make_lanes([run])) if each["first"]]
    assert shown == ["loss", "reward", "objective/scores", "rewards/margins"]
    run = logged_run(tmp_path / "b", {1: {"mine": 1.0, "other": 2.0, "eval_other": 3.0}})
    panels = [(each["key"], each["first"]) for each in log_panels(make_lanes([run]))]
    assert panels == [("mine", True), ("other", True)]
    assert log_panels(make_lanes([make_run(tmp_path / "old", [0, 1])])) == []


def test_a_long_log_is_thinned_and_keeps_its_peaks(tmp_path: Path) -> None:
    rows = tuple(LogRow(step, None, {"loss": 1.0 + step % 2 / 10}) for step in range(100_000))
    odd = {1234: 9.0, 50_001: -4.0, 70_000: math.nan}
    rows = tuple(replace(r, values={"loss": odd.get(r.step, r.values["loss"])}) for r in rows)
    run = replace(make_run(tmp_path, [0]), read_log=lambda: rows)
    curve = log_curves(run)["loss"]
    assert MAX_LOGGED / 2 < len(curve["step"]) == len(curve["v"]) <= MAX_LOGGED
    assert curve["step"] == sorted(set(curve["step"]))
    assert {0, 1234, 50_001, 99_999} <= set(curve["step"])
    assert (max(curve["v"]), min(curve["v"])) == (9.0, -4.0)
    payload = build_payload(make_lanes([run]))
    assert f"at most {MAX_LOGGED} points" in " ".join(payload["caveats"])
    assert len(json.dumps(payload)) < 100_000


def test_damage_in_the_log_is_said_on_the_page(tmp_path: Path) -> None:
    run = logged_run(tmp_path / "run", {1: {"loss": 1.0}})
    with (run.folder / "trainer_log.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    data = payload_of(write_report([tmp_path / "run"], tmp_path / "r.html").read_text())
    assert "trainer_log.jsonl, line 2 cannot be read" in data["caveats"][0]
    assert data["lanes"][0]["runs"][0]["log"]["loss"]["v"] == [1.0]


# --- stages of a scan ------------------------------------------------------------------------


def scan_run(folder: Path) -> Run:
    """Three stages, and an event that names two of them by their steps."""
    stages = [{"name": name, "step": step} for step, name in enumerate(("base", "sft", "dpo"))]
    store = RunStore.open(folder, {"stages": stages}, resume_step=None)
    event = replace(make_event(2), message="order passed 0.2 between steps 0 and 1 (now 0.9)")
    for step in range(3):
        store.append(make_record(step), [event] if step == 2 else [])
    return RunReader(folder).read()


def test_a_scans_stages_are_called_by_their_names(tmp_path: Path) -> None:
    run = scan_run(tmp_path / "runs" / "olmo")
    lane = build_payload(make_lanes([run]))["lanes"][0]
    assert lane["runs"][0]["stages"] == {0: "base", 1: "sft", 2: "dpo"}
    assert lane["events"][0]["message"] == "order passed 0.2 between base and sft (now 0.9)"
    assert [row.name for row in stage_table([run])] == ["base", "sft", "dpo"]
    (one, *_) = stage_table([replace(run, records=run.records[:2])])[::-1]
    assert one.name == "sft"
    lacking = replace(run, records=run.records[:2])
    assert "lacks dpo" in " ".join(build_payload(make_lanes([lacking]))["caveats"])
    assert run._repr_html_().count("step") == 0


# --- the page --------------------------------------------------------------------------------


def evil_run(folder: Path) -> Run:
    """Every name in it tries to be markup."""
    texts = {EVIL[0]: {"prompts": [*EVIL[:3], "&amp;"], "choices": list(EVIL[1:])}}
    store = RunStore.open(
        folder / "crystalmon",
        {"suite": EVIL[1], "model": EVIL[0], "suite_texts": texts},
        resume_step=None,
    )
    for step in range(3):
        tasks = {EVIL[0]: make_task(step, locked=1)}
        event = replace(make_event(step, task=EVIL[0]), message=EVIL[1], kind="seed_locked")
        store.append(make_record(step, tasks=tasks), [event, replace(event, task=None)])
    return RunReader(folder).read()


def test_no_name_ends_the_script_or_becomes_markup(tmp_path: Path) -> None:
    run = evil_run(tmp_path / "<b>run&")
    page = report_html([run])
    data = payload_of(page)
    assert data["tasks"][0]["name"] == EVIL[0]
    assert data["tasks"][0]["choices"] == list(EVIL[1:])
    assert page.count("</script>") == payload_free(page).count("</script>") == 3
    assert "<title>&lt;b&gt;run&amp;</title>" in page
    assert "<img" not in page


def payload_free(page: str) -> str:
    return re.sub(r'(id="data">).*?(</script>)', r"\1\2", page, flags=re.DOTALL)


def test_the_page_needs_nothing_else(chain: list[Run]) -> None:
    page = report_html(chain)
    assert "connect-src 'none'" in page
    assert not re.search(r'<(?:script|link|img)[^>]+(?:src|href)="(?!data:)', page)


def test_the_file_appears_whole_or_not_at_all(chain: list[Run], tmp_path: Path) -> None:
    folders = [run.folder for run in chain]
    assert write_report(folders, tmp_path / "r.html").read_text().startswith("<!doctype html>")
    assert [file.name for file in tmp_path.iterdir()] == ["r.html"]
    with pytest.raises(FileNotFoundError, match="output must be a file in an existing folder"):
        write_report(folders, tmp_path / "no" / "r.html")


@pytest.mark.parametrize("steps", [[0], [0, 7]])
def test_few_probes_make_a_page(tmp_path: Path, steps: list[int]) -> None:
    make_run(tmp_path / "few", steps)
    data = payload_of(write_report([tmp_path / "few"], tmp_path / "r.html").read_text())
    assert data["lanes"][0]["step"] == steps
    assert "few has" in data["caveats"][0]


def test_damage_is_said_on_the_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "torn", [0, 1])
    with (run.folder / "records.jsonl").open("a") as file:
        file.write('{"step": 2, "ta')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = payload_of(write_report([tmp_path / "torn"], tmp_path / "r.html").read_text())
    assert "line 3 cannot be read" in data["caveats"][0]
    assert data["lanes"][0]["step"] == [0, 1]


def test_bad_folders_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    newer = make_run(tmp_path / "newer", [0]).folder / "run.json"
    newer.write_text(json.dumps({"schema_version": SCHEMA_VERSION + 1}))
    broken = make_run(tmp_path / "broken", [0]).folder / "run.json"
    broken.write_text("")
    cases = {
        "none": "there is no such folder",
        "empty": "run.json is missing",
        "newer": "Upgrade crystalmon",
        "broken": "must be JSON with a schema_version",
    }
    for name, sentence in cases.items():
        missing = name in ("none", "empty")
        status = main(["report", str(tmp_path / name), "-o", str(tmp_path / "r.html")])
        assert status == (1 if missing else 2)
        said = capsys.readouterr().err
        assert sentence in said
        assert "Traceback" not in said
    assert not (tmp_path / "r.html").exists()


def test_the_command_writes_a_page(
    chain: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "r.html"
    folders = [str(run.folder) for run in chain]
    assert main(["report", *folders, "-o", str(output), "--chain"]) == 0
    assert f"report: {output} (" in capsys.readouterr().out
    assert len(payload_of(output.read_text())["lanes"]) == 1
    assert main(["report", *folders, "-o", str(output), "--compare", "--force"]) == 0
    assert len(payload_of(output.read_text())["lanes"]) == 2
