"""Every command that a document names is run by a test, and its options are those it has."""

from __future__ import annotations

import argparse
import ast
import gzip
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from in_process import execute, in_process
from scenarios import KINDS, NULL_KINDS
from test_docs import PAGES
from test_verdicts import at_seed, liquid_base, write_stages
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from crystalmon.cli.main import main
from crystalmon.cli.options import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
TESTS = Path(__file__).parent
SETTINGS = [path.relative_to(ROOT) for path in sorted((ROOT / "recipes").rglob("*.yaml"))]
SCRIPTS = [
    path.relative_to(ROOT).as_posix()
    for folder in ("scripts", "recipes")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if '__name__ == "__main__"' in path.read_text()
]

# what trainers and engines warn about is not this package's
pytestmark = pytest.mark.filterwarnings("ignore")


# --- where each command is run ---------------------------------------------------------------


def heads(page: str, first: str) -> list[str]:
    """The column headings of the table in a page that begins so."""
    line = re.search(rf"^{first}.*", (ROOT / page).read_text(), flags=re.MULTILINE)
    assert line is not None
    return re.split(r"  +", line[0].strip())


Run = tuple[tuple[str, ...], tuple[str, ...]]
"""Arguments, and words of what is then printed."""

MODEL, WORDY = "liquid-tiny", "wordy"
TRAINED = ("--max_steps", "1", "--dataset_size", "64", "--report_to", "none")
TRAINING = ("--model_name_or_path", MODEL, "--output_dir", "run", *TRAINED)
TOKENS = ("--tokenizer", MODEL, "--suite", MODEL)
BUILT = ("--model", "b", "--suite", "b.yaml")

RUNS: dict[str, Run] = {
    "recipes/kto.py": (("--config", str(ROOT / "recipes/liquid-tiny/kto.yaml"), *TRAINING), ()),
    "recipes/rloo.py": (("--config", str(ROOT / "recipes/liquid-tiny/rloo.yaml"), *TRAINING), ()),
    "scripts/build_liquid_tiny.py": (("--world-only", *BUILT), ("mean 0.47",)),
    "scripts/estimate_cost.py": (
        (*TOKENS, "--scan", "4", "--rate", "1.15e11"),
        ("weights in bf16", "peak on a GPU", "Llama 3 8B"),
    ),
    "scripts/gpu_check.py": (
        ("--tiny", "--only", "precision", "training", "memory"),
        ("liquid-tiny, tree, float32", "equal weights: yes", "simulated", '"rows": '),
    ),
    "scripts/measure_coverage.py": (
        (MODEL, "raw", "--suite", "liquid-tiny", "--wordings", "2"),
        ("measurable tasks", "15 of 15", '"all_forms"'),
    ),
    "scripts/measure_diversity.py": (
        (MODEL,),
        ("| model | suite | branching factor | β diversity", f"| {MODEL} | liquid-tiny | "),
    ),
    "scripts/measure_memory.py": (
        (MODEL,),
        ("peak without the callback", "peak with it", "allowed", '"reference": '),
    ),
    "scripts/measure_precision.py": (
        ("--prompts", "1"),
        ("bf16 layers, answers in float32", "bf16 logits", '"errors": '),
    ),
    "scripts/measure_report.py": (("--records", "5", "--small"), ("detect_s", "page_mb")),
    "scripts/measure_verdicts.py": (("1",), ("held out", "right", "wrong", "open", "chain")),
    "scripts/no_trace/faults.py": (
        ("--only", "failing_probe"),
        ("what the user sees", '"ok": true'),
    ),
    "scripts/sweep_beta.py": (
        ("--output", "sweep", "--betas", "0.1", "1", "--seeds", "0", *TRAINED),
        (
            "2/2 beta1-seed0",
            *heads("scripts/README.md", "against beta"),
            *("transition width, steps", "heat capacity at the end", "susceptibility in it"),
        ),
    ),
    "crystalmon context": (
        (WORDY, "--levels", "8", "--count", "1", "-o", "out"),
        ("best shape by BIC", "code-word"),
    ),
    "crystalmon drift": ((WORDY, "--tokens", "88", "-o", "out"), ("slope, nats per token",)),
    "crystalmon landscape": (
        (WORDY, "--base", WORDY, "--tokens", "2", "-o", "out"),
        ("nats per token",),
    ),
}
"""By command: how it runs at its smallest size."""

