"""`crystalmon run`: the callback attached to programs that know nothing of it."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

from crystalmon.cli.main import main
from crystalmon.integrations.arguments import ARGUMENTS, read_arguments

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "crystalmon/assets/liquid-tiny"

# what trainers warn about is not this package's
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def run(monkeypatch, capfd):
    """`crystalmon run` in this environment; its status, and what all processes have printed."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def call(*arguments, **variables):
        for name, text in variables.items():
            monkeypatch.setenv(name, text)
        status = main(["run", *map(str, arguments)])
        return status, *capfd.readouterr()

    return call


# --- the arguments ---------------------------------------------------------------------------


def test_every_argument_of_the_callback_can_be_set():
    from crystalmon import CrystalCallback

    assert list(ARGUMENTS) == list(inspect.signature(CrystalCallback).parameters)


def test_a_variable_goes_before_the_file(tmp_path):
    file = tmp_path / "monitor.yaml"
    file.write_text("suite: liquid-tiny\nevery: 0.1\nview: [raw, chat]\n")
    found = read_arguments({"CRYSTALMON_CONFIG": str(file), "CRYSTALMON_EVERY": "5", "PATH": "/"})
    assert found == {"suite": "liquid-tiny", "every": 5.0, "view": ["raw", "chat"]}
    file.write_text("")
    assert read_arguments({"CRYSTALMON_CONFIG": str(file)}) == {}


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("suite", "off", "off"),
        ("every", "1e-2", 0.01),
        ("max_overhead", "null", None),
        ("strict", "true", True),
        ("verbose", "no", False),
        ("limits", "{free_energy: 2}", {"free_energy": 2}),
        ("view", r"Q: {prompt}\nA:", "Q: {prompt}\nA:"),
        ("view", "[raw, chat]", ["raw", "chat"]),
    ],
)
def test_a_text_becomes_the_value_that_it_stands_for(name, text, value):
    assert read_arguments({f"CRYSTALMON_{name.upper()}": text}) == {name: value}
    assert read_arguments({f"CRYSTALMON_{name.upper()}": ""}) == {}


@pytest.mark.parametrize(
    ("variable", "text", "words"),
    [
        ("CRYSTALMON_EVERY", "often", ("CRYSTALMON_EVERY", "number", "'often'")),
        ("CRYSTALMON_STRICT", "1", ("CRYSTALMON_STRICT", "true or false", "'1'")),
        ("CRYSTALMON_LIMITS", "free_energy", ("CRYSTALMON_LIMITS", "mapping", "'free_energy'")),
        ("CRYSTALMON_ACTIONS", "{", ("CRYSTALMON_ACTIONS", "mapping", "'{'")),
        ("CRYSTALMON_EVRY", "5", ("CRYSTALMON_EVRY", "Did you mean every?")),
        ("CRYSTALMON_XYZ", "5", ("CRYSTALMON_XYZ", "suite", "verbose")),
        ("CRYSTALMON_MAX_OVERHEAD", "3", ("max_overhead", "3")),
        ("CRYSTALMON_SUITE", "nothing", ("suite", "'nothing'")),
        ("CRYSTALMON_CONFIG", "nothing.yaml", ("nothing.yaml",)),
    ],
)
def test_bad_settings_are_refused_before_anything_starts(run, tmp_path, variable, text, words):
    started = tmp_path / "started"
    status, _, err = run("--", "touch", started, **{variable: text})
    assert status == 2
    assert not started.exists()
    assert err.count("\n") == 1
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    ("content", "words"),
    [("evry: 5", "Did you mean every?"), ("- 5", "mapping"), ("every: [", "not valid YAML")],
)
def test_a_bad_file_is_named(run, tmp_path, content, words):
    file = tmp_path / "monitor.yaml"
    file.write_text(content)
    status, _, err = run("--config", file, "--", "true")
    assert (status, err.count("\n")) == (2, 1)
    assert str(file) in err
    assert words in err


# --- the command -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ((sys.executable, "-c", "raise SystemExit(7)"), 7),
        (("sh", "-c", "kill -TERM $$"), 143),
        (("nothing-of-this-name",), 127),
        ((str(ROOT / "pyproject.toml"),), 126),
        ((), 2),
    ],
)
def test_the_status_is_the_commands_own(run, command, status):
    assert run("--", *command)[0] == status


def test_without_a_command_it_says_how(run):
    assert "python train.py" in run()[2]
    assert "nothing-of-this-name" in run("--", "nothing-of-this-name")[2]


def test_options_of_the_command_are_left_alone(run):
    code = "import sys; print(sys.argv[1:])"
    status, out, _ = run("--", sys.executable, "-c", code, "--config", "own.yaml", "--", "-x")
    assert status == 0
    assert out.strip() == "['--config', 'own.yaml', '--', '-x']"


