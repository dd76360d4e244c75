"""Measure a list of checkpoints as if they were the probes of one run, one model at a time.

The first stage is the base; its answers stay on disk as the reference. Every further stage is
loaded, scored and freed; its record is the probe at the step that is its place in the list. The
result is a run folder like any other. A scan that was killed goes on where it stopped: the records
on file are replayed, as in a training that is resumed. If a stage is measured late or again, the
stages after it are kept, and what depends on their past is computed anew from their answers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from crystalmon.analysis.verdicts import Verdict
from crystalmon.runs.files import RUN_FILE, RunFolderError, explained
from crystalmon.runs.lock import no_other
from crystalmon.scan.chat_templates import find_chat_template
from crystalmon.scan.probe_stage import probe_stage
from crystalmon.scan.scan_folder import ScanFolder, scan_config
from crystalmon.scan.stages import Stage, describe_base, expand_stages
from crystalmon.scoring.models import free_memory, load_model
from crystalmon.scoring.ranks import Ranks, current_ranks
from crystalmon.scoring.rendering import VIEWS, View, check_view
from crystalmon.suites.tasks import TaskSuite, load_suite

BOTH = "both"

Load = Callable[[str], tuple[Any, Any]]
Say = Callable[..., None]


class ScanError(ValueError):
    """The base cannot be measured, and without it nothing can."""


@dataclass(frozen=True)
class ScanResult:
    """What a scan has found in one view.

    Args:
        folder: the run folder.
        view: see `rendering.View`.
        failed: by missing stage, why it is missing.
        found: the content of `scan.json`; empty if the base is missing.
        verdicts: those in it.
    """

    folder: Path
    view: str
    failed: Mapping[str, str]
    found: Mapping[str, Any] = field(repr=False)
    verdicts: tuple[Verdict, ...] = ()


def scan(
    stages: Sequence[Stage],
    output: str | Path,
    suite: str | Path | TaskSuite = "randomness",
    view: str = "raw",
    *,
    dtype: Any = "auto",
    device: Any = None,
    chat_template_from: str | None = None,
    tell: Callable[[str], None] = print,
) -> list[ScanResult]:
    """Measure checkpoints, one at a time, against the first of them.

    In a run of several processes every rank calls this; rank 0 writes and tells.

    Args:
        stages: in the order of training, the base first; a folder of checkpoints stands for all
            of them, see `stages.expand_stages`.
        output: the run folder; with `both`, the folder of two of them, `raw` and `chat`.
        suite: a bundled suite's name, a path, or a `TaskSuite`.
        view: see `rendering.View`; or `both`: `raw` and `chat`, in a folder each.
        dtype: of the weights; as they are stored by default.
        device: where the models go; the accelerator if there is one.
        chat_template_from: the name of a stage, or a model, whose chat template is lent to the
            stages that have none; for view `chat` or `both`.
        tell: is given a line on the base, and one for each stage.

    Returns:
        One result per view. It names the stages that could not be measured and has the others.

    Raises:
        ScanError: if the base cannot be measured in any view.
        ValueError: for a faulty list, suite, view or template, a folder of another scan, or one
            that another command is scanning into.
        FileNotFoundError: if the chat template's model cannot be found.
        RunFolderError: if a run folder cannot be written to.
    """
    _check_view(view, chat_template_from)
    ranks, output = current_ranks(), Path(output)
    suite, listed = ranks.on_main(lambda: (load_suite(suite), expand_stages(stages)))
    places = ranks.on_main(lambda: _places(output, view))
    template = ranks.on_main(lambda: find_chat_template(chat_template_from, listed))
    told: set[str] = set()

    def load(where: str) -> tuple[Any, Any]:
        return ranks.together(lambda: _load(where, dtype, device, template))

    def say(line: str, remark: str = "") -> None:
        """Rank 0 tells; what that raises, as at a closed pipe, is raised on every rank."""
        ranks.on_main(lambda: tell(line if remark in told else line + remark))
        told.add(remark)

    with _alone({output, *places.values()}, ranks):
        ranks.on_main(lambda: _places(output, view))  # a scan may have ended meanwhile
        configs = {v: scan_config(v, dtype, listed, chat_template_from, template) for v in places}
        folders = [ScanFolder(places[v], suite, listed, configs[v], ranks) for v in places]
        if len(listed) > 1:
            say(ranks.on_main(lambda: describe_base(listed)))
        _measure_all(listed, folders, load, say)
        return [ScanResult(f.path, f.view, dict(f.failed), *f.conclude()) for f in folders]


def _check_view(view: str, chat_template_from: str | None) -> None:
    check_view(view, (BOTH,))
    if chat_template_from is not None and view not in ("chat", BOTH):
        raise ValueError(
            f"view must be 'chat' or {BOTH!r} where a chat template is lent, got {view!r}. Leave "
            "the template out, or choose the view."
        )


def _places(output: Path, view: str) -> dict[View, Path]:
    """The run folder of each view.

    Raises:
        ValueError: if the folder holds a scan of one view and both are asked for, or the reverse.
    """
    inner: dict[View, Path] = {own: output / own for own in VIEWS}
    single: dict[View, Path] = {view: output} if view != BOTH else {}
    wanted, other = (single, inner) if single else (inner, {"raw": output})
    if any((place / RUN_FILE).is_file() for place in other.values()):
        raise ValueError(
            f"the folder {output} must hold a scan of view {view!r} or none, got one of "
            f"{'one view' if view == BOTH else 'both views'}. Choose another folder."
        )
    return wanted


def _load(where: str, dtype: Any, device: Any, template: Any) -> tuple[Any, Any]:
    model, tokenizer = load_model(where, dtype=dtype)
    model.to(device or torch.accelerator.current_accelerator() or "cpu")
    if template is not None and not getattr(tokenizer, "chat_template", None):
        tokenizer.chat_template = template
    return model, tokenizer


@contextlib.contextmanager
def _alone(folders: Iterable[Path], ranks: Ranks) -> Iterator[None]:
    """Within, no other command scans into these folders; rank 0 holds the locks."""
    with contextlib.ExitStack() as held:

        def hold() -> None:
            for folder in folders:
                with explained(folder, "be made"):
                    folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(no_other(folder / ".scan.lock", "a scan"))

        ranks.on_main(hold, RunFolderError)
        yield


def _measure_all(
    stages: Sequence[Stage], folders: Sequence[ScanFolder], load: Load, say: Say
) -> None:
    """Measure what is missing, stage by stage."""
    for step, stage in enumerate(stages):
        todo = [each for each in folders if each.wants(step)]
        if not todo:
            say(f"{stage.name}: measured before, kept")
            continue
        if any(step in each.changed for each in todo):
            also = ", and with the base every stage" if step == 0 else ""
            say(f"{stage.name}: its weights have changed: measured again{also}")
        _measure_stage(step, stage, todo, load, say)
        free_memory()  # before the next one is loaded
        if not any(each.has_base for each in folders):
            why = folders[0].failed[stage.name]
            raise ScanError(f"the base {stage} cannot be measured: {why}")


def _measure_stage(
    step: int, stage: Stage, folders: Sequence[ScanFolder], load: Load, say: Say
) -> None:
    """Load a stage once and probe it in each view; a failure is noted and told."""
    try:
        model, tokenizer = load(stage.where)
    except Exception as error:
        for each in folders:
            each.fail(step, error)
        say(f"{stage.name}: failed: {folders[0].failed[stage.name]}")
        return
    for each in folders:
        label = f"{stage.name} ({each.view})" if len(folders) > 1 else stage.name
        try:
            line, remark = probe_stage(each, step, model, tokenizer)
        except RunFolderError:  # no other stage would fare better
            raise
        except Exception as error:
            each.fail(step, error)
            line, remark = f"failed: {each.failed[stage.name]}", ""
        say(f"{label}: {line}", remark)
