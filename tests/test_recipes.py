"""The recipes: every config parses into its recipe's arguments, and the scripts run."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import trl
import yaml
from in_process import execute, in_process
from readback import read_tensorboard, read_wandb, wandb_history

from crystalmon import load_suite, read_run
from crystalmon.synthetic import load_targets, sft_rows
from crystalmon.trackers.base import tracker_metrics

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "recipes"
CONFIGS = sorted(path.relative_to(RECIPES).as_posix() for path in RECIPES.glob("*/*.yaml"))
TRAINING = [name for name in CONFIGS if Path(name).stem in ("sft", "dpo", "grpo", "rloo", "kto")]
HAS_PPO = (Path(trl.__file__).parent / "experimental" / "ppo").is_dir()


def run_recipe(name, *arguments):
    """Run a recipe as a user would, from the repository's root."""
    command = [sys.executable, str(RECIPES / name), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def run_here(name, *arguments):
    """Run a recipe in this process."""
    with in_process():
        assert execute([str(RECIPES / name), *map(str, arguments)]) == 0


@pytest.fixture
def common(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    return importlib.import_module("common")


def parse(common, monkeypatch, trainer, config, *arguments):
    monkeypatch.setattr(sys, "argv", ["recipe", "--config", str(config), *arguments])
    return common.parse(getattr(trl, f"{trainer.upper()}Config"))


# ---------------------------------------------------------------- configs


def test_every_trainer_has_its_configs():
    found = {path.parent.name: set() for path in RECIPES.glob("*/*.yaml")}
    for name in CONFIGS:
        found[Path(name).parent.name].add(Path(name).stem)
    every = {"sft", "dpo", "grpo", "rloo", "kto", "ppo"}
    assert found["liquid-tiny"] == every
    assert found["smollm2"] == every | {"targets"}
    assert found["olmo2"] == found["tulu3"] == {"sft", "dpo", "grpo"}


@pytest.mark.parametrize("name", TRAINING)
def test_config_parses(common, monkeypatch, tmp_path, name):
    config = yaml.safe_load((RECIPES / name).read_text())
    # bf16 needs an accelerator, which a GPU config may take for granted and this test may not
    arguments = ["--output_dir", str(tmp_path), "--bf16", "false"]
    # parsing sets the config's environment variables: put back what was there
    for key in config.get("env", {}):
        monkeypatch.setenv(key, os.environ.get(key, ""))
    data, args, model, monitor = parse(
        common, monkeypatch, Path(name).stem, RECIPES / name, *arguments
    )
    assert model.model_name_or_path == config["model_name_or_path"]
    assert data.dataset_name == config["dataset_name"]
    assert args.learning_rate == config["learning_rate"] > 0
    assert args.report_to == config["report_to"]
    load_suite(monitor.suite)
    if data.dataset_name == "planted":
        load_targets(data.targets if data.targets == "liquid-tiny" else ROOT / data.targets)


def test_unknown_key_is_refused(common, monkeypatch, tmp_path):
    config = tmp_path / "sft.yaml"
    config.write_text("{probe_evry: 3, bf16: false}")
    with pytest.raises(ValueError, match="probe_evry"):
        parse(common, monkeypatch, "sft", config)


def test_command_line_overrides_config(common, monkeypatch, tmp_path):
    config = tmp_path / "sft.yaml"
    config.write_text(
        "probe_every: 3\ntargets: a.yaml\nbf16: false\nactivation_checkpointing: true"
    )
    arguments = ["--output_dir", str(tmp_path), "--probe_every", "7"]
    data, _, _, monitor = parse(common, monkeypatch, "sft", config, *arguments)
    assert (data.targets, monitor.probe_every) == ("a.yaml", 7)


def test_smollm2_targets_fit_the_suite():
    suite = load_suite("randomness")
    targets = load_targets(RECIPES / "smollm2" / "targets.yaml")
    assert set(targets) == {task.name for task in suite}
    assert len(sft_rows(suite, targets, 30, 0, "suite")) == 30  # refuses choices it does not know


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "zero2", "zero3"])
def test_accelerate_config_is_known_to_accelerate(name):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(RECIPES / "accelerate" / f"{name}.yaml"))
    assert config.num_processes == 8


# ---------------------------------------------------------------- data and reward


