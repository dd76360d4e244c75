"""A replayed run in words, as `crystalmon detect` prints it."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table

from crystalmon.analysis.replay import Detection, TaskDetection
from crystalmon.analysis.transition import Transition
from crystalmon.metrics.catalogue import NOT_MEASURABLE
from crystalmon.report.caveats import unmeasurable
from crystalmon.report.summary import as_text
from crystalmon.runs.places import Stages, told
from crystalmon.runs.plurals import counted
from crystalmon.runs.records import Event
from crystalmon.runs.wordings import end_words, quoted

_SETS = """
may end on: the base's wordings that may still win, at 95%; those that answer nearly alike count as
one; none: it may be that no base wording wins"""
_LEGEND = """
p and margin are those of the probe at which the seed was locked; away is the distance of the
answers from the seed at the last probe, in nats
p: share of base prompts that lie as near to another one as the answers to the seed; with 24 prompts
it is at least 0.04. If it is large, many answer alike or the answers stop short, and which has won
is not settled
margin: how many times worse the next base prompt explains the answers; around 1 and below,
the seed was told by where the pooled answers lie"""


def format_detection(found: Detection) -> str:
    """Phases, events with their evidence, what to do, kinetics, tasks."""
    names = found.stages
    course = " → ".join(f"{phase} ({names.get(step, step)})" for step, phase in found.phases)
    if found.looks != found.phases[-1][1]:
        course += f", and at the last probe {found.looks}"
    asked = f", the last of {counted(found.wordings, 'wording')} a task" if found.wordings else ""
    lines = [f"{found.name}: {counted(found.probes, 'probe')}{asked}", f"suite: {course}"]
    lines += [f"at the last probe: {found.numbers}"] if found.numbers else []
    unknown = [name for name, task in found.tasks.items() if task.phase == NOT_MEASURABLE]
    notes = [found.doubt, found.unobserved]
    if warning := unmeasurable(unknown, found.unanswered, len(found.tasks)):
        notes.append(f"{warning[:1].upper()}{warning[1:]}.")
    lines += [note for note in notes if note]
    for kind, tasks in found.inherited.items():
        lines.append(f"raised before, where the model came from: {kind} {', '.join(tasks)}")
    lines += ["", "events"]
    lines += [_event_line(event, names) for event in found.events] or ["  none"]
    lines.append(f"  ({_compared(found)})")
    if found.advice:
        lines += ["", "what to do", *(f"  {kind}: {text}" for kind, text in found.advice.items())]
    lines += ["", "kinetics", *_kinetics_lines(found), "", _task_table(found)]
    lines += [f"{found.shared_leader}."] if found.shared_leader else []
    if any(task.seed_set for task in found.tasks.values()):
        lines.append(_SETS)
    if any(task.seed is not None for task in found.tasks.values()):
        lines.append(_LEGEND)
    return "\n".join(lines)


def _compared(found: Detection) -> str:
    same = f"the same as those stored {'by the scan' if found.stages else 'while training'}"
    if found.repeats_live:
        return same
    return (
        f"not {same}: {found.differing} are in only one of the two. Perhaps another version of "
        "crystalmon judged them, or limits were changed on a resume"
    )


def _event_line(event: Event, stages: Stages) -> str:
    shown = ", ".join(filter(None, (_number(*pair) for pair in event.evidence.items())))
    where = event.task or "suite"
    width = max(map(len, stages.values()), default=0)
    when = f"{stages[event.step]:<{width}}" if event.step in stages else f"step {event.step:>6}"
    message = told(event.message, stages)
    return f"  {when}  {where:<12} {event.kind:<19} {message} [{shown}]"


def _number(key: str, value: Any) -> str:
    """A number, or an interval, of an event's evidence; nothing for what is neither."""
    key = "well until" if key == "since" else key
    if (
        isinstance(value, list | tuple)
        and [isinstance(x, int | float) for x in value] == [True] * 2
    ):
        return f"{key} {value[0]:.3g} to {value[1]:.3g}"
    return f"{key} {value:.3g}" if isinstance(value, int | float) else ""


def _kinetics_lines(found: Detection) -> list[str]:
    lines = [f"  order: {_transition(found.transition)}"]
    if found.avrami is not None:
        lines.append(f"  crystal fraction, Avrami fit: {found.avrami.words}")
    if (parts := found.coexistence) is not None:
        kind = "two groups" if parts.bimodal else "one group"
        lines.append(f"  prompts at the midpoint: {kind} (BIC gain {parts.bic_gain:.1f})")
    return lines


def _task_table(found: Detection) -> str:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("task", "phase", "likeliest answer", "may end on"):
        table.add_column(column)
    seeds = any(task.seed is not None for task in found.tasks.values())
    for column in ("seed", "p", "margin", "away") if seeds else ():
        table.add_column(column, justify="right")
    table.add_column("transition")
    if wordings := any(task.likeliest for task in found.tasks.values()):
        table.add_column("likeliest wording")
    for name, task in found.tasks.items():
        ends = end_words(task.seed_set) or "–"
        cells = [*(_seed_cells(task) if seeds else ()), _transition(task.transition)]
        cells += [quoted(task.likeliest) if task.likeliest else ""] if wordings else []
        table.add_row(name, task.looks, task.leading, ends, *cells)
    return as_text(table)


def _seed_cells(task: TaskDetection) -> tuple[str, ...]:
    seed = "–" if task.seed is None else str(task.seed)
    chance = "" if task.p_value is None else f"{task.p_value:.3f}"
    margin = "" if task.margin is None else f"{min(task.margin, 400):.1f}"
    away = "" if task.distance is None else f"{task.distance:.3f}"
    return seed, chance, margin, away


def _transition(found: Transition) -> str:
    return f"{found.verdict}, {found.words}" if found.words else found.verdict
