"""One probe, from model to record."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import T5Config, T5ForConditionalGeneration

import crystalmon
from crystalmon.metrics.answers import answer_distributions, liquidity
from crystalmon.metrics.bootstrap import uniform_weights
from crystalmon.metrics.catalogue import tasks_in
from crystalmon.monitor.probe import Monitor
from crystalmon.runs.records import PHASES, ProbeRecord
from crystalmon.scoring.forward import Route, score_rows
from crystalmon.scoring.models import ASSETS_DIR
from crystalmon.scoring.score import score
from crystalmon.suites.tasks import Choice, Task, TaskSuite

SPEC_KEYS = {
    "coverage", "entropy", "entropy_mixture", "liquidity", "order", "seed_jsd", "seed_mse",
    "crystallinity", "crystal_fraction", "free_energy", "free_energy_choice",
    "free_energy_format", "compliance_entropy", "heat_capacity", "susceptibility",
}  # fmt: skip


def perturb(model, scale=0.3):
    """Shift the logits by a random vector per token, the same after every prompt."""
    torch.manual_seed(1)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.add_(torch.randn_like(layer.mlp.down_proj.weight) * scale)


@pytest.fixture
def monitor(model, tokenizer, suite):
    return Monitor(model, tokenizer, suite, "initial")


def test_identical_model_is_exactly_at_the_reference(monitor):
    record = monitor.probe(0)
    for key in ("free_energy", "free_energy_choice", "free_energy_format"):
        assert record.metrics[key] == 0.0
    assert record.metrics["order"] == pytest.approx(0.0, abs=1e-9)
    assert record.metrics["crystallinity"] == pytest.approx(0.0, abs=1e-7)
    assert record.phase == "liquid"


def test_every_metric_of_the_contract_with_an_interval_around_it(monitor, model):
    monitor.probe(0)
    perturb(model, 0.02)
    record = monitor.probe(1)
    assert set(record.metrics) >= SPEC_KEYS | {"dissimilarity_1"}
    assert sum(record.metrics[tasks_in(phase)] for phase in PHASES) == len(record.tasks)
    for task in record.tasks.values():
        assert set(task.metrics) >= SPEC_KEYS | {"seed"}
        known = {key: ends for key, ends in task.ci.items() if key != "seed_mass"}
        for key, (low, high) in known.items():
            assert low - 1e-9 <= task.metrics[key] <= high + 1e-9, key
    for key in SPEC_KEYS:
        low, high = record.ci[key]
        assert low - 1e-9 <= record.metrics[key] <= high + 1e-9, key
    assert record.metrics["free_energy"] > 0


def test_suite_values_are_means_over_tasks_and_ratios_of_means(monitor, model):
    perturb(model, 0.02)
    record = monitor.probe(0)
    tasks = [task.metrics for task in record.tasks.values()]
    for key in SPEC_KEYS - {"order", "crystallinity", "susceptibility"}:
        assert record.metrics[key] == pytest.approx(np.mean([task[key] for task in tasks])), key
    for key, part in (("order", "liquidity"), ("crystallinity", "seed_jsd")):
        of_base = np.mean([task[part] / (1 - task[key]) for task in tasks])
        assert record.metrics[key] == pytest.approx(1 - record.metrics[part] / of_base), key


def test_the_mass_on_a_seed_is_told_of_tasks_that_hold_one(monitor, model):
    base = monitor.base_q
    for step, share in enumerate([0.0, 0.5, *[1.0] * 8]):
        q = {name: (1 - share) * b + share * b[3] for name, b in base.items()}
        q["coin"] = base["coin"]
        found = monitor.course.measure(step, q, monitor.subsets[24], {})
        record = monitor.course.record(step, None, 0, 0, found, q, monitor.subsets[24])
        told = [n for n, task in record.tasks.items() if np.isfinite(task.metrics["seed_mass"])]
        assert told == [name for name, task in record.tasks.items() if task.seed is not None]
        assert ("seed_mass" in record.metrics) == bool(told)
    assert told
    assert "coin" not in told
    values = [record.tasks[name].metrics["seed_mass"] for name in told]
    assert record.metrics["seed_mass"] == pytest.approx(np.mean(values))


def test_metrics_follow_from_the_stored_q(monitor, suite):
    record = monitor.probe(0)
    for task in suite:
        found = record.tasks[task.name]
        assert found.q.shape == (len(task.prompts), len(task.choices))
        np.testing.assert_allclose(found.q.sum(axis=1), 1.0, atol=1e-7)
        expected = liquidity(found.q, uniform_weights(len(found.q)))
        assert found.metrics["liquidity"] == pytest.approx(float(expected), rel=1e-6)


def test_free_energy_is_the_mean_kl_over_the_vocabulary(monitor, model):
    before = torch.from_numpy(monitor.reference.log_p(np.arange(monitor.plan.num_prompts)))
    perturb(model, 0.05)
    record = monitor.probe(0)
    after = []
    model.eval()
    for row in monitor.plan.rows[: monitor.plan.num_prompts]:
        with torch.no_grad():
            after.append(model(torch.tensor([row])).logits[0, -1].double().log_softmax(-1))
    log_p = torch.stack(after)
    kl = (log_p.exp() * (log_p - before.double())).sum(-1).numpy()
    means = [kl[:24].mean(), kl[24:48].mean(), kl[48:].mean()]
    assert record.metrics["free_energy"] == pytest.approx(np.mean(means), rel=1e-4)


def test_record_survives_json(monitor):
    record = monitor.probe(3, epoch=0.5)
    line = json.dumps(record.to_json(), allow_nan=False)
    again = ProbeRecord.from_json(json.loads(line))
    assert again.to_json() == record.to_json()
    np.testing.assert_array_equal(again.tasks["coin"].q, record.tasks["coin"].q)


def test_nan_is_recorded_as_nan(monitor, model):
    monitor.probe(0)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    record = monitor.probe(1)
    assert np.isnan(record.metrics["entropy"])
    assert np.isnan(record.tasks["coin"].metrics["seed"])
    assert record.phase == "liquid"
    json.dumps(record.to_json(), allow_nan=False)


def test_a_step_cannot_be_probed_twice(monitor):
    monitor.probe(5)
    with pytest.raises(ValueError, match=r"larger than that of the last probe \(5\), got 5"):
        monitor.probe(5)


def test_a_missing_or_swapped_tokenizer_is_one_sentence(model, tokenizer, suite):
    with pytest.raises(TypeError, match="tokenizer must be a tokenizer or a processor, got None"):
        Monitor(model, None, suite, "initial")
    with pytest.raises(TypeError, match=r"model must be a torch module, got \w*Tokenizer\w*\."):
        Monitor(tokenizer, model, suite, "initial")


def test_already_ordered_task_takes_no_part(model, tokenizer, suite):
    lone = Task("lone", ("Pick a coin side:",), (Choice("heads"), Choice("tails")))
    mixed = TaskSuite("mixed", (suite["color"], lone))
    record = Monitor(model, tokenizer, mixed, "initial").probe(0)
    assert record.tasks["lone"].phase == "ordered"
    assert record.metrics["order"] == record.tasks["color"].metrics["order"]
    assert not np.isnan(record.metrics["crystallinity"])


def test_replay_repeats_what_the_detector_said(model, tokenizer, suite, monitor):
    records, live = [], []
    for step, scale in enumerate([0.0, 0.05, 0.1, 0.3, 0.5, 0.8]):
        perturb(model, scale)
        records.append(ProbeRecord.from_json(json.loads(json.dumps(monitor.probe(step).to_json()))))
        live.extend(monitor.events)
    again = Monitor.__new__(Monitor)
    again.__dict__.update(monitor.__dict__)
    again.course.detector = type(monitor.detector)(monitor.base_q)
    replayed = [event for record in records for event in again.replay(record)]
    assert [e.to_json() for e in replayed] == [e.to_json() for e in live]
    assert live, "the sequence must raise something for this test to mean anything"


def test_public_names():
    monitor_class = crystalmon.Monitor
    assert monitor_class is Monitor
    assert "Monitor" in dir(crystalmon)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = crystalmon.nothing
    assert (ASSETS_DIR / "liquid-tiny").is_dir()


def test_adapters_that_learn_a_prompt_are_refused(model, tokenizer, suite):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
    with pytest.raises(ValueError, match="must leave the prompt as it is, got PROMPT_TUNING"):
        Monitor(get_peft_model(model, config), tokenizer, suite)


def test_trained_tokens_can_be_monitored(model, tokenizer, suite):
    lora = LoraConfig(r=2, target_modules="all-linear", trainable_token_indices=[3])
    assert Monitor(get_peft_model(model, lora), tokenizer, suite).probe().metrics["order"] == 0.0


def test_a_base_of_its_own_is_scored_once(model, tokenizer, suite, monkeypatch):
    passes = []
    monkeypatch.setattr(
        "crystalmon.scoring.score.score_rows",
        lambda *a, **k: passes.append(1) or score_rows(*a, **k),
    )
    first = Monitor(model, tokenizer, suite).probe(0, unchanged=True)
    assert len(passes) == 1
    again = Monitor(model, tokenizer, suite).probe(0)
    assert len(passes) == 2, "the answers of the base are remembered"
    assert first.metrics == again.metrics
    assert first.ci == again.ci
    for name, task in first.tasks.items():
        np.testing.assert_array_equal(task.q, again.tasks[name].q)


def test_what_was_known_at_the_start_is_used_for_nothing_later(model, tokenizer, suite):
    monitor = Monitor(model, tokenizer, suite)
    base = monitor.probe(0, unchanged=True)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.5)
    assert monitor.probe(1, unchanged=True).metrics["entropy"] > base.metrics["entropy"]


@pytest.mark.filterwarnings("ignore:Model (has|with) .tie_word_embeddings=True")
@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({}, 1),
        ({"use_dora": True}, 2),
        ({"modules_to_save": ["lm_head"]}, 2),
        ({"trainable_token_indices": [3]}, 2),
        ({"init_lora_weights": False}, 2),
        ({"target_modules": ["embed_tokens"]}, 1),
    ],
)
def test_adapters_that_begin_with_nothing_cost_no_pass(
    model, tokenizer, suite, monkeypatch, options, passes
):
    seen = []
    monkeypatch.setattr(
        "crystalmon.scoring.score.score_rows",
        lambda *a, **k: seen.append(1) or score_rows(*a, **k),
    )
    adapted = get_peft_model(model, LoraConfig(**{"target_modules": ["q_proj"]} | options))
    monitor = Monitor(adapted, tokenizer, suite)
    first, again = monitor.probe(0, unchanged=True), monitor.probe(1)
    assert len(seen) == passes + 1
    for name, task in first.tasks.items():
        np.testing.assert_array_equal(task.q, again.tasks[name].q)


def test_adapters_are_part_of_a_first_probe(model, tokenizer, suite):
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    record = Monitor(adapted, tokenizer, suite).probe(0, unchanged=True)
    assert record.metrics["free_energy"] > 0


class Leaky(torch.nn.Module):
    """Adds to each token's state some of the one before it in the sequence, whatever the mask."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.share = inner, torch.nn.Parameter(torch.zeros(()))

    def forward(self, hidden, *args, **kwargs):
        before = torch.nn.functional.pad(hidden, (0, 0, 1, 0))[:, :-1]
        return self.inner(hidden + self.share * before, *args, **kwargs)


