"""What the runs at hand cannot tell, in sentences."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from crystalmon.metrics.answers import MEASURABLE
from crystalmon.metrics.catalogue import NOT_MEASURABLE
from crystalmon.report.frames import MAX_FRAMES, MAX_PROBES
from crystalmon.report.lanes import Lane
from crystalmon.report.training_log import MAX_LOGGED
from crystalmon.runs.compared_answers import read_in_view, read_unanswered
from crystalmon.runs.names import model_title
from crystalmon.runs.plurals import counted
from crystalmon.runs.run import Run, names_of
from crystalmon.runs.shares import over_limit
from crystalmon.runs.wordings import suite_names

LOW_COVERAGE = 0.8
MUCH_TIME = 0.05
FEW_PROBES = 5


def caveats(lanes: Sequence[Lane], *, texts_known: bool) -> list[str]:
    """Sentences on the limits of what the page shows, the most pressing first.

    Args:
        lanes: what the page shows.
        texts_known: whether the prompts' and choices' own words were found.
    """
    runs = [run for lane in lanes for run in lane.runs]
    said = [sentence for run in runs for sentence in _of_run(run)]
    said += _of_time([run for run in runs if not run.stages])  # a scan is all monitoring
    if not texts_known:
        said.append(
            "The words of the prompts and choices are not in these runs, so they are numbered. "
            "Name the suite file with --suite to see them."
        )
    if any(len(run.trainer_log) > MAX_LOGGED for run in runs):
        said.append(
            f"The curves of the trainer's log show at most {MAX_LOGGED} points a run: what is "
            "lowest and highest in every short stretch."
        )
    longest = max((len(lane.records) for lane in lanes), default=0)
    if longest > MAX_FRAMES:
        curves = "The curves show every probe."
        if longest > MAX_PROBES:
            curves = (
                f"The curves show at most {MAX_PROBES}: the changes of phase too, and what is "
                "lowest and highest in every short stretch of the training; the fits of a long "
                "run's transitions average over neighbouring probes."
            )
        said.append(
            f"The heatmaps show {MAX_FRAMES} of the probes: the first and last of each run, the "
            f"changes of phase, and an even sample of the rest. {curves}"
        )
    return [
        *said,
        "The bands are 95% bootstrap intervals over the suite's prompts. They say how much the "
        "choice of prompts matters, not how much another random seed of the training would.",
        "Each stage of a chain takes over the seeds of the one before, and begins in the phase "
        "that its first probe shows. Events are pointers: read them together with the curves.",
        "Only answers to the suite's closed questions are measured. What the model does "
        "elsewhere, and why it changed, is not.",
    ]


def _of_time(runs: Sequence[Run]) -> list[str]:
    """Runs without a limit whose share is large; runs with one that went over it."""
    said = []
    free = [run for run in runs if run.limit is None and (run.share or 0) > MUCH_TIME]
    if shares := [f"{run.share:.0%} of {run.name}" for run in free]:
        said.append(
            f"Monitoring took {', '.join(shares)}. The share is smaller where training steps take "
            "longer; max_overhead= of the callback limits it."
        )
    for run in runs:
        share = run.share if run.ended else None  # before the end it may still come down
        if share is not None and (over := over_limit(share, run.limit, len(run.records))):
            said.append(f"Monitoring took {100 * share:.3g}% of {run.name}, {over}.")
    return said


def compared_with(runs: Sequence[Run]) -> list[str]:
    """The bases that runs are compared with, by the ends of their names; of several, with the runs.

    Returns:
        `["liquid-tiny"]`, or `["liquid-tiny (0-warm)", "0-warm (1-sft, 2-dpo)"]`.
    """
    found: dict[str, list[str]] = {}
    for run, name in zip(runs, names_of(runs), strict=True):
        if base := run.info.get("reference_model"):
            found.setdefault(model_title(str(base)), []).append(name)
    return [
        next(filter(None, reversed(re.split(r"[\\/]", base))), base)
        + (f" ({', '.join(names)})" if len(found) > 1 else "")
        for base, names in found.items()
    ]


def unlike(runs: Sequence[Run]) -> list[str]:
    """What must not be compared: runs of different suites, or with different bases."""
    told = [run.info["reference_model"] for run in runs if "reference_model" in run.info]
    bases, said = dict.fromkeys(map(str, told)), []
    suites: dict[str, list[str]] = {}
    for suite, name in zip(suite_names(runs), names_of(runs), strict=True):
        suites.setdefault(suite, []).append(name)
    if len(suites.keys() - {""}) > 1:
        asked = "; ".join(f"{suite or 'unknown'}: {', '.join(of)}" for suite, of in suites.items())
        said.append(
            f"These runs were asked different suites ({asked}). Their means are over other tasks, "
            "and a task with other wordings or answers stands once for each suite."
        )
    if len(bases) > 1:
        said.append(
            f"These runs are compared with different bases ({', '.join(bases)}): what each has "
            "lost is relative to its own."
        )
    return said


def _of_run(run: Run) -> list[str]:
    if not run.records:
        return [f"{run.name} has no probe yet, so nothing of it is shown."]
    said = [*_of_probes(run), *_of_answers(run)]
    if run.superseded:
        old = counted(run.superseded, "older probe")
        said.append(f"In {run.name} a resume or a new run has replaced {old}.")
    return said


def _of_probes(run: Run) -> list[str]:
    """When a run was probed, and with how many wordings."""
    count, wordings = len(run.records), run.records[-1].wordings
    said = [run.doubt] if run.doubt else []
    if count == 1:
        said.append(f"{run.name} has one probe: it shows a state, and no change.")
    elif count < FEW_PROBES:
        said.append(f"{run.name} has {count} probes, too few to tell a step from a slope.")
    if run.stages and count < len(run.stages):
        found = {record.step for record in run.records}
        missing = [stage for step, stage in run.stages.items() if step not in found]
        said.append(f"{run.name} lacks {', '.join(missing)}: not measured yet, or could not be.")
    elif run.unobserved:
        said.append(run.unobserved)
    if wordings:
        said.append(
            f"The last probe of {run.name} asked {counted(wordings, 'wording')} a task, to save "
            "time. So few may be far from the mean over all wordings; crystalmon probe MODEL "
            "--base RUN asks them all."
        )
    return said


def _of_answers(run: Run) -> list[str]:
    """What the last probe's answers cannot tell."""
    name, last, said = run.name, run.records[-1], []
    coverage = last.metrics.get("coverage", 1.0)
    if coverage < LOW_COVERAGE:
        said.append(
            f"In {name} the listed answers hold {coverage:.0%} of the probability at the end. "
            "The rest goes to other text, and the heatmaps do not show it."
        )
    unknown = [key for key, task in last.tasks.items() if task.phase == NOT_MEASURABLE]
    if warning := unmeasurable(
        unknown, read_unanswered(run.folder) if unknown else (), len(last.tasks)
    ):
        said.append(f"In {name} {warning}.")
    if rare := read_in_view(run.folder):
        said.append(
            f"In {name} the base hardly answers {len(rare)} of {len(last.tasks)} tasks in this "
            "view: they are compared with its answers to the plain prompts too. Their order is 0 "
            "while their liquidity lies between the base's in the one and in the other."
        )
    if ordered := [key for key, task in last.tasks.items() if task.phase == "ordered"]:
        said.append(
            f"In {name} the base answered alike from the start in {', '.join(ordered)}: these "
            "tasks had nothing to lose and take no part in the phases."
        )
    return said


