"""A list of checkpoints, measured one at a time: complete, resumable, and honest about gaps."""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

import crystalmon.scan.probe_stage
import crystalmon.scan.scan
import crystalmon.scan.scan_folder
from crystalmon.analysis.replay import detect_run
from crystalmon.cli.main import main
from crystalmon.report.page import write_report
from crystalmon.runs.files import RUN_FILE, RunFolderError
from crystalmon.runs.names import REFERENCE_FOLDER, SCAN_FILE
from crystalmon.runs.reader import read_run
from crystalmon.runs.store import RunStore
from crystalmon.scan.chat_templates import find_chat_template
from crystalmon.scan.families import FAMILIES
from crystalmon.scan.scan import ScanError, ScanResult, scan
from crystalmon.scan.stages import Stage, describe_base, expand_stages, parse_stages
from crystalmon.scoring.models import ASSETS_DIR, find_model, load_model
from crystalmon.scoring.ranks import Ranks
from crystalmon.suites.tasks import TaskSuite, load_suite

TINY = ASSETS_DIR / "liquid-tiny"
TIMES = ("time", "seconds", "share")


def nudged(folder: Path, scale: float) -> Path:
    """A copy of liquid-tiny whose weights were shifted."""
    model, tokenizer = load_model("liquid-tiny")
    torch.manual_seed(1)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.add_(torch.randn_like(layer.mlp.down_proj.weight) * scale)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three stages after the base, ever farther from it."""
    root = tmp_path_factory.mktemp("stages")
    return [nudged(root / name, scale) for name, scale in (("sft", 0.1), ("dpo", 0.3), ("rl", 0.5))]


@pytest.fixture(scope="module")
def stages(folders):
    return [Stage("base", "liquid-tiny"), *(Stage(folder.name, str(folder)) for folder in folders)]


@pytest.fixture(scope="module")
def small():
    whole = load_suite("liquid-tiny")
    return TaskSuite("three", tuple(whole[name] for name in ("coin", "number", "color")))


@pytest.fixture(scope="module")
def whole(stages, small, tmp_path_factory):
    """An uninterrupted scan: its folder, its result, what it told, and the models alive."""
    folder, told, alive, most = tmp_path_factory.mktemp("scan"), [], [], []

    def counted(*args, **options):
        most.append(sum(kept() is not None for kept in alive) + 1)
        model, tokenizer = load_model(*args, **options)
        model.__dict__["itself"] = model  # as hooks do: only a collection frees it
        alive.append(weakref.ref(model))
        return model, tokenizer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crystalmon.scan.scan, "load_model", counted)
        gc.disable()
        try:
            (result,) = scan(stages, folder, small, tell=told.append)
        finally:
            gc.enable()
    return folder, result, told, most


def lines_of(folder: Path) -> tuple[list[dict], list[dict]]:
    """Records without their times, and events, as read back."""
    run = read_run(folder)
    records = [record.to_json() for record in run.records]
    kept = [{k: v for k, v in record.items() if k not in TIMES} for record in records]
    return kept, [event.to_json() for event in run.events]


def read_stage_info(folder: Path) -> list[dict]:
    return json.loads((folder / RUN_FILE).read_text())["stages"]


# --- a whole scan ----------------------------------------------------------------------------


def test_a_scan_is_a_run_like_any_other(whole, stages, tmp_path):
    folder, result, told, _ = whole
    run = read_run(folder)
    assert [record.step for record in run.records] == [0, 1, 2, 3]
    assert [(s["name"], s["step"]) for s in run.info["stages"]] == [
        ("base", 0), ("sft", 1), ("dpo", 2), ("rl", 3)
    ]  # fmt: skip
    assert run.info["stages"][1]["model"] == stages[1].where
    assert run.records[0].metrics["free_energy"] == 0.0
    orders = [record.metrics["order"] for record in run.records]
    assert orders[0] == 0.0
    assert all(np.diff(orders) > 0)
    assert result.failed == {}
    assert [line.partition(":")[0] for line in told[1:]] == ["base", "sft", "dpo", "rl"]
    assert detect_run(run).repeats_live
    assert run.events, "the stages must raise something for the replay to mean anything"
    assert write_report([folder], tmp_path / "report.html").stat().st_size > 10_000


def test_one_model_is_alive_at_a_time(whole):
    assert whole[3] == [1, 1, 1, 1]


def test_the_papers_measurements_are_on_file(whole, small):
    folder = whole[0]
    found, run = json.loads((folder / SCAN_FILE).read_text()), read_run(folder)
    assert [stage["name"] for stage in found["stages"]] == ["base", "sft", "dpo", "rl"]
    assert found["proxy_stage"] == "sft"
    coin, q = found["tasks"]["coin"], run.records[1].tasks["coin"].q
    assert coin["choices"] == list(small["coin"].choice_texts)
    assert coin["histogram"]["sft"] == pytest.approx(q.mean(axis=0))
    assert coin["proxy_mse"]["sft"] == pytest.approx(q.var(axis=0).mean())
    assert coin["seed_mse"]["rl"] == run.records[3].tasks["coin"].metrics["seed_mse"]
    variety = found["mean"]["variety"]
    assert variety["base"] > variety["sft"] > variety["rl"] > 0
    assert found["verdicts"][0]["verdict"] == "holds"


TORCHRUN = "torch.distributed.run --standalone --nproc-per-node=2"
ACCELERATE = (  # without a GPU, this starts processes on the CPU; with --cpu it starts only one
    "accelerate.commands.launch --multi_gpu --num_processes=2 --num_machines=1 "
    "--mixed_precision=no --dynamo_backend=no --main_process_port=0"
)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_two_processes_measure_the_same(launcher, stages, folders, tmp_path):
    listed = [str(stages[0]), "bad=no/where", f"sft={folders[0]}"]
    command = [
        sys.executable,
        "-m",
        *launcher.split(),
        "-m",
        "crystalmon.cli.main",
        "scan",
        *listed,
    ]
    done = subprocess.run(
        [*command, "--suite", "liquid-tiny", "-o", str(tmp_path / "two")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.stdout.count("sft: ") == 1, done.stderr
    two = read_run(tmp_path / "two")
    scan(parse_stages(listed), tmp_path / "one", "liquid-tiny", tell=print)
    assert two.info["processes"] == 2
    assert "nucleated on a base seed" in done.stdout
    assert "bad (raw) is missing: model 'no/where' cannot be loaded" in done.stderr
    for record, one in zip(two.records, read_run(tmp_path / "one").records, strict=True):
        assert record.step == one.step
        for name, task in one.tasks.items():
            np.testing.assert_allclose(record.tasks[name].q, task.q, atol=1e-6)


# --- resumed ---------------------------------------------------------------------------------

KILLED = """
import os, sys
from crystalmon.cli.main import main
from crystalmon.runs.files import RECORDS_FILE
from crystalmon.runs.store import RunStore

