"""The public stages of known model families: base, SFT, DPO and RL, by hub id."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """One model's released stages, in the order of training.

    Args:
        base, sft, dpo, rl: hub ids; each stage was trained from the one before it, the last one
            in some sizes by way of further checkpoints, which are left out.
    """

    base: str
    sft: str
    dpo: str
    rl: str

    @property
    def stages(self) -> tuple[tuple[str, str], ...]:
        """(name, hub id), the base first."""
        return (("base", self.base), ("sft", self.sft), ("dpo", self.dpo), ("rl", self.rl))


def _olmo2(base: str) -> Family:
    return Family(base, f"{base}-SFT", f"{base}-DPO", f"{base}-Instruct")


def _tulu3(size: str) -> Family:
    final = f"allenai/Llama-3.1-Tulu-3-{size}"
    return Family(f"meta-llama/Llama-3.1-{size}", f"{final}-SFT", f"{final}-DPO", final)


FAMILIES = {
    "olmo2-1b": _olmo2("allenai/OLMo-2-0425-1B"),
    "olmo2-7b": _olmo2("allenai/OLMo-2-1124-7B"),
    "olmo2-13b": _olmo2("allenai/OLMo-2-1124-13B"),
    "olmo2-32b": _olmo2("allenai/OLMo-2-0325-32B"),
    "tulu3-8b": _tulu3("8B"),
    "tulu3-70b": _tulu3("70B"),
}
"""By name, as the models' cards on the hub list them (sources in `tests/test_families.py`); the
last stage is RL with verifiable rewards, which for OLMo 2 is called Instruct."""


def find_family(name: str) -> Family:
    """A family by name.

    Raises:
        ValueError: if there is none of that name.
    """
    if name not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {name!r}.")
    return FAMILIES[name]
