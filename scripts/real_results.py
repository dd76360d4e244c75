"""What the study of a real base shows, from what its runs recorded: no model, no training.

    python scripts/real_results.py              # the runs that are kept in the repository
    python scripts/real_results.py runs/real    # your own study's, as far as it has come

Joins the stages of each chain, base to GRPO, and asks of each view what the paper claims. Prints a
table by stage, the verdicts, the seeds beside those of a null, the seeds that chains share, how far
SFT moved answers of low and of high coverage, and how well a few wordings tell the `order` of all.
Draws the course of training and the paper's figures.

In the null each base wording keeps its probabilities, but not what it gives them to: its choices
are shuffled. (To permute the wordings among each other would be no null: the wording that a
collapse is nearest to would still be there.) All chains have one base, and some have one mix, so
they may share a seed because they learned the same data.
"""

from __future__ import annotations

import argparse
import io
import itertools
import math
import re
import shutil
import sys
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from measure_few import format_few
from safetensors.numpy import save
from tqdm.auto import tqdm

from crystalmon import Run, read_run
from crystalmon.analysis.stage_measures import measure_stages
from crystalmon.analysis.transfer import find_transfer
from crystalmon.analysis.verdicts import find_seeds, format_verdicts, judge_run, judge_stages
from crystalmon.metrics.answers import answer_distributions, is_ordered
from crystalmon.monitor.course import Course
from crystalmon.phases.order import COMPLETE
from crystalmon.phases.stored import states_of
from crystalmon.report import style
from crystalmon.report.palette import STAGE_COLOURS
from crystalmon.report.scan_figures import write_scan_figures
from crystalmon.runs.compared_answers import read_base_answers, read_in_view
from crystalmon.runs.files import EVENTS_FILE, RECORDS_FILE, RUN_FILE
from crystalmon.runs.json_values import json_value
from crystalmon.runs.names import DEFAULT_NAME, REFERENCE_FOLDER
from crystalmon.runs.reader import run_folders
from crystalmon.runs.reference import CHOICE_PREFIX, INFO_FILE, PLAIN_FILE, TENSOR_FILE, read_tables
from crystalmon.scoring.rendering import VIEWS

MODEL_PLACE = re.compile(rb'(model": ?"|Tokenizer\()/(?:[^"/]+/)*([^"/]+/[^"/,]+[",])')
KEPT = Path(__file__).with_name("real.tar.xz")
"""The run folders of the study, without the base's whole vocabulary."""
DRAWS = 100
"""Shuffles behind the null."""
COVERAGES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 1.01)
"""Edges of the bins in which wordings are compared."""

Stages = dict[int, tuple[np.ndarray, np.ndarray]]
"""By step, the prompts asked [p] and their answers [p, C]."""


@dataclass(frozen=True)
class Chain:
    """One base's way through its stages, asked in one view.

    Args:
        name, view: of the chain's folder, and how its prompts were asked.
        stages: by name, each stage's run.
    """

    name: str
    view: str
    stages: Mapping[str, Run]

    @cached_property
    def joined(self) -> Run:
        """The base and the latest probe of each stage, as a scan would have them."""
        return join(self.stages)

    @cached_property
    def base(self) -> dict[str, np.ndarray]:
        """By task, the base's answers [P, C]."""
        return read_base_answers(self.joined.folder, self.joined.records[0].tasks)

    @cached_property
    def in_view(self) -> dict[str, np.ndarray]:
        """By task that is compared with the base's plain answers too, those in the view [P, C]."""
        return read_in_view(next(iter(self.stages.values())).folder)

    def course(self, key: str) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """A metric of the suite over all stages, laid end to end: steps, values, stages' starts."""
        steps, values, starts, start = [], [], [], 0
        for run in self.stages.values():
            own, found = run.series(key)
            steps.append(own + start)
            values.append(found)
            starts.append(start)
            start += int(own[-1])
        return np.concatenate(steps), np.concatenate(values), starts