SLOW_RUNS: dict[str, Run] = {
    "scripts/build_liquid_tiny.py": (
        ("--steps", "1", "--batch", "8", *BUILT),
        ("liquidity_truth", '"parameters": '),
    ),
    "scripts/estimate_cost.py": ((), ("TFLOP a probe", "share of FLOPs", '"OLMo 2 7B": {')),
    "scripts/gpu_check.py": (
        ("--tiny", "--repeats", "1"),
        ("a training step of", "tree, float32, 2 wordings", "× its forward pass"),
    ),
    "scripts/no_trace/faults.py": ((), ("out of memory", "a torn line, then resumed")),
}
"""Those that do more at a larger one."""

RUN_BY = {
    "recipes/dpo.py": "test_recipes.py::test_sft_then_dpo_keep_the_pretrained_base",
    "recipes/grpo.py": "test_documented_commands.py::test_the_demo_and_what_it_says_to_run_next",
    "recipes/ppo.py": "test_ppo.py::test_ppo_runs_and_keeps_the_base",
    "recipes/sft.py": "test_recipes.py::test_sft_then_dpo_keep_the_pretrained_base",
    "scripts/architectures.py": (
        "test_architectures_table.py::test_two_architectures_are_exact_in_every_state"
    ),
    "scripts/benchmark.py": "test_benchmark.py::test_it_prints_a_table_and_a_line",
    "scripts/benchmark_scaling.py": "test_benchmark.py::test_scaling_measures_time_and_memory",
    "scripts/benchmark_budget.py": "test_documented_commands.py::test_schedules_are_compared",
    "scripts/calibrate_seeds.py": "test_documented_commands.py::test_the_detector_is_measured",
    "scripts/demo.py": "test_documented_commands.py::test_the_demo_and_what_it_says_to_run_next",
    "scripts/measure_few.py": "test_real_results.py::test_few_wordings_are_held_against_all",
    "scripts/measure_scan_memory.py": "test_documented_commands.py::test_the_memory_of_a_scan",
    "scripts/no_trace/check.py": "test_no_trace.py::test_two_processes_give_the_record_of_one",
    "scripts/no_trace/train.py": "test_no_trace.py::test_two_processes_give_the_record_of_one",
    "scripts/study.py": "test_documented_commands.py::test_the_study_from_its_bases_to_its_report",
    "scripts/real_results.py": "test_real_results.py::test_what_is_kept_shows_the_same",
    "scripts/study_real.py": "test_documented_commands.py::test_the_study_of_a_real_base",
    "scripts/trained_bank.py": "test_documented_commands.py::test_the_detector_is_measured",
    "scripts/validate_detection.py": "test_documented_commands.py::test_the_detector_is_measured",
    "crystalmon cache": "test_base_cache.py::test_the_command_lists_and_clears",
    "crystalmon cost": "test_cost.py::test_the_command_prints_it",
    "crystalmon detect": "test_replay.py::test_the_command_prints_words_or_json",
    "crystalmon export": "test_frames.py::test_a_table_comes_back_as_the_frame",
    "crystalmon predictions": "test_cli_experiments.py::test_predictions_on_results",
    "crystalmon probe": "test_cli.py::test_probe_prints_a_row_per_task",
    "crystalmon report": "test_cli_experiments.py::test_the_report_shows_a_folder_of_results",
    "crystalmon run": "test_launch.py::test_what_trains_untouched_trains_as_without",
    "crystalmon scan": "test_scan.py::test_the_command_says_what_is_missing_and_its_status",
    "crystalmon send": "test_send.py::test_tensorboard_gets_every_stage_of_a_scan",
    "crystalmon sharpness": "test_cli_experiments.py::test_sharpness_needs_only_run_folders",
    "crystalmon suite import": (
        "test_own_suite.py::test_rows_become_tasks_and_say_what_they_can_measure"
    ),
    "crystalmon suite list": "test_cli.py::test_suite_commands",
    "crystalmon suite new": "test_own_suite.py::test_a_drafted_file_is_a_suite_at_once",
    "crystalmon suite show": "test_cli.py::test_suite_commands",
    "crystalmon suite validate": "test_cli.py::test_suite_commands",
    "crystalmon summary": "test_cli.py::test_summary_prints_the_table_and_draws",
    "crystalmon temperature": "test_cli_experiments.py::test_temperature_writes_what_it_prints",
    "crystalmon transfer": "test_transfer.py::test_what_cannot_be_compared_is_one_sentence",
    "crystalmon watch": "test_watch.py::test_a_pipe_gets_the_screen_once_per_probe",
    "crystalmon workspace": "test_workspace.py::test_the_command_checks_without_saving",
}
"""By command: the test that runs it, elsewhere or below."""