append = RunStore.append

def torn(store, record, events):
    if record.step == 1:
        with open(store.folder / RECORDS_FILE, "ab") as file:
            file.write(b'{"step": 1, "tas')
        os.kill(os.getpid(), 9)
    append(store, record, events)

RunStore.append = torn
main(sys.argv[1:])
"""


def test_killed_in_a_line_of_the_second_stage_it_ends_like_an_uninterrupted_one(
    whole, stages, small, tmp_path
):
    suite = tmp_path / "three.yaml"
    texts = {
        "name": "three",
        "tasks": [
            {
                "name": task.name,
                "prompts": list(task.prompts),
                "choices": [{"text": c.text, "forms": list(c.forms)} for c in task.choices],
            }
            for task in small
        ],
    }
    suite.write_text(json.dumps(texts))  # JSON is YAML
    folder = tmp_path / "scan"
    arguments = ["scan", *map(str, stages), "--suite", str(suite), "-o", str(folder)]
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert killed.returncode == -9, killed.stderr
    first, measured = killed.stdout.splitlines()
    assert first == "the first stage is the base; the others are compared with it"
    assert measured.startswith("base: ")
    told: list[str] = []
    with pytest.warns(UserWarning, match=r"records.jsonl, line 2 cannot be read"):
        scan(stages, folder, suite, tell=told.append)
    assert told[1] == "base: measured before, kept"
    assert len(told) == 5
    with pytest.warns(UserWarning, match="line 2 cannot be read"):
        resumed = lines_of(folder)
    assert resumed == lines_of(whole[0])
    assert read_stage_info(folder) == read_stage_info(whole[0])
    assert json.loads((folder / SCAN_FILE).read_text()) == json.loads(
        (whole[0] / SCAN_FILE).read_text()
    )


def test_a_finished_scan_is_not_scored_again(whole, stages, small, monkeypatch):
    def fail(*args, **options):
        raise AssertionError("nothing is to be loaded")

    monkeypatch.setattr(crystalmon.scan.scan, "load_model", fail)
    told: list[str] = []
    (result,) = scan(stages, whole[0], small, tell=told.append)
    assert told[1:] == [f"{stage.name}: measured before, kept" for stage in stages]
    assert result.failed == {}


def test_two_commands_do_not_scan_into_one_folder_at_once(stages, small, tmp_path):
    def again(_: str) -> None:
        with pytest.raises(ValueError, match="another command is busy"):
            scan(stages[:1], tmp_path, small, tell=print)

    scan(stages[:1], tmp_path, small, tell=again)
    scan(stages[:1], tmp_path, small, tell=print)
    assert not [*tmp_path.glob(".*.lock")]


def test_both_views_and_one_do_not_scan_into_one_folder_at_once(
    stages, small, tmp_path, monkeypatch
):
    def again(*arguments, **options):
        monkeypatch.undo()
        with pytest.raises(ValueError, match="another command is busy"):
            scan(stages[:1], tmp_path, small, "raw", tell=print)
        return load_model(*arguments, **options)

    monkeypatch.setattr(crystalmon.scan.scan, "load_model", again)
    scan(stages[:1], tmp_path, small, "both", tell=print)


def test_a_folder_of_another_scan_is_refused(whole, stages, small, tmp_path):
    folder = whole[0]
    with pytest.raises(
        ValueError, match=r"must hold the same scan or none, got one of base=liquid"
    ):
        scan(stages[:3], folder, small)
    with pytest.raises(ValueError, match=r"with suite 'three' \(\w+\) in view 'raw'"):
        scan(stages, folder, "liquid-tiny")
    with pytest.raises(ValueError, match="must hold the same scan or none"):
        scan(stages, folder, small, "chat")
    with pytest.raises(ValueError, match=r"in view 'raw', dtype auto\. Give the same stages"):
        scan(stages, folder, small, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="must hold a scan of view 'both' or none, got one of one"):
        scan(stages, folder, small, "both")
    (tmp_path / "run.json").write_text('{"schema_version": 1}')
    with pytest.raises(ValueError, match="got the run of a training"):
        scan(stages, tmp_path, small)


# --- what cannot be measured -----------------------------------------------------------------


def test_a_missing_stage_is_named_kept_out_and_filled_in_later(
    whole, folders, stages, small, tmp_path
):
    late = tmp_path / "sft"
    listed = [stages[0], Stage("sft", str(late)), *stages[2:]]
    told: list[str] = []
    (result,) = scan(listed, tmp_path / "scan", small, tell=told.append)
    assert list(result.failed) == ["sft"]
    assert f"{late}' cannot be loaded" in told[2]
    run = read_run(tmp_path / "scan")
    assert [record.step for record in run.records] == [0, 2, 3]
    assert "cannot be loaded" in run.info["stages"][1]["error"]
    shutil.copytree(folders[0], late)
    told.clear()
    (result,) = scan(listed, tmp_path / "scan", small, tell=told.append)
    assert result.failed == {}
    kept = [line.partition(": ")[0] for line in told if "measured before, kept" in line]
    assert kept == ["base", "dpo", "rl"]
    assert "error" not in read_run(tmp_path / "scan").info["stages"][1]
    assert lines_of(tmp_path / "scan") == lines_of(whole[0])


def test_a_stage_that_fails_when_it_is_filled_in_costs_no_other(
    folders, stages, small, tmp_path, monkeypatch
):
    late = tmp_path / "sft"
    listed = [stages[0], Stage("sft", str(late)), *stages[2:]]
    scan(listed, tmp_path / "scan", small, tell=print)
    before = lines_of(tmp_path / "scan")
    shutil.copytree(folders[0], late)

    def broken(monitor, step, **options):
        raise RuntimeError("a broken kernel")

    monkeypatch.setattr(crystalmon.scan.probe_stage.Monitor, "probe", broken)
    (result,) = scan(listed, tmp_path / "scan", small, tell=print)
    assert result.failed == {"sft": "RuntimeError: a broken kernel"}
    assert lines_of(tmp_path / "scan") == before


def test_other_weights_in_the_same_place_are_measured_again(folders, stages, small, tmp_path):
    places = [tmp_path / name for name in ("base", "sft", "dpo")]
    for place, source in zip(places, (TINY, *folders[:2]), strict=True):
        shutil.copytree(source, place)
    listed = [Stage(place.name, str(place)) for place in places]
    scan(listed, tmp_path / "scan", small, tell=print)
    shutil.copy(folders[2] / "model.safetensors", places[1])
    told: list[str] = []
    scan(listed, tmp_path / "scan", small, tell=told.append)
    assert told[2] == "sft: its weights have changed: measured again"
    assert [line for line in told if "kept" in line] == [told[1], told[-1]]
    fresh = [stages[0], Stage("sft", str(folders[2])), stages[2]]
    scan(fresh, tmp_path / "fresh", small, tell=print)
    assert lines_of(tmp_path / "scan") == lines_of(tmp_path / "fresh")
    shutil.copy(folders[0] / "model.safetensors", places[0])
    told.clear()
    scan(listed, tmp_path / "scan", small, tell=told.append)
    assert told[1].endswith("measured again, and with the base every stage")
    assert not any("kept" in line for line in told)
    assert len(read_run(tmp_path / "scan").records) == 3


def test_two_stages_with_other_weights_leave_no_events_of_the_old_ones(folders, small, tmp_path):
    places = [tmp_path / name for name in ("base", "sft", "dpo")]
    for place, source in zip(places, (TINY, *folders[1:]), strict=True):
        shutil.copytree(source, place)
    listed = [Stage(place.name, str(place)) for place in places]
    scan(listed, tmp_path / "scan", small, tell=print)
    before = lines_of(tmp_path / "scan")[1]
    for place, source in zip(places[1:], (folders[0], TINY), strict=True):
        shutil.copy(source / "model.safetensors", place)
    scan(listed, tmp_path / "scan", small, tell=print)
    scan(listed, tmp_path / "fresh", small, tell=print)
    assert any(event["step"] == 2 for event in before)
    assert lines_of(tmp_path / "scan") == lines_of(tmp_path / "fresh")


def test_another_base_that_fails_is_mixed_with_nothing_that_was_measured_before(
    folders, small, tmp_path, monkeypatch
):
    places = [tmp_path / name for name in ("base", "sft", "dpo")]
    for place, source in zip(places[:2], (TINY, folders[0]), strict=True):
        shutil.copytree(source, place)
    listed = [Stage(place.name, str(place)) for place in places]
    scan(listed, tmp_path / "scan", small, tell=print)
    shutil.copy(folders[1] / "model.safetensors", places[0])
    shutil.copytree(folders[2], places[2])
    monkeypatch.setattr(
        crystalmon.scan.probe_stage.Monitor, "probe", lambda *args, **options: 1 / 0
    )
    with pytest.raises(ScanError, match="division by zero"):
        scan(listed, tmp_path / "scan", small, tell=print)
    assert not (tmp_path / "scan" / SCAN_FILE).exists()
    monkeypatch.undo()
    told: list[str] = []
    scan(listed, tmp_path / "scan", small, tell=told.append)
    assert told[1].endswith("measured again, and with the base every stage")
    scan(listed, tmp_path / "fresh", small, tell=print)
    assert lines_of(tmp_path / "scan") == lines_of(tmp_path / "fresh")


def test_what_replaces_a_measurement_and_fails_says_that_the_old_one_stands(
    folders, small, tmp_path
):
    place = tmp_path / "sft"
    shutil.copytree(folders[0], place)
    listed = [Stage("base", "liquid-tiny"), Stage("sft", str(place))]
    scan(listed, tmp_path / "scan", small, tell=print)
    (place / "model.safetensors").write_bytes(b"torn")
    (result,) = scan(listed, tmp_path / "scan", small, tell=print)
    assert result.failed["sft"].endswith("(what was measured with its earlier weights stands)")
    assert len(read_run(tmp_path / "scan").records) == 2


def test_a_probe_that_was_not_noted_is_measured_again(whole, stages, small, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    class Torn(RunStore):
        def append(self, record, events):
            super().append(record, events)
            if record.step == 1:
                raise Killed

    folder = tmp_path / "scan"
    monkeypatch.setattr(crystalmon.scan.scan_folder, "RunStore", Torn)
    with pytest.raises(Killed):
        scan(stages, folder, small, tell=print)
    monkeypatch.undo()
    told: list[str] = []
    scan(stages, folder, small, tell=told.append)
    assert [line for line in told if "kept" in line] == ["base: measured before, kept"]
    assert lines_of(folder) == lines_of(whole[0])
    assert read_stage_info(folder) == read_stage_info(whole[0])


def test_the_base_is_scored_once(stages, small, tmp_path, monkeypatch):
    scored = []
    real = crystalmon.scan.probe_stage.Monitor._score
    monkeypatch.setattr(
        crystalmon.scan.probe_stage.Monitor, "_score", lambda *args: scored.append(1) or real(*args)
    )
    scan(stages[:2], tmp_path, small, tell=print)
    assert len(scored) == 1  # the SFT stage; the base's answers are those of its reference


def test_stages_are_called_by_their_names(whole, capsys):
    folder = str(whole[0])
    assert main(["detect", folder]) == 0
    told = capsys.readouterr().out
    assert "suite: liquid (base)" in told
    assert not re.search(r"\bsteps? +\d", told.split("kinetics")[0])
    assert main(["summary", folder]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split()[0] for row in rows] == ["base", "sft", "dpo", "rl"]


def test_the_command_says_what_is_missing_and_its_status(capsys, folders, small, tmp_path):
    listed = ["base=liquid-tiny", "sft=no/where@v9", f"dpo={folders[1]}"]
    arguments = ["scan", *listed, "--suite", "liquid-tiny", "-o", str(tmp_path / "scan")]
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert "crystalmon: sft (raw) is missing: model 'no/where@v9' cannot be loaded" in err
    assert "the base is liquid" in out
    assert "nucleated on a base seed" in out
    assert [line.split()[0] for line in out.splitlines() if "/15" in line] == ["base", "dpo"]
    assert main([*arguments, "--json", "--no-figures"]) == 1
    out, _ = capsys.readouterr()
    assert json.loads(out) == json.loads((tmp_path / "scan" / SCAN_FILE).read_text())


@pytest.mark.parametrize(("rank", "status", "lines"), [("0", 1, 1), ("1", 0, 0)])
def test_only_rank_0_prints_and_fails(monkeypatch, tmp_path, capsys, rank, status, lines):
    failed = ScanResult(tmp_path, "raw", {"sft": "gone"}, {})
    monkeypatch.setattr(crystalmon.scan.scan, "scan", lambda *args, **options: [failed])
    monkeypatch.setenv("RANK", rank)
    assert main(["scan", "base=liquid-tiny", "-o", str(tmp_path)]) == status
    assert capsys.readouterr().err.count("sft (raw) is missing: gone") == lines


def test_only_rank_0_reads_the_suite_and_the_folders(stages, small, tmp_path, monkeypatch):
    inside = []

    class Watched(Ranks):
        def on_main(self, work, *kinds):
            inside.append(work)
            try:
                return super().on_main(work, *kinds)
            finally:
                inside.pop()

    def watched(name):
        real = getattr(crystalmon.scan.scan, name)

        def called(*args):
            assert inside, name
            return real(*args)

        monkeypatch.setattr(crystalmon.scan.scan, name, called)

    watched("load_suite")
    watched("expand_stages")
    monkeypatch.setattr(crystalmon.scan.scan, "current_ranks", Watched)
    with pytest.raises(ScanError):
        scan([Stage("base", "no/where")], tmp_path, small, tell=lambda line: inside[0])


def test_what_telling_raises_is_no_failure_of_the_stage(stages, small, tmp_path):
    heard: list[str] = []

    def ended(line):
        heard.append(line)
        if len(heard) == 2:  # the base's own line
            raise RuntimeError("nobody listens")

    with pytest.raises(RuntimeError, match="nobody listens"):
        scan(stages[:2], tmp_path, small, tell=ended)
    told: list[str] = []
    (result,) = scan(stages[:2], tmp_path, small, tell=told.append)
    assert result.failed == {}
    assert told[1] == "base: measured before, kept"


def test_only_what_stands_against_writing_ends_the_scan(stages, small, tmp_path, monkeypatch):
    class Broken(crystalmon.scan.probe_stage.Monitor):
        def probe(self, step, *args, **options):
            if step == 1:
                raise OSError("a shard is gone")
            return super().probe(step, *args, **options)

    monkeypatch.setattr(crystalmon.scan.probe_stage, "Monitor", Broken)
    (result,) = scan(stages[:3], tmp_path / "scan", small, tell=print)
    assert result.failed == {"sft": "a shard is gone"}
    assert [record.step for record in read_run(tmp_path / "scan").records] == [0, 2]

    def full(*args):
        raise RunFolderError("the disk is full")

    monkeypatch.setattr(RunStore, "append", full)
    with pytest.raises(RunFolderError, match="the disk is full"):
        scan(stages[:3], tmp_path / "full", small, tell=print)


def test_a_full_disk_is_the_same_error_on_every_rank(monkeypatch):
    told = None, "RunFolderError: the disk is full", RunFolderError
    monkeypatch.setattr(Ranks, "broadcast", lambda self, value: told)
    with pytest.raises(RunFolderError, match="the disk is full"):
        Ranks(1, 2).on_main(list, RunFolderError)


def test_without_its_base_nothing_is_measured(stages, small, tmp_path, capsys):
    broken = [Stage("base", "no/where"), *stages[1:]]
    with pytest.raises(ScanError, match="base base=no/where cannot be measured: model 'no/where'"):
        scan(broken, tmp_path / "scan", small, tell=print)
    assert capsys.readouterr().out.count("\n") == 2  # no other stage was tried
    assert not (tmp_path / "scan" / "run.json").exists()


def without_template(folder: Path) -> Path:
    shutil.copytree(TINY, folder)
    (folder / "chat_template.jinja").unlink()
    return folder


def test_without_a_chat_template_the_raw_view_is_still_made(small, folders, tmp_path):
    listed = [
        Stage("base", str(without_template(tmp_path / "bare"))),
        Stage("sft", str(folders[0])),
    ]
    with pytest.raises(ScanError, match="view must be 'raw' for a tokenizer without a chat templ"):
        scan(listed, tmp_path / "one", small, "chat", tell=print)
    raw, chat = scan(listed, tmp_path / "two", small, "both", tell=print)
    assert raw.failed == {}
    assert [r.step for r in read_run(tmp_path / "two" / "raw").records] == [0, 1]
    assert list(chat.failed) == ["base"]
    assert not chat.found


def test_a_chat_template_is_lent_to_the_stages_without_one(small, folders, tmp_path):
    bare, out = str(without_template(tmp_path / "bare")), tmp_path / "scan"
    listed = [Stage("base", bare), Stage("sft", str(folders[0]))]
    with pytest.raises(ScanError, match="Take another stage's with --chat-template-from NAME"):
        scan(listed, out, small, "chat", tell=print)
    (result,) = scan(listed, out, small, "chat", chat_template_from="sft", tell=print)
    assert result.failed == {}
    run, own = read_run(out), tmp_path / "own"
    assert run.info["config"]["chat_template_from"] == "sft"
    scan([Stage("base", "liquid-tiny")], own, small, "chat", tell=print)
    for name, task in read_run(own).records[0].tasks.items():
        np.testing.assert_array_equal(task.q, run.records[0].tasks[name].q)

    steps = [Stage("sft/checkpoint-3", bare), Stage("sft/checkpoint-9", str(folders[0]))]
    assert find_chat_template("sft", steps) == find_chat_template("sft", listed)

    told: list[str] = []
    scan(listed, out, small, "chat", chat_template_from="sft", tell=told.append)
    assert told[1:] == ["base: measured before, kept", "sft: measured before, kept"]
    with pytest.raises(ValueError, match=r"chat template from sft\. Give the same stages"):
        scan(listed, out, small, "chat", chat_template_from=str(folders[0]), tell=print)
    with pytest.raises(ValueError, match="got 'base', which has none"):
        scan(listed, tmp_path / "none", small, "chat", chat_template_from="base")
    with pytest.raises(ValueError, match="view must be 'chat' or 'both' where a chat template"):
        scan(listed, tmp_path / "raw", small, chat_template_from="sft")


def test_a_lent_template_leaves_the_raw_view_alone(small, folders, tmp_path):
    listed = [Stage("base", str(without_template(tmp_path / "bare")))]
    raw, chat = scan(listed, tmp_path / "both", small, "both", chat_template_from=str(folders[0]))
    scan([Stage("base", "liquid-tiny")], tmp_path / "raw", small)
    expected = read_run(tmp_path / "raw").records[0].tasks["coin"].q
    np.testing.assert_array_equal(read_run(raw.folder).records[0].tasks["coin"].q, expected)
    assert "chat_template_from" not in read_run(raw.folder).info["config"]
    assert "chat_template_from" in read_run(chat.folder).info["config"]


def test_both_views_are_measured_with_one_loading(small, stages, tmp_path, monkeypatch):
    loaded: list[str] = []

    def counted(where, **options):
        loaded.append(where)
        return load_model(where, **options)

    monkeypatch.setattr(crystalmon.scan.scan, "load_model", counted)
    scan(stages[:2], tmp_path, small, "both", tell=print)
    assert loaded == [stage.where for stage in stages[:2]]
    views = {view: read_run(tmp_path / view) for view in ("raw", "chat")}
    for view, run in views.items():
        assert [record.tasks["coin"].view for record in run.records] == [view] * 2
    with pytest.raises(ValueError, match="got one of both views"):
        scan(stages[:2], tmp_path, small, "raw")


# --- other tokenizers ------------------------------------------------------------------------


def with_other_tokens(folder: Path) -> Path:
    """liquid-tiny with its tokens numbered backwards: other ids, the same answers."""
    model, tokenizer = load_model("liquid-tiny")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer.json"
    data = json.loads(file.read_text())
    special, size = 4, len(data["model"]["vocab"])
    vocab = data["model"]["vocab"]
    data["model"]["vocab"] = {
        text: index if index < special else special + size - 1 - index
        for text, index in vocab.items()
    }
    file.write_text(json.dumps(data))
    rows = torch.cat([torch.arange(special), torch.arange(size - 1, special - 1, -1)])
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        embedding.copy_(embedding[rows].clone())
    model.save_pretrained(folder)
    return folder


def test_other_tokens_are_compared_by_choice_and_it_is_said_once(small, stages, tmp_path):
    other = with_other_tokens(tmp_path / "other")
    listed = [stages[0], Stage("sft", str(other)), Stage("kto", str(other)), stages[2]]
    told: list[str] = []
    scan(listed, tmp_path / "scan", small, tell=told.append)
    run = read_run(tmp_path / "scan")
    base, sft, _, dpo = run.records
    assert [stage["shares_tokens"] for stage in run.info["stages"]] == [True, False, False, True]
    for name, task in base.tasks.items():
        np.testing.assert_allclose(sft.tasks[name].q, task.q, atol=1e-5)
    assert sft.metrics["order"] == pytest.approx(0.0, abs=1e-4)
    for key in ("free_energy", "free_energy_choice", "free_energy_format", "vocabulary_outside"):
        assert np.isnan(sft.metrics[key]), key
    for key in ("compliance_entropy", "heat_capacity"):
        assert sft.metrics[key] == pytest.approx(base.metrics[key], rel=1e-3), key
    assert dpo.metrics["free_energy"] > 0
    assert [("compared by choice" in line) for line in told[1:]] == [False, True, False, False]


# --- lists of stages -------------------------------------------------------------------------


def test_stages_are_read_and_checkpoints_come_in_the_order_of_their_steps(tmp_path):
    for step in (100, 20, 3):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-old").mkdir()
    listed = parse_stages(["base=a/b@v1", f"sft={tmp_path}"])
    assert listed[0] == Stage("base", "a/b@v1")
    names = [stage.name for stage in expand_stages(listed)]
    assert names == ["base", "sft/checkpoint-3", "sft/checkpoint-20", "sft/checkpoint-100"]
    (tmp_path / "config.json").write_text("{}")
    assert expand_stages(listed)[-1] == listed[1]
    weights = [place / "model.safetensors" for place in (tmp_path, tmp_path / "checkpoint-100")]
    for file, content in zip(weights, (b"one", b"two"), strict=True):
        file.write_bytes(content)
        (file.parent / "training_args.bin").write_bytes(content)
    assert expand_stages(listed)[-1] == listed[1]
    weights[0].write_bytes(b"two")
    assert [stage.name for stage in expand_stages(listed)] == names
    own = Stage("base", str(tmp_path))
    assert expand_stages([own, Stage("next", "x")]) == (own, Stage("next", "x"))
    assert expand_stages([own])[0].name == "base/checkpoint-3"
    weights[0].unlink()
    assert expand_stages([own, Stage("next", "x")])[0].name == "base/checkpoint-3"
    for texts in (["="], ["=x"], ["base="], [""]):
        with pytest.raises(ValueError, match="a stage must have a name and a model, got"):
            parse_stages(texts)
    with pytest.raises(ValueError, match="names of their own, got 'a' twice"):
        expand_stages(parse_stages(["a=x", "a=y"]))
    with pytest.raises(ValueError, match="at least a base, got none"):
        expand_stages([])


def test_a_stage_without_a_name_has_that_of_its_place(tmp_path, monkeypatch):
    (tmp_path / "lr=1/sft").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "lr=1")
    for text, name in [("sft", "sft"), (".", "lr=1"), ("../lr=1", "lr=1"), ("a/b=c", "b=c"),
                       ("org/m@refs/pr/1", "m@refs/pr/1"), ("a.gguf", "a.gguf")]:  # fmt: skip
        assert parse_stages([text]) == (Stage(name, text),)
    assert parse_stages(["sft=a=b"]) == (Stage("sft", "a=b"),)


def test_a_hub_id_may_name_a_revision(tmp_path):
    assert find_model("a/b@step-5").options == {"revision": "step-5"}
    assert find_model("a/b@step-5").path == "a/b"
    (tmp_path / "x@y").mkdir()
    assert find_model(tmp_path / "x@y").path == str(tmp_path / "x@y")
    assert find_model("a/b").options == {}


def test_the_commit_of_a_hub_model_is_noted_and_an_unknown_revision_named(
    small, tmp_path, monkeypatch
):
    cache, commit = tmp_path / "hub", "0123456789" * 4
    repository = cache / "models--org--tiny"
    shutil.copytree(TINY, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    for name in ("main", "step-5"):
        (repository / "refs" / name).write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    listed = parse_stages(["base=org/tiny", "sft=org/tiny@step-5", "rl=org/tiny@nope"])
    (result,) = scan(listed, tmp_path / "scan", small, tell=print)
    found = read_run(tmp_path / "scan").info["stages"]
    assert [stage["model"] for stage in found] == ["org/tiny"] * 3
    assert [stage["revision"] for stage in found] == [commit, commit, "nope"]
    assert result.failed["rl"].startswith("model 'org/tiny@nope' cannot be loaded")


def test_families_name_public_stages():
    ids = [stage.where for stages in FAMILIES.values() for stage in stages]
    assert all(re.fullmatch(r"[\w-]+/[\w.-]+", hub_id) for hub_id in ids)
    assert len(set(ids)) == 4 * len(FAMILIES)


def test_the_command_takes_a_family_and_stages_of_ones_own(monkeypatch, tmp_path, capsys):
    asked = {}

    def noted(stages, output, suite, view, **options):
        asked.update(stages=stages, output=output, suite=suite, view=view, **options)
        return []

    monkeypatch.setattr(crystalmon.scan.scan, "scan", noted)
    arguments = ["scan", "--family", "tulu3-70b", "mine=runs/sft", "-o", str(tmp_path)]
    assert main([*arguments, "--view", "both", "--dtype", "bfloat16"]) == 0
    assert [stage.where for stage in asked["stages"]] == [
        "meta-llama/Llama-3.1-70B",
        "allenai/Llama-3.1-Tulu-3-70B-SFT",
        "allenai/Llama-3.1-Tulu-3-70B-DPO",
        "allenai/Llama-3.1-Tulu-3-70B",
        "runs/sft",
    ]
    assert (asked["view"], asked["dtype"]) == ("both", torch.bfloat16)
    assert main([*arguments, "--dtype", "floaty"]) == 2
    assert "dtype must be a torch dtype, got 'floaty'" in capsys.readouterr().err


def test_a_base_that_was_trained_says_from_what(tmp_path, whole):
    trained = tmp_path / "sft" / "crystalmon"
    shutil.copytree(whole[0] / REFERENCE_FOLDER, trained / REFERENCE_FOLDER)
    for rl, from_what in (("x", True), ("liquid-tiny", False)):
        line = describe_base([Stage("sft", str(tmp_path / "sft")), Stage("rl", rl)])
        assert line.startswith("the first stage, sft, is the base; the others are compared with it")
        assert line.endswith("trained from liquid-tiny, which is not among them") == from_what