def test_it_ends_when_it_is_asked_to():
    """A scheduler's SIGTERM reaches the program, and its status comes back."""
    code = "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)"
    command = [sys.executable, "-m", "crystalmon", "run", "--", sys.executable, "-c", code]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 143


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (("-c", "1"), "no trainer of transformers"),
        (("-I", "-c", "1"), "PYTHONPATH"),
    ],
)
def test_it_says_in_one_line_that_nothing_was_monitored(run, command, why):
    status, _, err = run("--", sys.executable, *command)
    assert status == 0
    assert err.count("\n") == 1
    assert f"nothing was monitored: {'' if why == 'PYTHONPATH' else why}" in err
    assert why in err


# --- each Python process in it ---------------------------------------------------------------

HANDLER = """
class DefaultFlowCallback: pass
class CallbackHandler:
    def on_train_begin(self): pass
"""

LOOK = """
import sys
first = "crystalmon" in sys.modules
from transformers.trainer_callback import CallbackHandler
print(first, hasattr(CallbackHandler.on_train_begin, "__wrapped__"))
"""


@pytest.fixture
def library(tmp_path, monkeypatch):
    """The working folder, with a `transformers` of two classes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "transformers").mkdir()
    (tmp_path / "transformers/__init__.py").touch()
    (tmp_path / "transformers/trainer_callback.py").write_text(HANDLER)
    return tmp_path


def test_a_process_is_reached_when_it_imports_the_trainer(run, library, monkeypatch):
    paths = os.pathsep.join([str(library), str(ROOT)])
    own = [sys.executable, "-c", LOOK]
    child = [sys.executable, "-c", f"import subprocess; subprocess.run({own!r}, check=True)"]
    for command in (own, child):
        assert run("--", *command, PYTHONPATH=paths)[:2] == (0, "False True\n")


def test_the_sitecustomize_that_was_there_runs_too(run, library):
    (library / "sitecustomize.py").write_text("print('theirs')")
    code = (
        "import sitecustomize, sys; print(sitecustomize.__file__); " + LOOK.replace("\n", ";")[1:]
    )
    paths = os.pathsep.join([str(library), str(ROOT)])
    _, out, _ = run("--", sys.executable, "-c", code, PYTHONPATH=paths)
    assert out.split() == ["theirs", str(library / "sitecustomize.py"), "False", "True"]


def test_a_python_without_crystalmon_trains_unmonitored_and_says_so(run, library):
    (library / "crystalmon.py").write_text("raise ModuleNotFoundError('No module: crystalmon')")
    status, out, err = run("--", sys.executable, "-c", LOOK, PYTHONPATH=str(library))
    assert (status, out) == (0, "False False\n")
    first, last = err.splitlines()
    assert sys.executable in first
    assert "cannot import crystalmon" in first
    assert "nothing was monitored" in last


# --- each trainer ----------------------------------------------------------------------------


@pytest.fixture
def told(monkeypatch):
    """Attaches the callback in this process for one test; what a process would note."""
    from transformers import trainer_callback

    from crystalmon.integrations.attach import attach

    handler = trainer_callback.CallbackHandler
    monkeypatch.setattr(handler, "on_train_begin", handler.on_train_begin)
    monkeypatch.setenv("CRYSTALMON_SUITE", "liquid-tiny")
    monkeypatch.setenv("CRYSTALMON_VERBOSE", "false")
    notes = []
    attach(trainer_callback, notes.append)
    return notes


def names_of(trainer):
    return [type(each).__name__ for each in trainer.callback_handler.callbacks]


@pytest.fixture
def make_trainer(tmp_path, model, tokenizer, suite):
    from test_callback import make_trainer

    def make(callbacks, **options):
        options = {"max_steps": 1, **options}
        return make_trainer(tmp_path, model, tokenizer, suite, callbacks, **options)

    return make


def test_a_trainer_gets_one_callback_behind_its_reporters(told, make_trainer, tmp_path):
    from transformers import EarlyStoppingCallback

    pytest.importorskip("tensorboard")
    stopping = EarlyStoppingCallback()
    stopping.on_train_begin = lambda *given, **options: None  # it wants evaluations
    trainer = make_trainer([stopping], report_to="tensorboard")
    for _ in range(2):
        trainer.train()
        assert names_of(trainer)[:4] == [
            "DefaultFlowCallback",
            "TensorBoardCallback",
            "CrystalCallback",
            "EarlyStoppingCallback",
        ]
        assert names_of(trainer).count("CrystalCallback") == 1
    assert told == ["attached", "attached"]
    assert (tmp_path / "crystalmon/records.jsonl").is_file()
    assert not (tmp_path / "crystalmon-liquid-tiny").exists()
    assert list(tmp_path.rglob("crystalmon/events.out.tfevents.*"))


@pytest.mark.parametrize("late", [False, True], ids=["callbacks=", "add_callback"])
def test_a_trainer_with_a_callback_of_its_own_gets_no_second(told, make_trainer, suite, late):
    from crystalmon import CrystalCallback

    own = CrystalCallback(suite, verbose=False)
    trainer = make_trainer(None if late else [own])
    if late:
        trainer.add_callback(own)
    trainer.train()
    assert names_of(trainer).count("CrystalCallback") == 1
    assert own.last_step == 1
    assert told == ["attached"]


def unmeasurable_models():
    import torch
    from transformers import RwkvConfig, RwkvForCausalLM, T5Config, T5ForConditionalGeneration

    tiny = {"vocab_size": 16, "num_hidden_layers": 2}
    yield "head", torch.nn.Linear(2, 2)
    yield "decoder-only", T5ForConditionalGeneration(T5Config(**tiny, d_model=8, num_heads=2))
    yield "rescale", RwkvForCausalLM(RwkvConfig(**tiny, hidden_size=8, rescale_every=6))


@pytest.mark.parametrize("kind", ["head", "decoder-only", "rescale"])
def test_a_model_that_cannot_be_measured_trains_unmonitored(told, caplog, kind):
    from transformers import TrainerControl, TrainerState, TrainingArguments, trainer_callback

    flow, model = trainer_callback.DefaultFlowCallback, dict(unmeasurable_models())[kind]
    handler = trainer_callback.CallbackHandler([flow], model, None, None, None)
    args = TrainingArguments("unused", report_to="none", use_cpu=True)
    handler.on_train_begin(args, TrainerState(), TrainerControl())
    assert [type(each) for each in handler.callbacks] == [flow]
    assert told == ["refused"]
    assert "not monitored" in caplog.text
    assert kind in caplog.text


def test_what_only_running_the_model_shows_leaves_it_unmonitored_too(
    told, caplog, make_trainer, tmp_path, monkeypatch
):
    """As where ranks give different answers; callbacks after ours are still called."""
    from transformers import TrainerCallback

    from crystalmon.monitor import probe
    from crystalmon.scoring.models import UnsupportedModel

    def differ(*_):
        raise UnsupportedModel("ranks must give the same answers")

    class Later(TrainerCallback):
        began = ended = 0

        def on_train_begin(self, *_, **__):
            self.began += 1

        def on_train_end(self, *_, **__):
            self.ended += 1

    monkeypatch.setattr(probe, "probing_ranks", differ)
    trainer = make_trainer([later := Later()])
    trainer.train()
    assert (later.began, later.ended, trainer.state.global_step) == (1, 1, 1)
    assert "CrystalCallback" not in names_of(trainer)
    assert told == ["refused"]
    assert "not monitored: ranks must give the same answers" in caplog.text
    assert not list(tmp_path.rglob("records.jsonl"))


# --- the whole way ---------------------------------------------------------------------------

SCRIPT = """
import sys
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

