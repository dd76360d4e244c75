"""Models with weights in 4 bits: by bitsandbytes where it is installed, and by a stand-in."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import nn

from crystalmon import CrystalCallback, read_run
from crystalmon.scoring.forward import Route
from crystalmon.scoring.isolation import undisturbed
from crystalmon.scoring.models import find_model, load_model, quantization
from crystalmon.scoring.plan import build_plan
from crystalmon.scoring.route import choose_route
from crystalmon.scoring.score import score


class Settled(nn.Linear):
    """As bitsandbytes' layers: the first input settles the dtype, which the bias follows."""

    def __init__(self):
        super().__init__(4, 4, dtype=torch.bfloat16)
        self.compute_type_is_set, self.compute_dtype = False, torch.float16

    def forward(self, input):
        if not self.compute_type_is_set:
            self.compute_dtype, self.compute_type_is_set = input.dtype, True
        self.bias.data = self.bias.data.to(self.compute_dtype)
        return nn.functional.linear(input, self.weight.to(input.dtype), self.bias)


def test_what_a_first_pass_settles_is_undone():
    layer = Settled()
    with undisturbed(layer):
        layer(torch.ones(1, 4))
        assert layer.compute_dtype == layer.bias.dtype == torch.float32
    assert not layer.compute_type_is_set
    assert layer.compute_dtype == torch.float16
    assert layer.bias.dtype == torch.bfloat16


def test_how_a_model_is_quantized_is_told(model):
    assert quantization(model) is None
    told = copy.copy(model.config)
    told.quantization_config = {"quant_method": "gptq", "bits": 4}
    assert quantization(type("Quantized", (), {"config": told})) == "gptq, 4 bits"


@pytest.fixture
def in_4_bits():
    """liquid-tiny, its layers quantized by bitsandbytes and computed in bf16."""
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    how = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=True,
    )  # fmt: skip
    path = find_model("liquid-tiny").path
    return AutoModelForCausalLM.from_pretrained(
        path, quantization_config=how, dtype=torch.bfloat16, device_map="cpu"
    )


def dequantized(model):
    """The same numbers as plain float64 weights."""
    import bitsandbytes as bnb

    plain = load_model("liquid-tiny")[0].double()
    for name, module in model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            state = copy.deepcopy(module.weight.quant_state)
            state.dtype = torch.float32
            weight = bnb.functional.dequantize_4bit(module.weight.data, state)
        elif next(module.children(), None) is None and hasattr(module, "weight"):
            weight = module.weight.data
        else:
            continue
        plain.get_submodule(name).weight.data = weight.double()
    return plain


def test_a_base_in_4_bits_is_scored_exactly(in_4_bits, suite, tokenizer):
    plan = build_plan(suite, tokenizer)
    exact = score(dequantized(in_4_bits), plan, route=Route("rows")).log_choice
    whole = score(load_model("liquid-tiny")[0], plan, route=Route("rows")).log_choice
    route = choose_route(in_4_bits, plan)
    assert str(route) == "tree, float32"
    found = score(in_4_bits, plan, route=route).log_choice
    for mine, truth, other in zip(map(np.exp, found), exact, whole, strict=True):
        np.testing.assert_allclose(mine, np.exp(truth), rtol=0, atol=1e-5)
        assert np.abs(mine - np.exp(other)).max() > 1e-3, "it is another model than the whole one"


def trained(model, folder, suite, tokenizer, watched):
    """The adapters after some steps over a base in 4 bits."""
    from peft import LoraConfig, get_peft_model
    from transformers import Trainer, TrainingArguments

    torch.manual_seed(0)
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    row = tokenizer("Pick a number: 7")["input_ids"]
    args = TrainingArguments(
        output_dir=str(folder), max_steps=3, report_to="none", use_cpu=True, disable_tqdm=True,
        save_strategy="no", learning_rate=1e-2,
    )  # fmt: skip
    watcher = CrystalCallback(suite, every=1, strict=True, max_overhead=None)
    rows = Dataset.from_list([{"input_ids": row, "labels": row}] * 4)
    Trainer(
        model, args, train_dataset=rows, processing_class=tokenizer,
        callbacks=[watcher] if watched else [],
    ).train()  # fmt: skip
    return {name: each for name, each in model.named_parameters() if "lora" in name}


def test_qlora_is_trained_as_without_the_callback(tmp_path, in_4_bits, suite, tokenizer):
    other = copy.deepcopy(in_4_bits)
    bare = trained(other, tmp_path / "bare", suite, tokenizer, watched=False)
    watched = trained(in_4_bits, tmp_path / "watched", suite, tokenizer, watched=True)
    assert all(torch.equal(bare[name], watched[name]) for name in bare)
    run = read_run(tmp_path / "watched" / "crystalmon")
    assert run.info["quantization"] == "bitsandbytes, 4 bits"
    assert len(run.records) == 4
