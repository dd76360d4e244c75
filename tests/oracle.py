"""A naive scorer in float64: plain dictionaries and sums, no code of the package."""

from __future__ import annotations

import math

import numpy as np
import torch


def oracle_tables(model, tokenizer, suite, half_way=False):
    """Per task [P, C] probability of each choice; `half_way`: the model casts to float32 itself.

    P(path) is the product of its tokens' probabilities. A choice gets, for each of its paths,
    P(path) minus P of every listed path whose longest listed proper prefix that path is.
    """
    model = model.double().eval()
    tables = []
    for task in suite:
        rows = []
        for prompt in task.prompts:
            ids = tokenizer(prompt)["input_ids"]
            owner = _owners(tokenizer, task, prompt, ids)
            probability = _path_probabilities(model, ids, list(owner), half_way)
            row = [0.0] * len(task.choices)
            for path, index in owner.items():
                row[index] += probability[path]
                inner = _longest_listed_prefix(path, owner)
                if inner is not None:
                    row[owner[inner]] -= probability[path]
            rows.append(row)
        tables.append(np.array(rows))
    model.float()
    return tables


def _owners(tokenizer, task, prompt, ids):
    owner = {}
    for index, choice in enumerate(task.choices):
        for form in choice.forms:
            whole = tokenizer(prompt + form)["input_ids"]
            if len(whole) > len(ids) and whole[: len(ids)] == ids:
                owner[tuple(whole[len(ids) :])] = index
            else:
                owner[tuple(tokenizer(form, add_special_tokens=False)["input_ids"])] = index
    return owner


def _longest_listed_prefix(path, owner):
    prefixes = [path[:n] for n in range(1, len(path)) if path[:n] in owner]
    return prefixes[-1] if prefixes else None


def _path_probabilities(model, ids, paths, half_way):
    """Every needed prefix is a row of its own; padding is masked out."""
    prefixes = sorted({path[:n] for path in paths for n in range(len(path))})
    rows = [list(ids) + list(prefix) for prefix in prefixes]
    width = max(map(len, rows))
    batch = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    with torch.no_grad():
        logits = model(input_ids=batch, attention_mask=mask).logits
    assert half_way or logits.dtype == torch.float64
    logits = logits.double()
    log_p = {
        prefix: logits[i, len(rows[i]) - 1].log_softmax(-1) for i, prefix in enumerate(prefixes)
    }
    return {
        path: math.exp(sum(float(log_p[path[:n]][path[n]]) for n in range(len(path))))
        for path in paths
    }