def test_each_command_has_its_run():
    there = {*SCRIPTS, *(f"crystalmon {name}" for name in COMMANDS)}
    assert not RUNS.keys() & RUN_BY.keys()
    assert RUNS.keys() | RUN_BY.keys() == there


@pytest.mark.parametrize("command", RUN_BY)
def test_the_test_that_runs_it_is_there(command):
    file, _, name = RUN_BY[command].partition("::")
    text = (TESTS / file).read_text()
    assert name in {node.name for node in ast.parse(text).body
                    if isinstance(node, ast.FunctionDef)}  # fmt: skip
    said = Path(command).stem if command.endswith(".py") else command.split()[-1]
    assert re.search(rf"[\"'/]{said}[\"'.]|{said}\.(main|py)", text), f"{file} runs no {command}"


# --- what documents name ---------------------------------------------------------------------

START = r"(?:python|accelerate launch|crystalmon|make)\s"


def lines_of(page: Path) -> list[str]:
    """The command lines of a page: in its blocks of code and its inline code, or in comments."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if page.suffix == ".py":
        blocks, inline = [ast.get_docstring(ast.parse(text)) or ""], ""
    elif page.suffix == ".md":
        blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
        inline = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    else:
        comments = re.findall(r"^# *(?:(make [\w-]+):)?(.*)", text, flags=re.MULTILINE)
        blocks, inline = ["\n".join(target or words for target, words in comments)], ""
    found = [
        line
        for block in blocks
        for line in re.sub(r"\\\n", " ", block).splitlines()
        if re.match(rf"\s*{START}", line)
    ]
    return found + [" ".join(each.split()) for each in re.findall(rf"`({START}[^`]+)`", inline)]


DOCUMENTS = [*PAGES, *map(Path, SCRIPTS), *SETTINGS, Path("Makefile")]
LINES = [(page, line.strip()) for page in DOCUMENTS for line in lines_of(page)]


def words_of(line: str) -> list[str]:
    """A line's words; an option in brackets is given."""
    return shlex.split(re.sub(r"[\[\]]", "", line), comments=True)


def named(line: str) -> tuple[str, list[str]]:
    """(what a line runs, by its name in the tables or `make`; its arguments)."""
    words = words_of(line)
    if words[0] == "crystalmon":
        size = 3 if words[1] == "suite" and len(words) > 2 else 2
        return " ".join(words[:size]), words[size:]
    if words[0] == "make":
        return "make", words[1:]
    at = next(i for i, word in enumerate(words) if word.endswith(".py"))
    return words[at], words[at + 1 :]


def test_documents_name_commands():
    """The search finds what is known to be there."""
    found = {named(line)[0] for _, line in LINES}
    assert {"make", "crystalmon cost", "crystalmon suite", "recipes/sft.py"} <= found
    assert "scripts/no_trace/faults.py" in found
    assert len(LINES) > 90


@pytest.mark.parametrize(("page", "line"), LINES, ids=lambda value: str(value))
def test_what_a_document_names_is_run(page, line):
    name, arguments = named(line)
    if name == "make":
        target = arguments[0]
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif name == "crystalmon suite":
        assert name + " list" in RUN_BY
    else:
        assert name in RUNS or name in RUN_BY


class Parsed(Exception):
    """The arguments were read."""