def read_chains(folder: Path) -> list[Chain]:
    """The chains of a study, each in each of its views, as far as they have come."""
    chains = []
    for place in sorted(each for each in folder.iterdir() if each.is_dir()):
        by_view: dict[str, dict[str, Run]] = {}
        for stage in sorted(place.glob("[0-9]-*")):
            for run in map(read_run, run_folders(stage)) if stage.is_dir() else ():
                if run.records:
                    by_view.setdefault(run.folder.name, {})[stage.name[2:]] = as_now(run)
        for stages in by_view.values():
            chains.append(Chain(place.name, view_name(next(iter(stages.values()))), stages))
    if not chains:
        raise SystemExit(f"{folder} must hold the chains of a study, got none. See --help.")
    return chains


def as_now(run: Run) -> Run:
    """A run with what the package measures today of its stored answers.

    Of what a base answers only to the plain prompts, earlier versions compared with these alone.
    """
    if not (in_view := read_in_view(run.folder)):
        return run
    base = read_base_answers(run.folder, run.records[0].tasks)
    course = Course(base, run.info["config"]["view"], in_view)
    course.inherit(states_of(run.info))
    return replace(run, records=tuple(course.remeasure(record) for record in run.records))


def view_name(run: Run) -> str:
    """`raw`, `chat` or, of a template, the name of the run's folder."""
    view = run.info["config"]["view"]
    return view if view in VIEWS else run.folder.name.removeprefix(f"{DEFAULT_NAME}-")


def join(stages: Mapping[str, Run]) -> Run:
    """The base and the latest probe of each stage as one run, whose steps are the stages'.

    Raises:
        ValueError: if a stage was compared with another base.
    """
    first = next(iter(stages.values()))
    if other := [n for n, r in stages.items() if r.info["reference"] != first.info["reference"]]:
        raise ValueError(f"{other[0]} must have the base of {first.folder}, got another.")
    ends = [first.records[0], *(run.records[-1] for run in stages.values())]
    named = [{"step": step, "name": name} for step, name in enumerate(["base", *stages])]
    events = (replace(e, step=s) for s, run in enumerate(stages.values(), 1) for e in run.events)
    records = tuple(replace(record, step=step) for step, record in enumerate(ends))
    return Run(first.folder, {**first.info, "stages": named}, records, tuple(events))


def format_stages(chains: Sequence[Chain]) -> str:
    """A line for each chain, view and stage; of a stage that is not finished, how far it is."""
    heads = f"{'chain':<12}{'view':<10}{'stage':<20}{'coverage':>9}{'measurable':>12}"
    lines = [heads + f"{'liquidity':>11}{'order':>8}{'95% interval':>16}{'KL':>7}"]
    for chain in chains:
        for record, stage in zip(chain.joined.records, ["base", *chain.stages], strict=True):
            found, order, interval = record.metrics, "–", "–"
            if "order" in found:  # else too few tasks were measurable
                low, high = record.ci["order"]
                order, interval = f"{found['order']:.2f}", f"[{low:.2f}, {high:.2f}]"
            measurable = len(record.tasks) - found["tasks_not_measurable"]
            tasks = f"{measurable:.0f} of {len(record.tasks)}"
            lines.append(
                f"{chain.name:<12}{chain.view:<10}{stage + how_far(chain, stage):<20}"
                f"{found['coverage']:>9.2f}{tasks:>12}{found['liquidity']:>11.3f}"
                f"{order:>8}{interval:>16}{found['free_energy']:>7.2f}"
            )
    return "\n".join(lines)


def how_far(chain: Chain, stage: str) -> str:
    if stage not in chain.stages:
        return ""
    run = chain.stages[stage]
    step, end = run.records[-1].step, run.info["max_steps"]
    return "" if step == end else f" ({step} of {end})"


