"""Suite + tokenizer + view → the plan: what a probe has to score, and how to add it up.

Each prompt's surface forms, tokenized in the prompt's context, make a tree of token paths. The
plan lists, as flat index arrays,

- **rows**: token sequences whose next-token distribution is needed: a prompt, or a prompt and the
  first tokens of some path;
- **edges**: the tokens of the paths: a row, the token after it, and the edge before;
- **paths**: the edge that each form ends at, and the choice of the prompt that it counts for.

A completion belongs to the longest listed path that it begins with. So a path that other paths
begin with ("1" of "10") keeps its probability less theirs: `nested` lists those pairs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crystalmon.scoring.rendering import View, check_view, render, text_tokenizer
from crystalmon.scoring.trie import Trie, count_tree
from crystalmon.suites.tasks import Task, TaskSuite

TokenPath = tuple[int, ...]

_SHOWN = 3
"""Merges that a message names."""
_AT_ONCE = 1000
"""Texts for one call of a tokenizer: it is slow at many small calls, and at one of very many."""


@dataclass(frozen=True)
class ScoringPlan:
    """What to run and how to add it up; all arrays are flat and in suite order.

    Args:
        view: how prompts were rendered.
        rows: token ids of every row; the first `num_prompts` are the prompts themselves.
        row_prompt, row_parent: [rows] the prompt that a row belongs to, and the row that it
            continues by one token (−1 for a prompt). A parent comes before its children.
        num_prompts: N, prompts over all tasks.
        shapes: (P, C) of every task; task t's prompts follow those of task t − 1.
        edge_row, edge_token, edge_parent: [E] the row an edge is read from, its token, and the
            edge before it (−1 at the prompt). A parent comes before its children.
        path_edge, path_cell: [K] where a path ends, and the flat index of its (prompt, choice)
            in the tasks' [P, C] tables laid end to end.
        nested: [M, 2] pairs (longer path, the longest listed path it begins with).
        fingerprint: SHA-256 of all of it; equal plans score the same events.
        merges: (task, prompt, form) whose form merges with the prompt's last token, and which
            is therefore tokenized alone.
    """

    view: View
    rows: tuple[TokenPath, ...]
    row_prompt: np.ndarray
    row_parent: np.ndarray
    num_prompts: int
    shapes: tuple[tuple[int, int], ...]
    edge_row: np.ndarray
    edge_token: np.ndarray
    edge_parent: np.ndarray
    path_edge: np.ndarray
    path_cell: np.ndarray
    nested: np.ndarray
    fingerprint: str
    merges: tuple[tuple[str, str, str], ...]

    @property
    def num_tokens(self) -> int:
        """Tokens over all rows, each prompt counted again for every row that it begins."""
        return sum(map(len, self.rows))

    @property
    def num_unique_tokens(self) -> int:
        """Tokens over the prefix tree of all rows: what they have in common counts once."""
        return count_tree(self.rows)[0]


def build_plan(suite: TaskSuite, tokenizer: Any, view: View = "raw") -> ScoringPlan:
    """Render, tokenize and lay out a suite for scoring.

    Args:
        tokenizer: a transformers tokenizer, or a processor that has one. Left unchanged.
        view: see `rendering.View`. In all but `chat` the tokenizer's own special tokens come first.

    Raises:
        ValueError: for an unknown view, a tokenizer without a chat template in view `chat`, or one
            that raises, a prompt or form without tokens, or two choices that tokenize to the same
            path.
        TypeError: if there is no tokenizer.
    """
    check_view(view)
    processor, tokenizer = tokenizer, text_tokenizer(tokenizer)
    if not callable(tokenizer):
        raise TypeError(
            f"tokenizer must be a tokenizer or a processor, got {tokenizer!r}. "
            "Pass processing_class= to the trainer."
        )
    prompts = [(task, text) for task in suite for text in task.prompts]
    with _unchanged(tokenizer):
        texts = [render(processor, text, view) for _, text in prompts]
        longer = [
            text + form
            for (task, _), text in zip(prompts, texts, strict=True)
            for form in task.choice_of_form
        ]
        encoded = _encode_prompts(tokenizer, texts + longer, view)
        every = list(dict.fromkeys(form for task in suite for form in task.choice_of_form))
        alone = dict(zip(every, _encode(tokenizer, every, special=False), strict=True))
    layout, done = _Layout(encoded[: len(texts)]), len(texts)
    for index, (task, prompt) in enumerate(prompts):
        if not (row := layout.rows[index]):
            raise ValueError(f"prompt {prompt!r} must give at least one token. Change it.")
        forms = [*task.choice_of_form]
        whole = dict(zip(forms, encoded[done : done + len(forms)], strict=True))
        done += len(forms)
        paths, merged = _choice_paths(task, prompt, row, whole, alone)
        layout.add_prompt(index, paths, num_choices=len(task.choices))
        layout.merges.extend((task.name, prompt, form) for form in merged)
    return layout.finish(view, suite)


def render_suite(suite: TaskSuite, tokenizer: Any, view: View) -> dict[str, list[str]]:
    """By task, its prompts as they are sent: rendered, after the tokenizer's own special tokens.

    Args:
        tokenizer: see `build_plan`; None if there is none, which only `chat` needs.

    Raises:
        ValueError: see `build_plan`.
    """
    check_view(view)
    processor, tokenizer = tokenizer, text_tokenizer(tokenizer)
    sent: dict[str, list[str]] = {}
    with _unchanged(tokenizer):
        for task in suite:
            texts = [render(processor, prompt, view) for prompt in task.prompts]
            begins = (
                _beginnings(tokenizer, texts, view) if tokenizer is not None else [""] * len(texts)
            )
            sent[task.name] = [begin + text for begin, text in zip(begins, texts, strict=True)]
    return sent


def describe_merges(merges: Sequence[tuple[str, str, str]]) -> str:
    """One sentence that names prompts and forms which merge across the boundary."""
    shown = "; ".join(f"task {t!r}: {p[-30:]!r} + {f!r}" for t, p, f in merges[:_SHOWN])
    rest = f" and {len(merges) - _SHOWN} more" if len(merges) > _SHOWN else ""
    told = f"{len(merges)} forms merge with the last token of their prompt and are tokenized alone"
    if len(merges) == 1:
        told = "a form merges with the last token of its prompt and is tokenized alone"
    spaced = any(prompt[-1:].isspace() for _, prompt, _ in merges)
    advice = " Do not end a prompt in a space." if spaced else ""
    return f"{told}: {shown}{rest}.{advice}"


class _Layout:
    """Collects rows, edges and paths, prompt by prompt."""

    def __init__(self, prompts: list[TokenPath]) -> None:
        self.rows = [*prompts]
        self.row_prompt = list(range(len(prompts)))
        self.row_parent = [-1] * len(prompts)
        self.edges: list[tuple[int, int, int]] = []
        self.paths: list[tuple[int, int]] = []
        self.nested: list[tuple[int, int]] = []
        self.merges: list[tuple[str, str, str]] = []
        self.cells = 0

    def add_prompt(self, prompt: int, paths: dict[TokenPath, int], num_choices: int) -> None:
        """Add the tree of one prompt; `paths` maps token paths to choice indices."""
        trie, first_edge = Trie(), len(self.edges)
        path_at: dict[int, int] = {}
        for path in sorted(paths, key=len):
            node = trie.add(path)
            shorter = trie.parents[node]
            while shorter >= 0 and shorter not in path_at:
                shorter = trie.parents[shorter]
            path_at[node] = len(self.paths)
            if shorter >= 0:
                self.nested.append((path_at[node], path_at[shorter]))
            self.paths.append((first_edge + node, self.cells + paths[path]))
        self.cells += num_choices
        row_at = {-1: prompt}
        for token, parent in zip(trie.tokens, trie.parents, strict=True):
            if parent not in row_at:
                before = row_at[trie.parents[parent]]
                row_at[parent] = len(self.rows)
                self.rows.append((*self.rows[before], trie.tokens[parent]))
                self.row_prompt.append(prompt)
                self.row_parent.append(before)
            self.edges.append((row_at[parent], token, first_edge + parent if parent >= 0 else -1))

    def finish(self, view: View, suite: TaskSuite) -> ScoringPlan:
        """The plan of what was collected."""
        edges, paths = np.array(self.edges, dtype=np.int64), np.array(self.paths, dtype=np.int64)
        shapes = tuple((len(task.prompts), len(task.choices)) for task in suite)
        content = [view, self.rows, shapes, self.edges, self.paths, self.nested]
        return ScoringPlan(
            view=view,
            rows=tuple(self.rows),
            row_prompt=np.array(self.row_prompt, dtype=np.int64),
            row_parent=np.array(self.row_parent, dtype=np.int64),
            num_prompts=suite.num_prompts,
            shapes=shapes,
            edge_row=edges[:, 0],
            edge_token=edges[:, 1],
            edge_parent=edges[:, 2],
            path_edge=paths[:, 0],
            path_cell=paths[:, 1],
            nested=np.array(self.nested, dtype=np.int64).reshape(-1, 2),
            fingerprint=hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16],
            merges=tuple(self.merges),
        )


def _encode_prompts(tokenizer: Any, texts: list[str], view: View) -> list[TokenPath]:
    """Token ids of rendered prompts, without an end-of-text token that the tokenizer appends."""
    begin = getattr(tokenizer, "bos_token", None)
    if view == "chat" or (begin and view.startswith(begin)):  # the view has its own special tokens
        return _encode(tokenizer, texts, special=False)
    found, eos = _encode(tokenizer, texts, special=True), tokenizer.eos_token_id
    ended = [index for index, ids in enumerate(found) if ids[-1:] == (eos,)]
    plain = _encode(tokenizer, [texts[index] for index in ended], special=False)
    for index, bare in zip(ended, plain, strict=True):
        if found[index][-len(bare) - 1 :] == (*bare, eos):
            found[index] = found[index][:-1]
    return found


def _beginnings(tokenizer: Any, texts: list[str], view: View) -> list[str]:
    """The special tokens that the tokenizer itself puts before each text."""
    whole, bare = _encode_prompts(tokenizer, texts, view), _encode(tokenizer, texts, special=False)
    return [
        tokenizer.decode([*ids[: len(ids) - len(own)]])
        for ids, own in zip(whole, bare, strict=True)
    ]


def _choice_paths(
    task: Task,
    prompt: str,
    row: TokenPath,
    whole: Mapping[str, TokenPath],
    alone: Mapping[str, TokenPath],
) -> tuple[dict[TokenPath, int], list[str]]:
    """Token paths of every form after a prompt → choice index, and the forms that merged.

    A form's tokens are those of prompt + form (`whole`) after the prompt's own (`row`). Where the
    tokenizer merges across the boundary, the form is tokenized alone.
    """
    paths: dict[TokenPath, int] = {}
    merged: list[str] = []
    for form, index in task.choice_of_form.items():
        start, path = whole[form][: len(row)], whole[form][len(row) :]
        if start != row or not path:
            merged.append(form)
            path = alone[form]
        if not path:
            raise ValueError(
                f"task {task.name!r}: form {form!r} must give at least one token, got none with "
                "this tokenizer. Change the form."
            )
        if paths.setdefault(path, index) != index:
            raise ValueError(
                f"task {task.name!r}: choices {task.choice_texts[paths[path]]!r} and "
                f"{task.choice_texts[index]!r} give the same tokens {list(path)} after prompt "
                f"{prompt!r}. Change one of their forms."
            )
    return paths, merged


def _encode(tokenizer: Any, texts: list[str], special: bool) -> list[TokenPath]:
    found: list[TokenPath] = []
    for start in range(0, len(texts), _AT_ONCE):
        some = texts[start : start + _AT_ONCE]
        found += map(tuple, tokenizer(some, add_special_tokens=special)["input_ids"])
    return found


@contextlib.contextmanager
def _unchanged(tokenizer: Any) -> Iterator[None]:
    """Put back the backend's padding and truncation, which every call of a tokenizer resets."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    padding, truncation = getattr(backend, "padding", None), getattr(backend, "truncation", None)
    try:
        yield
    finally:
        if padding is not None:
            backend.enable_padding(**padding)
        if truncation is not None:
            backend.enable_truncation(**truncation)
