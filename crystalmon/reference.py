"""The frozen base model's answers to a suite: made once, kept on disk, compared with ever after.

No second model stays in memory. On disk a reference is a folder with `reference.safetensors`
(`log_p` [N, V] float32, the full next-token log-probabilities after each of the N prompts, and
`log_choice/<task>` [P, C] float64) and `reference.json` (what it was made with).
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from crystalmon.forward import Route
from crystalmon.isolation import same_random_states
from crystalmon.models import load_model, whole_models
from crystalmon.names import CHOICE_PREFIX, DEFAULT_NAME, REFERENCE_FOLDER, TENSOR_FILE
from crystalmon.ranks import ONE, Ranks
from crystalmon.scoring import Observer, Scores, score
from crystalmon.tasks import TaskSuite
from crystalmon.tokentree import ScoringPlan, build_plan

Progress = Callable[[int], Any]

SCHEMA_VERSION = 1
INFO_FILE = "reference.json"


class ReferenceMismatch(ValueError):
    """A reference that was made with another suite, view or tokenizer."""


@dataclass(frozen=True)
class ReferenceInfo:
    """What a reference was made with; the content of `reference.json`.

    Args:
        suite, suite_hash, view: the prompts and how they were rendered.
        plan: fingerprint of the token tree; equal for tokenizers that agree on the suite.
        model, tokenizer: names, for people.
        vocab_size: V, the size of the model's output.
        id: SHA-256 over the plan and the answers, 16 hex digits.
        schema_version: of this folder's format.
    """

    suite: str
    suite_hash: str
    view: str
    plan: str
    model: str
    tokenizer: str
    vocab_size: int
    id: str
    schema_version: int = SCHEMA_VERSION


class Reference:
    """A base model's answers to one suite.

    Args:
        info: what it was made with.
        log_choice: per task [P, C], log-probability of each choice.
        log_p: [N, V] log-probabilities in memory, or the `reference.safetensors` to map.
    """

    def __init__(
        self, info: ReferenceInfo, log_choice: Mapping[str, np.ndarray], log_p: Tensor | Path
    ) -> None:
        self.info = info
        self.log_choice = log_choice
        self._log_p = log_p
        self._rows = (
            log_p
            if isinstance(log_p, Tensor)
            else safe_open(str(log_p), framework="pt").get_slice("log_p")
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, V): of the full-vocabulary part."""
        rows = self._rows
        return tuple(rows.shape if isinstance(rows, Tensor) else rows.get_shape())

    @property
    def is_stored(self) -> bool:
        """Whether it was read from a folder, rather than made just now."""
        return not isinstance(self._rows, Tensor)

    def in_memory(self) -> Reference:
        """The same reference with nothing left on disk, so that it can be sent."""
        if isinstance(self._rows, Tensor):
            return self
        return Reference(self.info, self.log_choice, self._rows[:])

    def log_p(self, prompts: np.ndarray, device: torch.device) -> Tensor:
        """[len(prompts), V] float32 log-probabilities after those prompts (suite order)."""
        return torch.stack([self._rows[int(i)] for i in prompts]).to(device)

    def save(self, folder: Path) -> None:
        """Write the reference; one that is there stays whole until this one is."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / TENSOR_FILE
        if isinstance(self._log_p, Path) and file.exists() and file.samefile(self._log_p):
            return
        partial = folder / f"{TENSOR_FILE}.partial"
        info = folder / f"{INFO_FILE}.partial"
        try:
            if isinstance(self._log_p, Tensor):
                tables = {
                    f"{CHOICE_PREFIX}{k}": torch.from_numpy(v) for k, v in self.log_choice.items()
                }
                save_file({"log_p": self._log_p, **tables}, str(partial))
            else:
                shutil.copyfile(self._log_p, partial)
            text = json.dumps(asdict(self.info), indent=2, ensure_ascii=False)
            info.write_text(text + "\n", encoding="utf-8")
            os.replace(partial, file)
            os.replace(info, folder / INFO_FILE)
        finally:
            partial.unlink(missing_ok=True)
            info.unlink(missing_ok=True)


def make_reference(
    model: nn.Module,
    tokenizer: Any,
    suite: TaskSuite,
    plan: ScoringPlan,
    *,
    route: Route | None = None,
    ranks: Ranks = ONE,
    progress: Progress | None = None,
) -> Reference:
    """Score a suite with the model as it is now and keep all of it; see `make_base`."""
    options: Any = {"route": route, "ranks": ranks, "progress": progress}
    return make_base(model, tokenizer, suite, plan, **options)[0]


def make_base(
    model: nn.Module,
    tokenizer: Any,
    suite: TaskSuite,
    plan: ScoringPlan,
    observe: Observer | None = None,
    *,
    route: Route | None = None,
    ranks: Ranks = ONE,
    progress: Progress | None = None,
) -> tuple[Reference, Scores]:
    """Score a suite with the model as it is now: a reference, and what else was observed.

    Args:
        model: the base model.
        tokenizer: for its name only; the plan holds its tokens.
        suite: the suite that the plan was built from.
        plan: what to score.
        observe, route, ranks, progress: see `scoring.score`.

    Raises:
        ValueError: if an answer is NaN: a broken model is no base to compare with.
    """

    def keep(prompts: np.ndarray, log_p: Tensor, begins: Tensor) -> dict[str, Tensor]:
        seen = {} if observe is None else observe(prompts, log_p, begins)
        return {**seen, _LOG_P: log_p}

    scores = score(model, plan, keep, route=route, ranks=ranks, progress=progress)
    log_p = torch.from_numpy(scores.observed[_LOG_P])
    if log_p.isnan().any():
        raise ValueError(
            f"the reference model's answers must be numbers, got NaN from {model_name(model)}. "
            "Check its weights and precision."
        )
    log_choice = dict(zip((task.name for task in suite), scores.log_choice, strict=True))
    info = ReferenceInfo(
        suite=suite.name,
        suite_hash=suite.hash,
        view=plan.view,
        plan=plan.fingerprint,
        model=model_name(model),
        tokenizer=_tokenizer_name(tokenizer),
        vocab_size=log_p.shape[1],
        id=_digest(plan.fingerprint, log_choice),
    )
    seen = {key: values for key, values in scores.observed.items() if key != _LOG_P}
    return Reference(info, log_choice, log_p), replace(scores, observed=seen)


_LOG_P = "log_p"


def _digest(plan: str, log_choice: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(plan.encode())
    for table in log_choice.values():
        digest.update(np.ascontiguousarray(table).tobytes())
    return digest.hexdigest()[:16]


def load_reference(folder: Path) -> Reference:
    """Load a reference; the full-vocabulary part stays on disk and is mapped.

    Raises:
        FileNotFoundError: if the folder holds no complete reference.
        ValueError: if it is damaged, or was written by a newer version.
    """
    info_file = folder / INFO_FILE
    if not info_file.is_file():
        raise FileNotFoundError(f"{folder} holds no {INFO_FILE}. Name a reference or run folder.")
    file = folder / TENSOR_FILE
    try:
        data = json.loads(info_file.read_text(encoding="utf-8"))
        version = int(data["schema_version"])
        info = ReferenceInfo(**data) if version <= SCHEMA_VERSION else None
        found = None if info is None else _read(info, file)
    except (ValueError, TypeError, KeyError, OSError, SafetensorError) as error:
        raise ValueError(
            f"the reference in {folder} cannot be read ({type(error).__name__}: {error}). "
            "Delete the folder and score the base again."
        ) from error
    if found is None:
        raise ValueError(
            f"{info_file}: schema version must be at most {SCHEMA_VERSION}, got {version}. "
            "Upgrade crystalmon."
        )
    return found


def _read(info: ReferenceInfo, file: Path) -> Reference:
    with safe_open(str(file), framework="np") as tensors:
        tables = {
            key.removeprefix(CHOICE_PREFIX): tensors.get_tensor(key)
            for key in tensors.keys()  # noqa: SIM118 (not a mapping)
            if key.startswith(CHOICE_PREFIX)
        }
    reference = Reference(info, tables, file)
    if reference.log_p(np.array([0]), _CPU).isnan().any():
        raise ValueError("its answers are not numbers")
    return reference


_CPU = torch.device("cpu")


def find_reference(
    path: str | Path, suite: TaskSuite | None = None, view: str | None = None
) -> Path | None:
    """The reference folder that belongs to a path, or None.

    Looks at the path itself, `<path>/reference` (a run folder), `<path>/crystalmon*/reference` (a
    model's or output folder) and, for a model that was saved within an output folder
    (`checkpoint-N`, or a merged one), the same one level up.

    Args:
        path: a reference, run, model or output folder.
        suite, view: of several, the one made with these is preferred: a run may have been watched
            with two suites.
    """
    if not str(path):  # the name of a model that was made, not loaded
        return None
    path = Path(path)
    places = [path, path / REFERENCE_FOLDER]
    if path.is_dir():
        for folder in (path, path.resolve().parent):
            places += sorted(folder.glob(f"{DEFAULT_NAME}*/{REFERENCE_FOLDER}"))
    found = [place for place in places if (place / INFO_FILE).is_file()]
    fitting = (place for place in found if _is_of(place, suite, view))
    return next(fitting, found[0] if found else None)


def _is_of(folder: Path, suite: TaskSuite | None, view: str | None) -> bool:
    try:
        info = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
        return suite is not None and (info["suite_hash"], info["view"]) == (suite.hash, view)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def check_reference(
    reference: Reference,
    suite: TaskSuite,
    plan: ScoringPlan,
    tokenizer: Any,
    *,
    answers_only: bool = False,
) -> None:
    """Refuse a reference that does not answer this very plan.

    Args:
        reference, suite, plan, tokenizer: what must belong together.
        answers_only: let one pass that was made with other tokens for the same suite and view:
            its answers can be compared by choice, its vocabulary cannot.

    Raises:
        ReferenceMismatch: naming what differs on both sides.
    """
    info = reference.info
    advice = "Use the matching one, or reference='initial' to start from this model."
    if info.suite_hash != suite.hash:
        raise ReferenceMismatch(
            f"reference must be of suite {suite.name!r} ({suite.hash}), got suite "
            f"{info.suite!r} ({info.suite_hash}). {advice}"
        )
    if info.view != plan.view:
        raise ReferenceMismatch(
            f"reference must be of view {plan.view!r}, got view {info.view!r}. {advice}"
        )
    if info.plan != plan.fingerprint and not answers_only:
        raise ReferenceMismatch(
            f"reference must be of tokenizer {_tokenizer_name(tokenizer)!r}, got one made with "
            f"{info.tokenizer!r}, which tokenizes suite {suite.name!r} differently. {advice}"
        )
    shapes = dict(zip((task.name for task in suite), plan.shapes, strict=True))
    tables = {name: reference.log_choice[name] for name in shapes if name in reference.log_choice}
    whole = (
        {name: table.shape for name, table in reference.log_choice.items()} == shapes
        and reference.shape == (plan.num_prompts, info.vocab_size)
        and _digest(info.plan, tables) == info.id
    )
    if not whole:
        raise ValueError(
            f"reference {info.id} must hold the answers that it was made with, got others: its "
            "file is damaged. Delete the folder and score the base again."
        )


def find_base(
    reference: str | Path | Reference,
    model: nn.Module,
    tokenizer: Any,
    suite: TaskSuite,
    plan: ScoringPlan,
    *,
    ranks: Ranks = ONE,
    progress: Progress | None = None,
    answers_only: bool = False,
) -> Reference | None:
    """The base to compare with, from what the user asked for; None for this model as it is now.

    Args:
        reference: a `Reference`; `auto` (the one that came with the model's folder, else this
            model now, without its adapters: what a LoRA run has trained before is not the base);
            `initial` (this model now); a run or reference folder; or a model id or path, which is
            loaded by rank 0, scored and freed.
        model, tokenizer, suite, plan: what is being monitored.
        ranks, progress: see `scoring.score`.
        answers_only: see `check_reference`.

    Raises:
        ReferenceMismatch: if it was made with another suite, view or tokenizer.
        FileNotFoundError: if a path holds neither a reference nor a model.
    """
    if isinstance(reference, Reference):
        found = reference
    elif str(reference) in ("auto", "initial"):
        auto = str(reference) == "auto"
        folder = ranks.on_main(
            lambda: find_reference(model_name(model), suite, plan.view) if auto else None
        )
        if folder is None:
            return None
        found = _load_everywhere(folder, ranks)
    elif (folder := ranks.on_main(lambda: find_reference(reference, suite, plan.view))) is not None:
        found = _load_everywhere(folder, ranks)
    else:
        device = next(model.parameters()).device
        found = ranks.on_main(lambda: _score_base(str(reference), suite, plan, device, progress))
    check_reference(found, suite, plan, tokenizer, answers_only=answers_only)
    return found


def adapter_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a model that carry PEFT's adapters."""
    return [module for module in model.modules() if hasattr(module, "_disable_adapters")]


@contextlib.contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Within, PEFT's layers compute what the layers under them do.

    PEFT's own way also switches which weights require a gradient; this one touches a flag only.
    """
    layers = adapter_layers(model)
    if any(getattr(layer, "merged", False) for layer in layers):
        yield  # PEFT would take them out of the weights, and that rounds: merged is merged
        return
    before = [layer._disable_adapters for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = True  # type: ignore[assignment]
        yield
    finally:
        for layer, disabled in zip(layers, before, strict=True):
            layer._disable_adapters = disabled  # type: ignore[assignment]


def _load_everywhere(folder: Path, ranks: Ranks) -> Reference:
    """Each rank maps the folder, or gets rank 0's copy if some rank cannot see it."""
    if ranks.size == 1:
        return load_reference(folder)
    try:
        loaded = load_reference(folder)
    except (OSError, ValueError):
        loaded = None
    ids = set(ranks.gather("" if loaded is None else loaded.info.id))
    if loaded is not None and len(ids) == 1:
        return loaded
    return ranks.on_main(lambda: load_reference(folder).in_memory())


def _score_base(
    name: str, suite: TaskSuite, plan: ScoringPlan, device: torch.device, progress: Progress | None
) -> Reference:
    """Load a base model with its own tokenizer, score it where the current model is, free it."""
    with same_random_states():  # what a checkpoint lacks is drawn at random
        try:
            with whole_models():
                base, tokenizer = load_model(name)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"reference {name!r} is neither 'auto', 'initial', a run or reference folder, nor "
                f"a model: {error}"
            ) from error
    base.to(device)
    if plan.view == "raw" or getattr(tokenizer, "chat_template", None):
        plan = build_plan(suite, tokenizer, plan.view)
    elif max(map(max, plan.rows)) >= vocabulary_size(base):
        raise ReferenceMismatch(
            f"reference {name!r} must know the tokens of the current chat template, which it has "
            "neither a template nor the vocabulary for. Use view='raw'."
        )
    try:
        return make_reference(base, tokenizer, suite, plan, progress=progress)
    finally:
        del base
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def vocabulary_size(model: Any) -> int:
    """The number of tokens that a model can take."""
    embedding = model.get_input_embeddings()
    size = getattr(embedding, "num_embeddings", None)  # PEFT may wrap it
    return int(size if size is not None else model.config.get_text_config().vocab_size)


def model_name(model: Any) -> str:
    """Where a model was loaded from: a hub id, a folder, or nothing."""
    config = getattr(model, "config", None)
    return str(getattr(model, "name_or_path", "") or getattr(config, "_name_or_path", ""))


def _tokenizer_name(tokenizer: Any) -> str:
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    name = getattr(tokenizer, "name_or_path", "")
    return f"{type(tokenizer).__name__}({name}, {len(tokenizer)} tokens)"