def format_seeds(chains: Sequence[Chain]) -> str:
    """How many tasks have crystallized, and on what; beside it what the null gives."""
    heads = ("crystallized", "locked", "on a wording", "on none", "open", "shuffled")
    lines = [f"{'chain':<12}{'view':<10}" + "".join(f"{head:>14}" for head in heads)]
    for chain in tqdm(chains, desc="shuffling choices", unit="chain", leave=False):
        part = [name for name, b in chain.base.items() if not is_ordered(b)]
        stages = {name: crystallized(chain.joined, name) for name in part}
        whole = {name: found for name, found in stages.items() if found}
        states = [judge_stages(chain.base[name], found).state for name, found in whole.items()]
        locked = sum(seed.locked for seed in find_seeds(chain.joined, chain.base).values())
        counts = [f"{len(whole)} of {len(stages)}", locked]
        counts += [states.count(state) for state in ("seeded", "seedless", "open")]
        counts += [f"{shuffled_seeds(chain.base, whole):.1f}"]
        lines.append(
            f"{chain.name:<12}{chain.view:<10}" + "".join(f"{count:>14}" for count in counts)
        )
    return "\n".join(lines)


def crystallized(run: Run, name: str) -> Stages:
    """The stages at whose end a task had crystallized."""
    found = {record.step: record.tasks[name] for record in run.records[1:]}
    whole = {s: task for s, task in found.items() if task.metrics["order"] >= COMPLETE}
    return {step: (task.rows, task.q) for step, task in whole.items()}


def shuffled_seeds(base: Mapping[str, np.ndarray], stages: Mapping[str, Stages]) -> float:
    """The mean number of tasks that are given a seed where each wording's choices are shuffled."""
    rng = np.random.default_rng(0)
    drawn = (
        judge_stages(rng.permuted(base[name], axis=1), found).state
        for name, found in stages.items()
        for _ in range(DRAWS)
    )
    return sum(state == "seeded" for state in drawn) / DRAWS


def format_shared(chains: Sequence[Chain]) -> str:
    """For each two chains of one view, the seeds of one in the other's last answers."""
    lines = [f"{'seeds of':<12}{'in':<12}{'view':<10}{'tasks':>6}{'distance':>10}{'p':>10}"]
    for one, other in itertools.permutations(chains, 2):
        seeds = find_seeds(one.joined, one.base).values() if one.view == other.view else ()
        if any(seed.seed is not None for seed in seeds):
            found = find_transfer(one.joined, other.joined)[-1]
            distance = np.mean([task.distance for task in found.tasks.values()])
            lines.append(
                f"{one.name:<12}{other.name:<12}{one.view:<10}{len(found.tasks):>6}"
                f"{distance:>10.3f}{found.p_value:>10.2g}"
            )
    return "\n".join(lines if len(lines) > 1 else ["no chain has a seed that another could share"])


def format_moved(chains: Sequence[Chain]) -> str:
    """How far SFT has moved a wording's answers, by its coverage in the base: quartiles.

    Were the answers of wordings of low coverage mere noise, they would move more than others.
    """
    heads = ("wordings", "lower", "median", "upper")
    lines = [f"{'view':<10}{'coverage':<14}" + "".join(f"{head:>10}" for head in heads)]
    for view in dict.fromkeys(chain.view for chain in chains):
        moved = [moved_by_sft(chain) for chain in chains if chain.view == view]
        coverage, apart = np.concatenate(moved, axis=1)
        for low, high in itertools.pairwise(COVERAGES):
            inside = apart[(coverage >= low) & (coverage < high)]
            quartiles = np.percentile(inside, [25, 50, 75]) if len(inside) else [math.nan] * 3
            cells = "".join(f"{value:>10.2f}" for value in quartiles)
            lines.append(f"{view:<10}{f'{low:.2f} to {high:.2f}':<14}{len(inside):>10}{cells}")
    return "\n".join(lines)


def moved_by_sft(chain: Chain) -> np.ndarray:
    """[2, wordings] coverage in the base, and total variation between its answers and SFT's."""
    run = next(iter(chain.stages.values()))
    found = []
    for name, table in read_tables(run.folder / REFERENCE_FOLDER / TENSOR_FILE).items():
        (q, coverage), task = answer_distributions(table), run.records[-1].tasks[name]
        apart = np.abs(q[task.rows] - task.q).sum(axis=1) / 2
        found.append([coverage[task.rows], apart])
    return np.concatenate(found, axis=1)