def check_line(monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    """Fail if the command that a line names does not know the line's options."""
    name, arguments = named(line)
    if name.startswith("crystalmon"):
        _, _, command = name.partition(" ")
        words, _, options = COMMANDS[command]
        monkeypatch.setitem(COMMANDS, command, (words, lambda args: 77, options))
        assert main([*command.split(), *arguments]) == 77
        return

    known = argparse.ArgumentParser.parse_known_args

    def stop(parser, *given, **more):
        _, rest = known(parser, *given, **more)
        if "--max_steps" not in rest:  # which goes to a recipe
            assert rest == []
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
    with pytest.raises(Parsed):
        execute([str(ROOT / name), *arguments])


WHOLE = {
    *(
        line
        for _, line in LINES
        if not line.startswith("make") and "…" not in line and len(words_of(line)) > 2
    ),
    # without arguments, of which some scripts need one
    *(f"python {name}" for name in SCRIPTS if not re.match(r"recipes|.*/train\.py", name)),
}
"""All lines that can be read as they stand."""


@pytest.mark.parametrize("line", sorted(WHOLE), ids=str)
def test_its_options_are_known(monkeypatch, line):
    if "ppo.py" in line:
        pytest.importorskip("trl.experimental.ppo")
    monkeypatch.chdir(ROOT)
    with in_process():
        check_line(monkeypatch, line)


# --- make ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target", re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
)
def test_what_a_target_runs_is_run(target):
    done = subprocess.run(
        ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in re.findall(r"(?:scripts|recipes|tests)/[\w/]+\.py", done.stdout):
        assert name in RUNS or name in RUN_BY or (ROOT / name).is_file(), name


# --- the runs at the smallest size -----------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch) -> Iterator[Path]:
    """A folder of its own, and no process but this one."""
    monkeypatch.chdir(tmp_path)
    with in_process():
        yield tmp_path


def start(command: str, *arguments: str) -> int:
    if command.startswith("crystalmon"):
        return main([*command.split()[1:], *arguments])
    return execute([str(ROOT / command), *arguments])


def save_wordy(folder: Path) -> None:
    """A model of random weights to which a word is a token, with room for many words."""
    data = (ROOT / "crystalmon/experiments/common/data/conflicts.yaml").read_text()
    words = ["<unk>", "<eos>", *sorted(set(re.findall(r"\w+|[^\w\s]+", data)))]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens: dict[str, Any] = {"eos_token": "<eos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **tokens).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=1024,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        *(pytest.param(command, *run, id=command) for command, run in RUNS.items()),
        *(
            pytest.param(command, *run, id=f"{command}, whole", marks=pytest.mark.slow)
            for command, run in SLOW_RUNS.items()
        ),
    ],
)
def test_it_runs(here, capsys, command, arguments, words):
    if WORDY in arguments:
        save_wordy(here / WORDY)
    assert start(command, *arguments) == 0
    printed = capsys.readouterr().out
    for word in words:
        assert word in printed
    if command.startswith("recipes"):
        assert len((here / "run/crystalmon/records.jsonl").read_text().splitlines()) == 2


def test_the_demo_and_what_it_says_to_run_next(here, capsys, monkeypatch):
    assert start("scripts/demo.py", "--output", "demo", *TRAINED) == 0
    printed = capsys.readouterr().out
    for head in heads("README.md", "stage  "):
        assert head in printed
    assert "planted seed found (=) in" in printed
    assert (here / "demo/report.html").stat().st_size > 100_000
    said = [line.strip() for line in printed.splitlines() if re.match(rf"  {START}", line)]
    assert {named(line)[0] for line in said} == {
        "crystalmon send",
        "crystalmon summary",
        "crystalmon probe",
        "recipes/sft.py",
    }
    monkeypatch.chdir(ROOT)
    for line in said:
        check_line(monkeypatch, line)


def framed(text: str) -> set[str]:
    """The words of the column headings of a table in a frame."""
    return set(re.findall(r"[^┃\s]+", " ".join(re.findall(r"^┃.*┃$", text, re.MULTILINE))))


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("crystalmon probe", (MODEL, "--suite", MODEL)),
        ("scripts/benchmark.py", ("--parts", "crystalmon", "floor", "--repeats", "1")),
    ],
)
def test_its_table_has_the_columns_that_the_page_shows(here, capsys, command, arguments):
    assert start(command, *arguments) == 0
    page = (ROOT / "scripts/README.md").read_text()
    shown = [framed(block) for block in re.findall(r"^┏.*?^└", page, re.MULTILINE | re.DOTALL)]
    assert framed(capsys.readouterr().out) in shown


def test_the_memory_of_a_scan(here, capsys):
    # whether it is little enough can only be told in processes of their own
    assert start("scripts/measure_scan_memory.py", MODEL) in (0, 1)
    printed = capsys.readouterr().out
    assert "one model, loaded and probed once" in printed
    assert json.loads(printed.splitlines()[-1])["model"] == MODEL