model, folder = sys.argv[1:]
rows = [{"prompt": "Flip a coin:", "completion": [" heads", " tails"][n % 2]} for n in range(32)]
args = SFTConfig(folder, max_steps=2, per_device_train_batch_size=2, report_to="none", seed=3,
                 use_cpu=True, save_strategy="no", disable_tqdm=True)
trainer = SFTTrainer(model, args, train_dataset=Dataset.from_list(rows))
trainer.train()
trainer.save_model()
"""

TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2")
TRL_OPTIONS = "--max_steps 2 --per_device_train_batch_size 2 --bf16 false --report_to none"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["python", "torchrun", "trl"])
def test_what_trains_untouched_trains_as_without(run, tmp_path, launcher):
    from crystalmon import read_run

    script, data = tmp_path / "train.py", tmp_path / "data"
    script.write_text(SCRIPT)
    data.mkdir()
    (data / "rows.jsonl").write_text('{"prompt": "Flip a coin:", "completion": " heads"}\n' * 8)
    trl = f"sft --dataset_name {data} --model_name_or_path {MODEL} {TRL_OPTIONS} --output_dir"
    command = {
        "python": [sys.executable, script, MODEL],
        "torchrun": [sys.executable, *TORCHRUN, script, MODEL],
        "trl": [Path(sys.executable).with_name("trl"), *trl.split()],
    }[launcher]
    subprocess.run([*command, tmp_path / "bare"], check=True, capture_output=True)
    settings = {"CRYSTALMON_SUITE": "liquid-tiny", "CRYSTALMON_MAX_OVERHEAD": "null"}
    status, _, err = run("--", *command, tmp_path / "run", **settings)
    assert status == 0, err
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("bare", "run")]
    assert weights[0] == weights[1]
    assert [record.step for record in read_run(tmp_path / "run").records] == [0, 1, 2]
    assert "nothing was monitored" not in err
