"""Image-text models, with their processors: asked in text alone, against the float64 oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from oracle import oracle_tables
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from crystalmon import CrystalCallback, Monitor, read_run
from crystalmon.monitor.views import data_view
from crystalmon.scoring.models import load_model
from crystalmon.scoring.plan import build_plan, render_suite
from crystalmon.scoring.route import choose_route
from crystalmon.scoring.score import score

PARTS_ALONE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] | trim }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""As some image-text models have it: a content that is a text shows nothing."""
IMAGE_TOKENS = {"boi_token": "<boi>", "image_token": "<image>", "eoi_token": "<eoi>"}
SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 512, "bos_token_id": 0,
    "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
EYE = {"hidden_size": 16, "intermediate_size": 16}


def gemma3(window):
    def make(vocabulary):
        text = {**SIZES, "vocab_size": vocabulary, "head_dim": 16, "sliding_window": window}
        eye = {**EYE, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
        config = Gemma3Config(
            text_config=text, vision_config=eye | {"patch_size": 14}, mm_tokens_per_image=4,
            image_token_index=6, boi_token_index=5, eoi_token_index=7, eos_token_id=0,
        )  # fmt: skip
        return Gemma3ForConditionalGeneration(config)

    return make


def qwen(vocabulary):
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={**SIZES, "vocab_size": vocabulary, "rope_parameters": rope},
            vision_config={**EYE, "depth": 1, "num_heads": 2, "out_hidden_size": 32},
            image_token_id=5, video_token_id=6, vision_start_token_id=7,
        )
    )  # fmt: skip


@pytest.fixture
def own_tokenizer():
    """One to change."""
    return load_model("liquid-tiny")[1]


@pytest.fixture
def processor(own_tokenizer):
    """Whose tokenizer has no chat template of its own."""
    own_tokenizer.chat_template = None
    for place, (name, token) in enumerate(IMAGE_TOKENS.items(), start=5):
        setattr(own_tokenizer, name, token)
        setattr(own_tokenizer, f"{name}_id", place)
    eye = Gemma3ImageProcessorPil()
    return Gemma3Processor(eye, own_tokenizer, chat_template=PARTS_ALONE, image_seq_length=4)


def made(make, vocabulary):
    torch.manual_seed(0)
    model = make(vocabulary).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    return model


@pytest.mark.parametrize(
    ("make", "method"), [(gemma3(512), "tree"), (gemma3(4), "rows"), (qwen, "tree")]
)
def test_it_equals_the_oracle(make, method, processor, suite):
    model = made(make, len(processor.tokenizer))
    plan = build_plan(suite, processor)
    route = choose_route(model, plan)
    assert route.method == method
    found = score(model, plan, route=route).log_choice
    truth = oracle_tables(model, processor.tokenizer, suite)
    for mine, exact in zip(map(np.exp, found), truth, strict=True):
        np.testing.assert_allclose(mine, exact, rtol=0, atol=1e-5)


def test_a_chat_is_asked_by_the_processors_template(processor, suite):
    sent = render_suite(suite, processor, "chat")
    for task in suite:
        wanted = [f"<|user|>{prompt.strip()}<|assistant|>" for prompt in task.prompts]
        assert sent[task.name] == wanted
    plan = build_plan(suite, processor, "chat")
    ids = processor.tokenizer(wanted[-1], add_special_tokens=False)["input_ids"]
    assert plan.rows[plan.num_prompts - 1] == tuple(ids)


def test_a_template_that_leaves_the_prompt_out_is_refused(own_tokenizer, suite):
    own_tokenizer.chat_template = "<|user|>{% if add_generation_prompt %}<|assistant|>{% endif %}"
    with pytest.raises(ValueError, match="leaves the text of a message out"):
        build_plan(suite, own_tokenizer, "chat")


def test_conversations_are_told_by_the_processors_template(processor):
    rows = [{"messages": [{"role": "user", "content": f"Name {n}"}]} for n in range(9)]
    assert data_view(Dataset.from_list(rows), processor)[0] == "chat"


def test_a_training_with_a_processor_is_monitored(tmp_path, processor, suite):
    from transformers import Trainer, TrainingArguments

    model = made(gemma3(512), len(processor.tokenizer))
    row = processor.tokenizer("Pick a number: 7")["input_ids"]
    rows = [{"input_ids": row, "labels": row, "token_type_ids": [0] * len(row)}] * 4
    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, report_to="none", use_cpu=True, disable_tqdm=True,
        save_strategy="no",
    )  # fmt: skip
    watcher = CrystalCallback(suite, every=1, view="chat", strict=True, max_overhead=None)
    Trainer(
        model, args, train_dataset=Dataset.from_list(rows), processing_class=processor,
        callbacks=[watcher],
    ).train()  # fmt: skip
    records = read_run(tmp_path / "crystalmon").records
    assert [record.step for record in records] == [0, 1, 2]
    found = Monitor(model, processor, suite, "initial", view="chat").probe(0)
    assert records[-1].metrics["entropy"] == pytest.approx(found.metrics["entropy"], abs=1e-5)