def test_the_detector_is_measured(here, capsys, monkeypatch):
    import trained_bank

    plan = trained_bank.Plan("collapse", (trained_bank.Stage("sft", "seed", 1e-3, 10),))
    reported, calibrated = (
        trained_bank.Bank(Path(f"runs/{folder}/trained"), trained_bank.FIRST, ((plan, 1),))
        for folder in ("validation", "calibration")
    )
    monkeypatch.setattr(trained_bank, "REPORTED", reported)
    monkeypatch.setattr(trained_bank, "CALIBRATED", (calibrated,))
    monkeypatch.setattr(trained_bank, "BANKS", {"reported": (reported,)})
    monkeypatch.setattr(sys, "argv", ["trained_bank.py", "--count", "1"])
    assert trained_bank.main() == 0
    assert "1 runs in runs/validation/trained" in capsys.readouterr().out

    rng = np.random.default_rng(0)
    np.savez("runs/validation/smollm2.npz", coin=rng.dirichlet([0.4, 0.4], 24))
    numbers = {"positives": len(KINDS), "nulls": len(NULL_KINDS), "held-out": 3, "trained": 1}
    given = [part for key, value in numbers.items() for part in (f"--{key}", str(value))]
    assert start("scripts/validate_detection.py", *given) == 0
    printed = capsys.readouterr().out
    for words in (
        "nulls with any false event",
        "onsets found",
        "complete: truth in the set at the end",
        "seedless, named so",
        "held out, SmolLM2 bases: 1 nulls, 1 positives",
        "trained: 1 runs of liquid-tiny, 15 task histories",
    ):
        assert words in printed
    assert json.loads(printed.splitlines()[-1])["kinds"]
    assert start("scripts/validate_detection.py", "--stress", "500") == 0

    assert start("scripts/calibrate_seeds.py", "--scenarios", "1", "--runs", "1") == 0
    printed = capsys.readouterr().out
    assert "WEIGHTS[True] = Weights(" in printed
    assert "NONE_BOUNDS[(False, False)] = (" in printed


@pytest.mark.slow
def test_the_study_from_its_bases_to_its_report(here, capsys):
    base = here / "study/B/base"
    shutil.copytree(ROOT / "crystalmon/assets/liquid-tiny", base)
    (base / "study.json").write_text("built")
    # what was planted is not found after one step
    assert start("scripts/study.py", "--output", "study", *TRAINED) == 1
    told = capsys.readouterr()
    for first in ("family  ", "stage  "):
        for head in heads("scripts/README.md", first):
            assert head in told.out
    assert "not as planted: the seeds of A in B" in told.err
    assert (here / "study/report.html").is_file()


def test_the_study_of_a_real_base(here, capsys):
    rows = {
        "instructions": [
            {"prompt": f"Is {n} odd?", "completion": ["no", "yes"][n % 2], "source": "t0"}
            for n in range(32)
        ],
        "preferences": [
            {"prompt": f"Say {n}.", "chosen": f"{n}", "rejected": "no"} for n in range(32)
        ],
    }
    for name, made in rows.items():
        with gzip.open(here / f"{name}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in made)
    arguments = ["--data", str(here), "--output", str(here / "real"), "--model", MODEL]
    arguments += ["--chains", "short-0", "--suite", "liquid-tiny", "--max_steps", "1"]
    assert start("scripts/study_real.py", *arguments) == 0
    for stage in ("1-sft", "2-dpo", "3-grpo"):
        for folder in ("crystalmon", "crystalmon-template"):
            records = here / "real/short-0" / stage / folder / "records.jsonl"
            assert len(records.read_text().splitlines()) == 2
    capsys.readouterr()
    assert start("scripts/study_real.py", *arguments) == 0
    assert capsys.readouterr().out == ""  # what is trained is not trained again


def test_schedules_are_compared(here, capsys):
    """On a stored run of made-up answers: `test_the_detector_is_measured` trains for a bank."""
    stored, base = here / "runs/budget/trained/test-early-0", liquid_base()
    write_stages(stored / "0-sft", base, [at_seed(base, n / 10) for n in range(1, 11)])
    (stored / "truth.json").write_text("{}")
    assert start("scripts/benchmark_budget.py", "--count", "1", "--figure", "frontier.png") == 0
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith("| ")]
    assert "1 runs of 10 steps" in printed
    assert [row.split(" | ")[0] for row in rows] == ["| limit", "| ---"] + [
        f"| {limit}" for limit in ("none", "0.5%", "1%", "2%", "5%") for _ in range(2)
    ]
    assert (here / "frontier.png").stat().st_size > 10_000
    assert len(json.loads(printed.splitlines()[-1])["stored"]) == 10


@pytest.mark.slow
def test_a_limit_is_tried_live(tmp_path, capsys, monkeypatch):
    import budget_live

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(budget_live, "CONFIG", ROOT / "recipes/liquid-tiny/sft.yaml")
    (row,) = budget_live.live_rows(30)
    assert row["probes"] >= 5
    assert 0 < row["onset_at_every_step"] <= row["onset"] <= 30
    assert "limit 2%: spent" in capsys.readouterr().out