def test_rows_from_a_json_file(common, tmp_path):
    rows = [{"prompt": "a", "completion": " b"}, {"prompt": "c", "completion": " d"}]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    data = common.DataArguments(dataset_name=str(file))
    assert common.load_rows(data, "liquid-tiny", sft_rows, seed=0).to_list() == rows


def test_prompts_of_a_chat_dataset_are_its_messages(common, tmp_path):
    messages = [{"role": "user", "content": "1 + 1?"}]
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"messages": messages, "ground_truth": "2"}))
    rows = common.load_prompts(common.DataArguments(dataset_name=str(file)), "liquid-tiny", seed=0)
    assert rows.to_list() == [{"prompt": messages, "ground_truth": "2"}]


def test_last_number_is_gsm8ks_rule(common):
    answers = ["5 + 7 = 12", "12, or rather 13.", "so 1,200.0 in all", "none", "-3", "3"]
    truths = ["12", "12", "1,200", "0", "-3", "-3"]
    assert common.last_number(answers, truths) == [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]
    chat = [[{"role": "assistant", "content": "It is 4."}]]
    assert common.last_number(chat, ["4"], dataset=["gsm8k"]) == [1.0]


def test_reward_by_name(common):
    planted = common.make_reward(common.DataArguments(), "liquid-tiny")
    assert planted(["p"], [" no choice"], task=["coin"])[0] < 0
    data = common.DataArguments(reward="last_number")
    assert common.make_reward(data, "liquid-tiny") is common.last_number


# ---------------------------------------------------------------- the scripts


@pytest.mark.filterwarnings("ignore")
def test_sft_then_dpo_keep_the_pretrained_base(tmp_path):
    short = ("--max_steps", 2, "--dataset_size", 64, "--probe_every", 1, "--report_to", "none")
    config = RECIPES / "liquid-tiny" / "sft.yaml"
    run_here("sft.py", "--config", config, "--output_dir", tmp_path / "a", *short)
    start = ("--model_name_or_path", tmp_path / "a", "--output_dir", tmp_path / "b")
    config = RECIPES / "liquid-tiny" / "dpo.yaml"
    run_here("dpo.py", "--config", config, *start, *short)

    first, second = read_run(tmp_path / "a"), read_run(tmp_path / "b")
    assert [record.step for record in first.records] == [0, 1, 2]
    assert first.records[0].metrics["order"] == pytest.approx(0, abs=1e-6)
    assert second.info["reference"] == first.info["reference"]
    # the second stage begins where the first ended, as seen from the same base
    moved = first.records[-1].metrics["order"]
    assert moved != 0
    assert second.records[0].metrics["order"] == pytest.approx(moved, abs=1e-3)


def assert_trackers_hold_every_metric(output, wandb_dir):
    """Every metric of every probe is in wandb's and TensorBoard's files, at its step."""
    run = read_run(output)
    rows = {row["train/global_step"]: row for row in wandb_history(read_wandb(wandb_dir))
            if "crystalmon/order" in row}  # fmt: skip
    (folder,) = (output / "runs").rglob("crystalmon")
    board = read_tensorboard(folder)
    for record in run.records:
        for key, value in tracker_metrics(record).items():
            assert rows[record.step][key] == pytest.approx(value, nan_ok=True), key
            found = {event.step: event.value for event in board.Scalars(key)}[record.step]
            assert found == pytest.approx(value, rel=1e-5, nan_ok=True), key
    return run


@pytest.mark.parametrize(
    ("folder", "arguments", "steps", "probes"),
    [
        ("liquid-tiny", ("--max_steps", 3, "--probe_every", 1), 3, 4),
        pytest.param("smollm2", (), 40, 5, marks=pytest.mark.slow),
    ],
)
def test_trackers_hold_every_metric_at_every_probe(
    tmp_path, monkeypatch, folder, arguments, steps, probes
):
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    config, output = RECIPES / folder / "sft.yaml", tmp_path / "run"
    done = run_recipe("sft.py", "--config", config, "--output_dir", output, *arguments)
    assert done.returncode == 0, done.stderr
    run = assert_trackers_hold_every_metric(output, tmp_path)
    assert len(run.records) == probes
    assert run.records[-1].step == steps


@pytest.mark.skipif(HAS_PPO, reason="this TRL has a PPO trainer")
def test_ppo_says_which_trl_it_needs(capsys):
    with in_process():
        assert execute([str(RECIPES / "ppo.py")]) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("recipes/ppo.py needs TRL 1.12")
    assert trl.__version__ in message
    assert "pip install -e '.[ppo]'" in message