def unmeasurable(
    tasks: Sequence[str], of_base: Collection[str] = (), total: int = 0, option: str = "reference="
) -> str:
    """What to do about tasks that cannot be measured; empty if there are none.

    Args:
        tasks: their names.
        of_base: the tasks that the base hardly answers. What the model learns to answer cannot be
            compared with that.
        total: how many tasks there are; all of them are not named one by one.
        option: by which another base is named.
    """
    lacking = [name for name in tasks if name in of_base]
    others = [name for name in tasks if name not in of_base]
    said, hold = [], f"the listed answers hold under {MEASURABLE:.0%} of the probability"
    if lacking:
        named = f"any of the {total} tasks" if len(lacking) == total > 1 else ", ".join(lacking)
        said.append(
            f"the base hardly answers {named} ({hold} after most wordings). Such a task gets no "
            f"phase, whatever the model learns: pass a base that answers it with {option}, for "
            "example this model after a first SFT on the format, or try another view or suite"
        )
    if others:
        named = f"all {total} tasks" if len(others) == total > 1 else ", ".join(others)
        said.append(
            f"the model or its base hardly answers {named} ({hold} after most wordings). Such a "
            "task gets no phase: try another view, or a suite that lists what both do answer, "
            "such as randomness-wide, which takes more forms of an answer"
        )
    return "; ".join(said)
