"""The public stages of known model families: base, SFT, DPO and RL, by hub id."""

from __future__ import annotations

from crystalmon.scan.stages import Stage


def _olmo2(base: str) -> tuple[Stage, ...]:
    return _stages(base, f"{base}-SFT", f"{base}-DPO", f"{base}-Instruct")


def _tulu3(size: str) -> tuple[Stage, ...]:
    final = f"allenai/Llama-3.1-Tulu-3-{size}"
    return _stages(f"meta-llama/Llama-3.1-{size}", f"{final}-SFT", f"{final}-DPO", final)


def _stages(*hub_ids: str) -> tuple[Stage, ...]:
    return tuple(map(Stage, ("base", "sft", "dpo", "rl"), hub_ids))


FAMILIES = {
    "olmo2-1b": _olmo2("allenai/OLMo-2-0425-1B"),
    "olmo2-7b": _olmo2("allenai/OLMo-2-1124-7B"),
    "olmo2-13b": _olmo2("allenai/OLMo-2-1124-13B"),
    "olmo2-32b": _olmo2("allenai/OLMo-2-0325-32B"),
    "tulu3-8b": _tulu3("8B"),
    "tulu3-70b": _tulu3("70B"),
}
"""By name, the stages in the order of training, as the models' cards on the hub list them (sources
in `tests/test_families.py`). The last stage is RL with verifiable rewards, which OLMo 2 calls
Instruct. Some sizes have further RL checkpoints before it, which are left out."""
