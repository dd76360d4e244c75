"""What the study of a real base shows, from what its runs recorded: no model, no training.

    python scripts/real_results.py              # the runs that are kept in the repository
    python scripts/real_results.py runs/real    # your own study's, as far as it has come

Joins the stages of each chain, base to GRPO, and asks of each view what the paper claims. Prints a
table by stage, the verdicts, the seeds beside those of a null, in which the base's wordings are
permuted, and the seeds that chains share. Draws the course of training and the paper's figures.
"""

from __future__ import annotations

import argparse
import io
import itertools
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from safetensors.numpy import save
from tqdm.auto import tqdm

from crystalmon import Run, read_run
from crystalmon.analysis.stage_measures import measure_stages
from crystalmon.analysis.transfer import find_transfer, format_transfer
from crystalmon.analysis.verdicts import find_seeds, format_verdicts, judge_run, judge_stages
from crystalmon.phases.order import COMPLETE
from crystalmon.report import style
from crystalmon.report.palette import STAGE_COLOURS
from crystalmon.report.scan_figures import write_scan_figures
from crystalmon.runs.files import EVENTS_FILE, RECORDS_FILE, RUN_FILE
from crystalmon.runs.names import DEFAULT_NAME, REFERENCE_FOLDER
from crystalmon.runs.reader import run_folders
from crystalmon.runs.records import json_value
from crystalmon.runs.reference import (
    CHOICE_PREFIX,
    INFO_FILE,
    PLAIN_FILE,
    TENSOR_FILE,
    load_reference,
    read_base_answers,
)

KEPT = Path(__file__).with_name("real.tar.xz")
"""The run folders of the study, without the base's whole vocabulary."""
FIGURES = "figures"
DRAWS = 100
"""Permutations behind the null."""
_SMALL = (Path(REFERENCE_FOLDER, INFO_FILE), Path(REFERENCE_FOLDER, PLAIN_FILE))


@dataclass(frozen=True)
class Chain:
    """One base's way through its stages, asked in one view.

    Args:
        name, view: of the chain's folder, and how its prompts were asked.
        stages: by name, each stage's run.
        joined: the base and the end of each stage, as a scan would have them.
    """

    name: str
    view: str
    stages: Mapping[str, Run]
    joined: Run

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
                    by_view.setdefault(run.folder.name, {})[stage.name[2:]] = run
        for name, stages in by_view.items():
            view = name.removeprefix(DEFAULT_NAME).strip("-") or "raw"
            chains.append(Chain(place.name, view, stages, join(stages)))
    if not chains:
        raise SystemExit(f"{folder} must hold the chains of a study, got none. See --help.")
    return chains


def join(stages: Mapping[str, Run]) -> Run:
    """The base and the end of each stage as one run, whose steps are the stages'.

    Raises:
        ValueError: if a stage was compared with another base.
    """
    first = next(iter(stages.values()))
    if other := [n for n, r in stages.items() if r.info["reference"] != first.info["reference"]]:
        raise ValueError(f"{other[0]} must have the base of {first.folder}, got another.")
    ends = [first.records[0], *(run.records[-1] for run in stages.values())]
    told = [{"step": step, "name": name} for step, name in enumerate(["base", *stages])]
    events = (replace(e, step=s) for s, run in enumerate(stages.values(), 1) for e in run.events)
    records = tuple(replace(record, step=step) for step, record in enumerate(ends))
    return Run(first.folder, {**first.info, "stages": told}, records, tuple(events))


def format_stages(chains: Sequence[Chain]) -> str:
    """A line for each chain, view and stage."""
    heads = f"{'chain':<12}{'view':<10}{'stage':<7}{'coverage':>9}{'measurable':>12}"
    lines = [heads + f"{'liquidity':>11}{'order':>8}{'95% interval':>16}{'KL':>7}"]
    for chain in chains:
        for record, stage in zip(chain.joined.records, ["base", *chain.stages], strict=True):
            found, (low, high) = record.metrics, record.ci.get("order", (0.0, 0.0))
            measurable = len(record.tasks) - found["tasks_not_measurable"]
            tasks = f"{measurable:.0f} of {len(record.tasks)}"
            lines.append(
                f"{chain.name:<12}{chain.view:<10}{stage:<7}{found['coverage']:>9.2f}{tasks:>12}"
                f"{found['liquidity']:>11.3f}{found['order']:>8.2f}"
                f"{f'[{low:.2f}, {high:.2f}]':>16}{found['free_energy']:>7.2f}"
            )
    return "\n".join(lines)