@pytest.fixture
def leaky(model):
    """A model that ignores the mask once its `share` is trained, as a gate that starts at zero."""
    model.model.layers[1].mlp = Leaky(model.model.layers[1].mlp)
    return model


def test_a_route_that_training_breaks_is_found_and_left(leaky, tokenizer, suite, caplog):
    monitor = Monitor(leaky, tokenizer, suite)
    assert monitor.route.method == "tree"
    for step in range(6):
        monitor.probe(step, unchanged=step == 0)
        assert monitor.doubtful_after is None
    with torch.no_grad():
        leaky.model.layers[1].mlp.share.fill_(3.0)
    record = monitor.probe(6)
    assert monitor.route.method == "rows"
    assert monitor.doubtful_after in (4, 5)
    assert caplog.text.count("no longer get the model's own answers") == 1
    truth = score(leaky, monitor.plan, route=Route("rows", "float32")).log_choice
    for task, table in zip(suite, truth, strict=True):
        q, _ = answer_distributions(table)
        np.testing.assert_allclose(record.tasks[task.name].q, q, atol=1e-5)
    monitor.probe(7)
    assert monitor.doubtful_after is None


def test_a_base_whose_trees_do_not_hold_is_scored_in_rows(model, tokenizer, suite, monkeypatch):
    monkeypatch.setattr("crystalmon.monitor.base_answers.still_holds", lambda *args: False)
    monitor = Monitor(model, tokenizer, suite)
    assert monitor.route.method == "rows"
    again = Monitor(model, tokenizer, suite)
    assert again.remembered
    assert again.route.method == "rows"


