"""Training frameworks with pins of their own, by their own ways.

`make test-frameworks` runs each test in its framework's environment. No other command finds this
file, as its name does not begin with `test_`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from crystalmon import read_run

MODEL = Path(__file__).resolve().parents[1] / "crystalmon/assets/liquid-tiny"
BIN = Path(sys.executable).parent

LLAMA_FACTORY = f"""
model_name_or_path: {MODEL}
template: empty  # the prompt alone, as it is probed
stage: sft
finetuning_type: full
dataset: rows
dataset_dir: .
do_train: true
max_steps: 2
per_device_train_batch_size: 2
save_strategy: "no"
report_to: none
"""

RUN_EXP = """
import sys
import yaml
from llamafactory.train.tuner import run_exp
from crystalmon import CrystalCallback

args = yaml.safe_load(open("sft.yaml")) | {"output_dir": sys.argv[-1].partition("=")[2]}
run_exp(args, callbacks=[CrystalCallback("liquid-tiny", max_overhead=None)])
"""

SWIFT = f"""
swift sft --model {MODEL} --model_type llama --template dummy --tuner_type full
--torch_dtype float32 --dataset rows.jsonl --max_steps 2 --per_device_train_batch_size 2
--gradient_accumulation_steps 1 --report_to none --add_version false
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with rows that all frameworks read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(BIN), prepend=os.pathsep)
    monkeypatch.setenv("CRYSTALMON_SUITE", "liquid-tiny")
    monkeypatch.setenv("CRYSTALMON_MAX_OVERHEAD", "null")
    rows = [{"prompt": "Flip a coin:", "completion": [" heads", " tails"][n % 2]} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return tmp_path


def train(output, *command):
    """Train from a command whose last argument ends in the folder `output`; the weights."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing was monitored" not in done.stderr
    (file,) = Path(output).rglob("model.safetensors")
    return file.read_bytes()


def steps(output):
    return [record.step for record in read_run(Path(output)).records]


def test_llama_factory(folder):
    columns = {"prompt": "prompt", "response": "completion"}
    info = {"rows": {"file_name": "rows.jsonl", "columns": columns}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "sft.yaml").write_text(LLAMA_FACTORY)
    (folder / "train.py").write_text(RUN_EXP)
    command = ["llamafactory-cli", "train", "sft.yaml"]
    bare = train("bare", *command, "output_dir=bare")
    assert train("run", "crystalmon", "run", "--", *command, "output_dir=run") == bare
    assert train("own", "python", "train.py", "output_dir=own") == bare
    assert steps("run") == steps("own") == [0, 1, 2]


def test_ms_swift(folder):
    (folder / "plugin.py").write_text("import crystalmon.integrations.ms_swift\n")
    command = [*SWIFT.split(), "--output_dir"]
    plugin = ["--external_plugins", "plugin.py", "--callbacks", "crystalmon"]
    bare = train("bare", *command, "bare")
    assert train("run", "crystalmon", "run", "--", *command, "run") == bare
    assert train("own", *command[:-1], *plugin, "--output_dir", "own") == bare
    assert steps("run") == steps("own") == [0, 1, 2]


@pytest.mark.filterwarnings("ignore")  # of what it imports
def test_axolotl():
    """What Axolotl does with `plugins:`, by its own plugin manager; nothing is trained."""
    from axolotl.integrations.base import PluginManager

    from crystalmon import CrystalCallback

    manager = PluginManager.get_instance()
    manager.register("crystalmon.integrations.axolotl.CrystalPlugin")
    (callback,) = manager.add_callbacks_post_trainer({}, trainer=None)
    assert isinstance(callback, CrystalCallback)
    assert callback  # Axolotl leaves out what is false