def format_seeds(chains: Sequence[Chain]) -> str:
    """Tasks that have crystallized, and on what, beside the null of permuted wordings."""
    lines = [f"{'chain':<12}{'view':<10}{'crystallized':>13}{'on a wording':>14}{'permuted':>10}"]
    for chain in tqdm(chains, desc="permuting wordings", unit="chain", leave=False):
        base = read_base_answers(chain.joined.folder, chain.joined.records[0].tasks)
        seeds = find_seeds(chain.joined, base)
        complete = [s for s in seeds.values() if s.state in ("seeded", "seedless")]
        seeded = sum(seed.state == "seeded" for seed in seeds.values())
        null = f"{permuted_seeds(chain.joined, base):.1f}"
        lines.append(
            f"{chain.name:<12}{chain.view:<10}{f'{len(complete)} of {len(seeds)}':>13}"
            f"{seeded:>14}{null:>10}"
        )
    return "\n".join(lines)


def permuted_seeds(run: Run, base: Mapping[str, np.ndarray]) -> float:
    """The mean number of tasks that are given a seed where each wording has another's base answers.

    Stages are judged alone, as they are where the detector has confirmed nothing.
    """
    rng, count = np.random.default_rng(0), 0
    for name, b in base.items():
        known = {r.step: r.tasks[name] for r in run.records[1:]}
        stages = {
            step: (task.rows, task.q)
            for step, task in known.items()
            if task.metrics["order"] >= COMPLETE
        }
        for _ in range(DRAWS if stages else 0):
            count += judge_stages(b[rng.permutation(len(b))], stages).state == "seeded"
    return count / DRAWS


def shared_seeds(chains: Sequence[Chain]) -> Iterator[str]:
    """For each two chains of one view, the seeds of one in the answers of the other."""
    for one, other in itertools.permutations(chains, 2):
        if one.view == other.view:
            base = read_base_answers(one.joined.folder, one.joined.records[0].tasks)
            if any(seed.seed is not None for seed in find_seeds(one.joined, base).values()):
                found = format_transfer(one.joined, find_transfer(one.joined, other.joined))
                yield f"{one.name} in {other.name}, {one.view}: {found}"


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
            ax.set_title(f"{label}, {view}", loc="left", fontsize=style.TEXT)
    for ax in grid[-1]:
        ax.set_xlabel("steps, stages end to end", fontsize=style.TEXT)
    grid[0][0].legend(frameon=False, fontsize=style.SMALL)
    return figure


def pack(chains: Sequence[Chain], root: Path, file: Path) -> None:
    """Keep the chains' run folders in one file, of the base only its listed answers."""
    with tarfile.open(file, "w:xz") as archive:
        for run in (run for chain in chains for run in chain.stages.values()):
            place = run.folder.relative_to(root)
            reference = load_reference(run.folder / REFERENCE_FOLDER)
            tables = {f"{CHOICE_PREFIX}{n}": q for n, q in reference.log_choice.items()}
            kept = {Path(REFERENCE_FOLDER, TENSOR_FILE): save(tables)}
            for name in (RUN_FILE, RECORDS_FILE, EVENTS_FILE, *_SMALL):
                if (run.folder / name).is_file():
                    kept[Path(name)] = (run.folder / name).read_bytes()
            for name, content in kept.items():
                told = tarfile.TarInfo((place / name).as_posix())
                told.size = len(content)
                archive.addfile(told, io.BytesIO(content))


def unpack(file: Path, folder: Path) -> Path:
    """The folder, with what `pack` has kept."""
    with tarfile.open(file) as archive:
        archive.extractall(folder, filter="data")
    return folder


def show_results(folder: Path) -> None:
    """Print what a study shows, and draw it into the folder `figures` within the study's."""
    chains, figures = read_chains(folder), folder / FIGURES
    print(f"{format_stages(chains)}\n")
    for chain in chains:
        verdicts = judge_run(chain.joined)
        print(f"{chain.name}, {chain.view}:\n{format_verdicts(verdicts)}\n")
        found = json_value({**measure_stages(chain.joined), "verdicts": verdicts})
        write_scan_figures(chain.joined, found, figures / chain.name / chain.view)
    print(format_seeds(chains))
    for table in shared_seeds(chains):
        print(f"\n{table}")
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
    show_results(folder)
    if args.pack:
        pack(read_chains(folder), folder, args.pack)
    return 0


if __name__ == "__main__":
    sys.exit(main())