def course_figure(chains: Sequence[Chain]) -> Figure:
    """Coverage, liquidity, order and KL along training: a row a view, a line a chain."""
    views = list(dict.fromkeys(chain.view for chain in chains))
    names = list(dict.fromkeys(chain.name for chain in chains))
    labels = {
        "coverage": "coverage",
        "liquidity": "liquidity [nats]",
        "order": "order",
        "free_energy": "KL to the base [nats]",
    }
    figure = style.new_figure(0.6 + 2.7 * len(views))
    grid = figure.subplots(len(views), len(labels), squeeze=False, sharex=True, sharey="col")
    for view, row in zip(views, grid, strict=True):
        for ax, (key, label) in zip(row, labels.items(), strict=True):
            for chain in (each for each in chains if each.view == view):
                steps, values, starts = chain.course(key)
                colour = STAGE_COLOURS[1 + names.index(chain.name)]
                ax.plot(steps, values, color=colour, linewidth=1.6, label=chain.name)
                for start in starts[1:]:
                    ax.axvline(start, color=STAGE_COLOURS[0], linewidth=0.6)
            style.open_frame(ax)
            ax.set_title(f"{label}, {view}", loc="left", fontsize=style.TEXT, parse_math=False)
    for ax in grid[-1]:
        ax.set_xlabel("steps, stages end to end", fontsize=style.TEXT)
    grid[0][0].legend(frameon=False, fontsize=style.SMALL)
    return figure


def pack(chains: Sequence[Chain], root: Path, file: Path) -> None:
    """Keep the chains' run folders in one file, of the base only its listed answers.

    Of the place of a model only the last two parts are kept: the others are this machine's.
    """
    with tarfile.open(file, "w:xz") as archive:
        for run in (run for chain in chains for run in chain.stages.values()):
            answers = read_tables(run.folder / REFERENCE_FOLDER / TENSOR_FILE)
            tables = {f"{CHOICE_PREFIX}{name}": table for name, table in answers.items()}
            whole = (RUN_FILE, RECORDS_FILE, EVENTS_FILE)
            whole += tuple(f"{REFERENCE_FOLDER}/{name}" for name in (INFO_FILE, PLAIN_FILE))
            kept = {f"{REFERENCE_FOLDER}/{TENSOR_FILE}": save(tables)}
            kept |= {n: (run.folder / n).read_bytes() for n in whole if (run.folder / n).is_file()}
            for name, content in kept.items():
                if name.endswith(".json"):
                    content = MODEL_PLACE.sub(rb"\1\2", content)
                entry = tarfile.TarInfo((run.folder.relative_to(root) / name).as_posix())
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))


def unpack(file: Path, folder: Path) -> Path:
    """The folder, with what `pack` has kept and nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    with tarfile.open(file) as archive:
        archive.extractall(folder, filter="data")
    return folder


def show_results(chains: Sequence[Chain], figures: Path) -> None:
    """Print what a study shows, and draw it."""
    print(f"{format_stages(chains)}\n")
    for chain in chains:
        verdicts = judge_run(chain.joined)
        print(f"{chain.name}, {chain.view}:\n{format_verdicts(verdicts)}\n")
        found = json_value({**measure_stages(chain.joined), "verdicts": verdicts})
        write_scan_figures(chain.joined, found, figures / chain.name / chain.view)
    tables = (format_seeds, format_shared, format_moved)
    print("\n\n".join(table(chains) for table in tables))
    by_view: dict[str, list[Run]] = {}
    for chain in chains:
        by_view.setdefault(chain.view, []).extend(chain.stages.values())
    print(f"\n{format_few(by_view)}")
    style.write_figure(course_figure(chains), figures / "course")
    print(f"\nfigures: {figures}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", help="of a study; by default the kept one")
    parser.add_argument("--pack", type=Path, metavar="FILE", help="also keep its runs in this file")
    args = parser.parse_args()
    folder = args.folder or unpack(KEPT, Path("runs/real-kept"))
    chains = read_chains(folder)
    show_results(chains, folder / "figures")
    if args.pack:
        pack(chains, folder, args.pack)
    return 0


if __name__ == "__main__":
    sys.exit(main())