def test_memory_that_fails_in_a_proof_costs_no_probe(model, tokenizer, caplog):
    prompts = tuple("a b c d e f g " * 10 + str(number) for number in range(5))
    task = Task("letter", prompts, (Choice("a"), Choice("b")))
    monitor = Monitor(model, tokenizer, TaskSuite("long", (task,)))
    longest = max(map(len, monitor.plan.rows))
    forward = model.forward

    def short_of_memory(input_ids, **options):
        if input_ids.numel() > 1.5 * longest:
            raise torch.OutOfMemoryError("out of memory")
        return forward(input_ids, **options)

    model.forward = short_of_memory
    assert [monitor.probe(step).step for step in (1, 2)] == [1, 2]
    assert "out of memory; going on" in caplog.text


def test_a_route_is_proven_again_at_ever_longer_intervals(monitor, monkeypatch):
    proofs = []
    monkeypatch.setattr(
        "crystalmon.monitor.probe.still_holds", lambda *args: proofs.append(step) or True
    )
    for step in range(1, 20):
        monitor.probe(step)
    assert proofs == [1, 4, 16]


def test_an_encoder_decoder_is_refused(tokenizer, suite):
    sizes = {"d_model": 16, "d_ff": 16, "num_layers": 1, "num_heads": 2, "d_kv": 8}
    model = T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), **sizes))
    with pytest.raises(TypeError, match=r"decoder-only.*T5ForConditionalGeneration"):
        Monitor(model, tokenizer, suite)
