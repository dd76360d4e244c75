"""How prompts are sent: templates, several views at once, and the training data's own format."""

from __future__ import annotations

import json

import numpy as np
import pytest
from datasets import Dataset

pytest.importorskip("torch")
from test_callback import make_trainer, train
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer

from crystalmon import CrystalCallback, Monitor, read_run
from crystalmon.cli.main import main
from crystalmon.monitor.views import data_view, name_views
from crystalmon.report.lanes import make_lanes
from crystalmon.runs.reader import run_folders
from crystalmon.scoring.plan import build_plan, render_suite
from crystalmon.suites.tasks import Choice, Task, TaskSuite

ALPACA = "### Instruction:\n{prompt}\n\n### Response:\n"
CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
QUESTIONS = [f"{word} {number}?" for word in ("Why", "When", "Where") for number in range(4)]
ROWS = [{"prompt": ALPACA.format(prompt=each), "completion": " heads"} for each in QUESTIONS]
TALKS = [
    {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": "heads"}]}
    for q in QUESTIONS
]


class Data(TrainerCallback):
    """Keeps what a trainer trains on."""

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        self.found = train_dataloader.dataset


def prepared(folder, model, tokenizer, suite, rows):
    """The rows as the trainer prepares them."""
    kept = Data()
    make_trainer(
        folder, model, tokenizer, suite, [kept], Dataset.from_list(rows), max_steps=1
    ).train()
    return kept.found


def test_a_template_is_put_around_each_prompt(suite, tokenizer):
    plan, raw = build_plan(suite, tokenizer, ALPACA), build_plan(suite, tokenizer)
    for index, prompt in enumerate(prompt for task in suite for prompt in task.prompts):
        assert tokenizer.decode(plan.rows[index]) == ALPACA.format(prompt=prompt)
    assert plan.shapes == raw.shapes
    assert plan.fingerprint != raw.fingerprint


@pytest.mark.parametrize(
    ("view", "prompt", "sent"),
    [
        ("{prompt}\nAnswer:", "Heads or tails?\nAnswer:", "Heads or tails?\nAnswer:"),
        ("{prompt}\n\nAnswer: ", "Toss it. Answer:", "Toss it.\n\nAnswer: "),
        ("{prompt}\nAnswer:", "Toss it.\n\n**Answer:**", "Toss it.\nAnswer:"),
        ("{prompt}\n### Response:\n", "Toss it.\n### Response:", "Toss it.\n### Response:\n"),
        ("{prompt}\nSide? One word.\nA:", "Toss it.\nA:", "Toss it.\nSide? One word.\nA:"),
        ("{prompt}\nA:", "Ask NASA:", "Ask NASA:\nA:"),  # the end of a word is no cue
        ("{prompt}\nA:", "A:", "A:\nA:"),  # nor is a whole prompt
        ("Q: {prompt}", "Toss it.\nA:", "Q: Toss it.\nA:"),
    ],
)
def test_no_prompt_ends_in_the_same_cue_twice(view, prompt, sent, tokenizer):
    suite = TaskSuite("s", (Task("t", (prompt,), (Choice("heads"), Choice("tails"))),))
    assert render_suite(suite, None, view) == {"t": [sent]}
    assert tokenizer.decode(build_plan(suite, tokenizer, view).rows[0]) == sent


def test_names_of_views():
    assert name_views("chat") == {"chat": "chat"}
    assert name_views(["raw", ALPACA]) == {"raw": "raw", "template": ALPACA}
    assert name_views({"a/b": ALPACA}) == {"a_b": ALPACA}


@pytest.mark.parametrize(
    ("prompts", "view"),
    [
        ([row["prompt"] for row in ROWS], ALPACA),
        ([f"Q: {q}\nA:" for q in QUESTIONS], "Q: {prompt}\nA:"),
        ([f"<s>[INST] {q} [/INST]" for q in QUESTIONS], "<s>[INST] {prompt} [/INST]"),
        (QUESTIONS, "raw"),
        ([f"What is {q[1:]}" for q in QUESTIONS], "raw"),  # words alone are no format
        ([f"Pick {q[:-1]}:" for q in QUESTIONS], "raw"),  # nor is one colon
        ([f"{q} Answer in Python." for q in QUESTIONS], "raw"),
        ([f"Review: {q} film\nSentiment:" for q in QUESTIONS], "Review: {prompt}\nSentiment:"),
        ([f"{q} [{{prompt}}]" for q in QUESTIONS], "raw"),  # it could not be a template
        ([row["prompt"] for row in ROWS[:7]], "raw"),
    ],
)
def test_the_format_of_prompts(prompts, view, tokenizer):
    assert data_view([{"prompt": prompt} for prompt in prompts], tokenizer)[0] == view


def test_the_format_of_what_a_trainer_has_prepared(tmp_path, model, tokenizer, suite, monkeypatch):
    assert data_view(prepared(tmp_path, model, tokenizer, suite, ROWS), tokenizer)[0] == ALPACA
    texts = [{"text": row["prompt"] + row["completion"]} for row in ROWS]
    assert data_view(prepared(tmp_path, model, tokenizer, suite, texts), tokenizer)[0] == "raw"
    monkeypatch.setattr(tokenizer, "chat_template", CHAT)
    assert data_view(prepared(tmp_path, model, tokenizer, suite, TALKS), tokenizer)[0] == "chat"
    turns = [{"prompt": t["messages"][:1], "completion": t["messages"][1:]} for t in TALKS]
    assert data_view(prepared(tmp_path, model, tokenizer, suite, turns), tokenizer)[0] == "chat"


def test_the_format_of_preferences(tmp_path, model, tokenizer):
    rows = [{"prompt": row["prompt"], "chosen": " heads", "rejected": " tails"} for row in ROWS]
    kept = Data()
    settings = {"max_steps": 1, "report_to": "none", "use_cpu": True, "bf16": False}
    known = DPOConfig.__dataclass_fields__
    settings[
        next(k for k in ("activation_checkpointing", "gradient_checkpointing") if k in known)
    ] = False
    DPOTrainer(
        model, args=DPOConfig(str(tmp_path), **settings), train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer, callbacks=[kept],
    ).train()  # fmt: skip
    assert data_view(kept.found, tokenizer)[0] == ALPACA


def test_the_whole_data_tells_the_format(tokenizer):
    some = [{"prompt": f"English: {q}\nFrench:"} for q in QUESTIONS * 10]
    assert data_view(some, tokenizer)[0] == "English: {prompt}\nFrench:"
    assert data_view(some + [{"prompt": q} for q in QUESTIONS * 200], tokenizer)[0] == "raw"


def test_padding_is_no_format(tokenizer):
    import torch

    rows = []
    for row in ROWS:
        ids = tokenizer(row["prompt"])["input_ids"]
        answer = tokenizer(row["completion"])["input_ids"]
        pads = [tokenizer.pad_token_id] * (60 - len(ids))
        rows.append(
            {
                "input_ids": torch.tensor([*pads, *ids, *answer]),
                "attention_mask": torch.tensor([0] * len(pads) + [1] * (len(ids) + len(answer))),
                "labels": torch.tensor([-100] * 60 + answer),
            }
        )
    assert data_view(rows, tokenizer)[0] == ALPACA


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ strftime_now('%d') }}" + CHAT, "the chat template tells the date"),
        ("{{ raise_exception('system') }}", "does not take a user's turn alone"),
        (None, "there is no chat template"),
    ],
)
def test_why_conversations_are_not_asked_as_such_is_told(tokenizer, monkeypatch, template, why):
    monkeypatch.setattr(tokenizer, "chat_template", template)
    view, told = data_view(TALKS, tokenizer)
    assert view == "raw"
    assert why in told


