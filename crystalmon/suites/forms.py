r"""A grammar of surface forms: the ways in which the same answer may be written.

A form is a lead, an opening mark and the answer: `\n`, `**` and `Heads`. What follows the answer,
such as a full stop or a closing mark, does not matter: a completion counts by how it begins. Each
part that is switched on adds forms, and with them to what a probe costs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

PARTS = {
    "capital": "the first letter in upper case: Heads",
    "newline": "after one or two line breaks",
    "quotes": "after a double or single quote",
    "bold": "after ** or a backtick, as in Markdown",
    "sentence": "after The answer is",
}
"""By name, what each part adds."""

_MARKS = {"quotes": ('"', "'"), "bold": ("**", "`"), "sentence": ("The answer is ",)}


def widen(forms: Sequence[Sequence[str]], parts: Collection[str]) -> list[tuple[str, ...]]:
    """The forms of a task's choices [C] with those that the grammar adds.

    Args:
        forms: by choice, those that are declared.
        parts: of the grammar, names in `PARTS`.

    Returns:
        The declared ones first. A form that would stand for two choices is not added.

    >>> widen([["no"], ["yes"]], ["capital"])[1]
    ('yes', 'Yes', ' yes', ' Yes')
    """
    leads = ["", " ", "\n"] if "newline" in parts else ["", " "]
    marks = [mark for part, found in _MARKS.items() if part in parts for mark in found]
    before = [*leads, *(["\n\n"] if "newline" in parts else [])]
    before += [lead + mark for lead in leads for mark in marks]
    added: list[dict[str, None]] = []
    for own in forms:
        words = dict.fromkeys(form.strip() for form in own)
        if "capital" in parts:
            words |= dict.fromkeys(word[:1].upper() + word[1:] for word in words)
        added.append(dict.fromkeys(start + word for start in before for word in words))
    owners = Counter(form for own in added for form in own)
    declared = {form for own in forms for form in own}
    return [
        (*own, *(form for form in more if owners[form] == 1 and form not in declared))
        for own, more in zip(forms, added, strict=True)
    ]
