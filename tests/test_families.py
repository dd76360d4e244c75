"""The public stages of the families, against what their makers' model cards list.

Read on copies of the cards, not on the hub itself, which cannot be reached from here:

- OLMo 2, all four sizes: the table of stages in the card of allenai/OLMo-2-0425-1B. Of the 7B and
  13B also the cards of allenai/OLMo-2-1124-7B and -13B. The paper (arXiv 2501.00656) describes the
  stages and gives no ids in its abstract, which is what was read of it.
- Tulu 3, both sizes: the table "Model Family" in the cards of allenai/Llama-3.1-Tulu-3-8B and
  allenai/Llama-3.1-Tulu-3.1-8B, and docs/tulu3.md of allenai/open-instruct (70B DPO).
- The 1B and 13B of OLMo 2 have intermediate RL checkpoints (…-RLVR1, in open-instruct's
  commands), which the expansion leaves out.
"""

from __future__ import annotations

import pytest

from crystalmon.scan.families import FAMILIES
from crystalmon.scan.stages import Stage

CARDS = {
    "olmo2-1b": """
        allenai/OLMo-2-0425-1B
        allenai/OLMo-2-0425-1B-SFT
        allenai/OLMo-2-0425-1B-DPO
        allenai/OLMo-2-0425-1B-Instruct""",
    "olmo2-7b": """
        allenai/OLMo-2-1124-7B
        allenai/OLMo-2-1124-7B-SFT
        allenai/OLMo-2-1124-7B-DPO
        allenai/OLMo-2-1124-7B-Instruct""",
    "olmo2-13b": """
        allenai/OLMo-2-1124-13B
        allenai/OLMo-2-1124-13B-SFT
        allenai/OLMo-2-1124-13B-DPO
        allenai/OLMo-2-1124-13B-Instruct""",
    "olmo2-32b": """
        allenai/OLMo-2-0325-32B
        allenai/OLMo-2-0325-32B-SFT
        allenai/OLMo-2-0325-32B-DPO
        allenai/OLMo-2-0325-32B-Instruct""",
    "tulu3-8b": """
        meta-llama/Llama-3.1-8B
        allenai/Llama-3.1-Tulu-3-8B-SFT
        allenai/Llama-3.1-Tulu-3-8B-DPO
        allenai/Llama-3.1-Tulu-3-8B""",
    "tulu3-70b": """
        meta-llama/Llama-3.1-70B
        allenai/Llama-3.1-Tulu-3-70B-SFT
        allenai/Llama-3.1-Tulu-3-70B-DPO
        allenai/Llama-3.1-Tulu-3-70B""",
}


@pytest.mark.parametrize("name", CARDS)
def test_a_family_expands_to_what_its_card_lists(name):
    names = ("base", "sft", "dpo", "rl")
    assert FAMILIES[name] == tuple(map(Stage, names, CARDS[name].split()))


def test_no_family_is_without_a_source():
    assert set(FAMILIES) == set(CARDS)
    assert len({where for card in CARDS.values() for where in card.split()}) == 24