@pytest.mark.parametrize(
    "template",
    [
        # no prompt for an answer, as Mistral's; one that opens a thought, which no row has
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}",
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n<think>\n{% endif %}",
    ],
)
def test_conversations_of_other_templates(tmp_path, model, tokenizer, suite, monkeypatch, template):
    monkeypatch.setattr(tokenizer, "chat_template", template)
    rows = prepared(tmp_path, model, tokenizer, suite, TALKS)
    assert data_view(rows, tokenizer) == ("chat", "as it is trained")


def test_a_few_rows_that_are_cut_off_decide_nothing(tmp_path, model, tokenizer, suite, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", CHAT)
    rows = list(prepared(tmp_path, model, tokenizer, suite, TALKS))
    rows[0] = {key: value[:3] for key, value in rows[0].items()}
    assert data_view(rows, tokenizer)[0] == "chat"


def test_data_with_a_state_of_its_own_is_not_read(tokenizer):
    class Counting(list):
        reads = 0

        def __getitem__(self, index):
            type(self).reads += 1
            return super().__getitem__(index)

    class Own:
        def __init__(self):
            self.rows = Counting(ROWS)

        def __len__(self):
            return len(self.rows)

        def __getitem__(self, index):
            return self.rows[index]

    assert data_view(Own(), tokenizer) == (
        "raw",
        "the training data is a Own, which only the trainer reads",
    )
    assert Counting.reads == 0
    transformed = Dataset.from_list(ROWS)
    transformed.set_transform(lambda rows: Counting([])[0])  # would raise
    assert data_view(transformed, tokenizer)[0] == ALPACA


@pytest.mark.parametrize("data", [None, [], [1, 2], iter([]), [{"prompt": {}}], [{"prompt": 3}]])
def test_data_without_a_format(data, tokenizer):
    assert data_view(data, tokenizer)[0] == "raw"


def test_views_are_probed_side_by_side(tmp_path, model, tokenizer, suite, capsys):
    start = {name: value.clone() for name, value in model.state_dict().items()}
    plain, _ = train(tmp_path / "plain", model, tokenizer, suite, [])
    model.load_state_dict(start)
    alone = {view: Monitor(model, tokenizer, suite, view=view).probe() for view in ("raw", ALPACA)}
    callback = CrystalCallback(suite, every=3, view=["raw", ALPACA, "auto"])
    logs, _ = train(tmp_path / "two", model, tokenizer, suite, [callback])
    assert logs == plain
    folders = run_folders(tmp_path / "two")
    assert [folder.name for folder in folders] == ["crystalmon", "crystalmon-template"]
    for folder, view in zip(folders, ("raw", ALPACA), strict=True):
        run = read_run(folder)
        assert [record.step for record in run.records] == [0, 3, 6]
        assert {task.view for task in run.records[0].tasks.values()} == {view}
        for name, task in alone[view].tasks.items():
            np.testing.assert_allclose(run.records[0].tasks[name].q, task.q, atol=1e-6)
    told = capsys.readouterr().out
    assert "crystalmon-template | step 0" in told
    assert callback.monitor.plan.view == "raw"
    main(["report", str(tmp_path / "two"), "-o", str(tmp_path / "report.html")])
    capsys.readouterr()
    main(["detect", str(tmp_path / "two"), "--json"])
    detected = [json.loads(line)["name"] for line in capsys.readouterr().out.splitlines()]
    assert detected == ["two", "two (template)"]
    main(["send", str(tmp_path / "two"), "--to", "tensorboard"])
    assert capsys.readouterr().out.count("3 probes") == 2
    assert [lane.name for lane in make_lanes([read_run(f) for f in folders])] == [
        "two",
        "two (template)",
    ]


@pytest.mark.parametrize(("share", "each"), [(0.3, 0.15), (1, None), (None, None)])
def test_views_share_the_budget(tmp_path, model, tokenizer, suite, share, each):
    callback = CrystalCallback(suite, view=["raw", ALPACA], max_overhead=share, every=3)
    train(tmp_path, model, tokenizer, suite, [callback])
    for folder in run_folders(tmp_path):
        run = read_run(folder)
        assert run.info["config"]["max_overhead"] == each
        assert share == 0.3 or [record.step for record in run.records] == [0, 3, 6]


def test_auto_beside_another_view_is_resumed_and_handed_on(tmp_path, model, tokenizer, suite):
    data = Dataset.from_list(ROWS)

    def run(folder, **options):
        callback = CrystalCallback(suite, every=2, view=["raw", "auto"])
        train(folder, model, tokenizer, suite, [callback], data=data, **options)
        return [
            (read_run(each).info["config"]["view"], [r.step for r in read_run(each).records])
            for each in run_folders(folder)
        ]

    saved = {"save_strategy": "steps", "save_steps": 2}
    first = run(tmp_path / "sft", max_steps=4, **saved)
    assert first == [("raw", [0, 2, 4]), (ALPACA, [0, 2, 4])]
    data = Dataset.from_list([{"prompt": q, "completion": " heads"} for q in QUESTIONS])
    fresh = type(model)(model.config)
    fresh.load_state_dict(model.state_dict())
    model = fresh  # nothing is remembered of it
    resumed = run(tmp_path / "sft", resume=str(tmp_path / "sft/checkpoint-2"), max_steps=4)
    assert resumed == first
    model = type(model).from_pretrained(tmp_path / "sft/checkpoint-4")
    assert [view for view, _ in run(tmp_path / "dpo", max_steps=2)] == ["raw", ALPACA]


def test_auto_follows_the_reference_that_is_named(tmp_path, model, tokenizer, suite):
    train(tmp_path / "sft", model, tokenizer, suite, [CrystalCallback(suite, every=6, view=ALPACA)])
    fresh = type(model)(model.config)
    callback = CrystalCallback(suite, every=6, reference=tmp_path / "sft")
    train(tmp_path / "more", fresh, tokenizer, suite, [callback])
    assert callback.monitor.plan.view == ALPACA


def test_a_second_training_in_the_process_is_asked_as_the_first(tmp_path, model, tokenizer, suite):
    for name, rows in (
        ("one", ROWS),
        ("two", [{"prompt": q, "completion": "x"} for q in QUESTIONS]),
    ):
        callback = CrystalCallback(suite, every=6)
        data = Dataset.from_list(rows)
        train(tmp_path / name, model, tokenizer, suite, [callback], data=data)
        assert callback.monitor.plan.view == ALPACA
    assert (
        read_run(tmp_path / "two").info["reference"] == read_run(tmp_path / "one").info["reference"]
    )


def test_auto_asks_as_the_data_is_written_and_goes_on_so(tmp_path, model, tokenizer, suite, capsys):
    data = Dataset.from_list(ROWS)
    first = CrystalCallback(suite, every=3)
    train(tmp_path / "sft", model, tokenizer, suite, [first], data=data, save_strategy="no")
    assert first.monitor.plan.view == ALPACA
    assert "as it is trained; view= sets another" in capsys.readouterr().out
    model.save_pretrained(tmp_path / "sft")
    model.name_or_path = str(tmp_path / "sft")
    second = CrystalCallback(suite, every=3)
    train(tmp_path / "more", model, tokenizer, suite, [second])
    assert second.monitor.plan.view == ALPACA
    assert "as the model was asked before" in capsys.readouterr().out


def test_stages_of_two_views_are_two_chains(tmp_path, model, tokenizer, suite):
    for name in ("sft", "more"):
        callback = CrystalCallback(suite, every=6, view=["raw", ALPACA])
        train(tmp_path / name, model, tokenizer, suite, [callback])
        model.save_pretrained(tmp_path / name)
        model.name_or_path = str(tmp_path / name)
    runs = [read_run(each) for name in ("sft", "more") for each in run_folders(tmp_path / name)]
    chains = [[run.name for run in lane.runs] for lane in make_lanes(runs)]
    assert chains == [["sft", "more"], ["sft (template)", "more (template)"]]


def test_a_failing_view_closes_the_others(tmp_path, model, tokenizer, suite, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", None)
    callback = CrystalCallback(suite, view=["raw", "chat"])
    with pytest.raises(ValueError, match="view must be 'raw' for a tokenizer without"):
        train(tmp_path, model, tokenizer, suite, [callback])
    train(tmp_path, model, tokenizer, suite, [CrystalCallback(suite, every=6, view="raw")])
    assert len(read_run(tmp_path).records) == 2


def test_commands_take_templates(capsys, suite):
    asked = ["suite", "validate", "liquid-tiny", "--model", "liquid-tiny", "--view"]
    assert main([*asked, r"Q: {prompt}\nA:"]) == 0
    assert main([*asked, "Q: "]) == 2
    assert "template with {prompt} in it" in capsys.readouterr().err
