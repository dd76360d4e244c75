"""Reports: the stage table's rows, the figures' artists."""

from __future__ import annotations

import io
import math
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_runs import make_event, make_record, make_task, planted_chain
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from crystalmon.metrics.catalogue import BRIEF
from crystalmon.report.palette import PHASE_COLOURS
from crystalmon.report.stage_figure import stage_figure
from crystalmon.report.summary import StageRow, format_stage_table, stage_table
from crystalmon.runs.reference import Reference, ReferenceInfo
from crystalmon.runs.run import Run


def make_run(name: str, *steps: int, **changes: object) -> Run:
    records = tuple(make_record(step, **changes) for step in steps)
    return Run(Path(name) / "crystalmon", {}, records, (make_event(1),))


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    collapse = list(np.linspace(0, 1, 10))
    stages = [("sft", collapse, 10), ("dpo", [1.0, 1.05, 1.1], 20)]
    return planted_chain(tmp_path_factory.mktemp("chain"), stages, tasks=3)


def axes_of(figure: Figure) -> dict[str, Axes]:
    return {str(ax.get_label()): ax for ax in figure.axes}


def test_the_table_has_a_base_row_and_the_end_of_each_stage() -> None:
    full = {"order": 0.5, "crystallinity": 0.25, "seed_mass": 0.75, "free_energy": 1.5}
    tasks = {"a": make_task(locked=3), "b": make_task(), "c": make_task(locked=0)}
    sft = make_run("sft", 0, 40)
    last = make_record(90, metrics=full, tasks=tasks, phase="crystallized", share=0.0125)
    dpo = replace(make_run("dpo", 0, 50), records=(make_record(0), last))
    rows = stage_table([sft, dpo])
    assert [(row.name, row.record.step) for row in rows] == [("base", 0), ("sft", 40), ("dpo", 90)]
    assert [row.share for row in rows] == [None, 0.02, 0.0125]
    assert rows[2].record is last


@pytest.mark.parametrize(("drift", "name"), [(0.0, "base"), (math.nan, "base"), (1.2, "start")])
def test_a_later_stage_on_its_own_does_not_begin_at_the_base(drift: float, name: str) -> None:
    first = make_record(0, metrics={"free_energy": drift})
    run = replace(make_run("dpo", 0, 50), records=(first, make_record(50)))
    assert stage_table([run])[0].name == name


def based(root: Path, name: str, rows: list[list[float]]) -> Run:
    """A run of one probe with these answers for its base."""
    info = ReferenceInfo("s", "h", "raw", "p", "m", "t", 2, "i")
    q = np.array(rows)
    reference = Reference(info, {"coin": np.log(q)}, np.zeros((len(q), 2), dtype=np.float32))
    folder = root / name / "crystalmon"
    reference.save(folder / "reference")
    return replace(make_run(name, 0), folder=folder)


def test_each_base_has_its_row_also_if_all_are_called_alike(tmp_path: Path) -> None:
    one, other = [[0.5, 0.5], [0.9, 0.1]], [[0.5, 0.5], [0.1, 0.9]]
    again = [[0.5 + 1e-4, 0.5 - 1e-4], [0.9, 0.1]]  # on another device
    runs = [
        based(tmp_path, name, rows)
        for name, rows in {"sft": one, "dpo": again, "other/sft": other}.items()
    ]
    assert [row.name for row in stage_table(runs[:2])] == ["base", "sft", "dpo"]
    two = [row.name for row in stage_table(runs[1:])]
    assert two == ["base of dpo", "dpo", "base of sft", "sft"]
    a, b = (str(run.folder) for run in runs[::2])
    assert [row.name for row in stage_table(runs[::2])] == [f"base of {a}", a, f"base of {b}", b]


def test_the_table_prints_one_line_a_stage() -> None:
    base = make_record(0, metrics={"order": 0.0, "seed_mass": 0.5, "liquidity": math.nan})
    metrics = {"order": 0.98765, "crystallinity": 0.9, "seed_mass": 0.8, "liquidity": 0.1}
    metrics |= {"entropy": 1.5, "free_energy": 12.3456, "coverage": 1.0}
    tasks = {"a": make_task(locked=3), "b": make_task(locked=1), "c": make_task()}
    tasks = {name: replace(task, phase="crystallized") for name, task in tasks.items()}
    tasks = {name: replace(task, metrics={"order": 0.9}) for name, task in tasks.items()}
    last = make_record(1200, metrics=metrics, tasks=tasks, phase="crystallized")
    rows = [StageRow("base", base), StageRow("[red]" + "x" * 80, last, 0.0125)]
    header, rule, first, long = format_stage_table(rows).splitlines()
    units = {m.label: f" [{m.unit}]" if m.unit else "" for m in BRIEF}
    columns = ["stage", "step", "phase", *(label + unit for label, unit in units.items())]
    columns += ["seeds locked", "monitoring's share"]
    places = [header.index(column) for column in columns]
    assert places == sorted(places)
    assert set(rule.strip()) == {"─"}
    assert first.split() == ["base", "0", "liquid", "0.000", "–", "0.500", *"––––", "0/1", "–"]
    assert long.split() == [
        *("[red]" + "x" * 80, "1200", "crystallized", "0.988", "0.900"),
        *("0.800", "0.100", "1.500", "12.346", "1.000", "2/3", "1.2%"),
    ]


@pytest.mark.parametrize("report", [stage_table, stage_figure])
def test_a_run_without_a_probe_is_refused_in_one_sentence(report: object) -> None:
    with pytest.raises(ValueError, match=r"the run in .*sft.crystalmon has no probe yet\."):
        report([make_run("sft", 0), make_run("sft")])  # pyright: ignore[reportCallIssue]
    with pytest.raises(ValueError, match="runs must hold at least one run"):
        report([])  # pyright: ignore[reportCallIssue]


def test_the_stage_figure_has_its_panels(chain: list[Run]) -> None:
    figure = stage_figure(chain)
    assert figure.get_size_inches()[0] * figure.dpi == 1400
    axes = axes_of(figure)
    assert list(axes) == ["phase", "events", "alike", "tasks", "kl"]
    legends = {
        name: [text.get_text() for text in ax.legend_.get_texts()]
        for name, ax in axes.items()
        if ax.legend_ is not None
    }
    assert legends["alike"] == ["order", "crystallinity"]
    assert legends["kl"] == ["free energy", "free energy, format", "free energy, choice"]


def test_stages_lie_end_to_end(chain: list[Run]) -> None:
    axes = axes_of(stage_figure(chain))
    first, second = (line for line in axes["alike"].lines if line.get_label() == "order")
    np.testing.assert_array_equal(first.get_xdata(), np.arange(0, 100, 10))
    np.testing.assert_array_equal(second.get_xdata(), [90, 110, 130])
    np.testing.assert_array_equal(first.get_ydata(), chain[0].series("order")[1])
    names = [text.get_text() for text in axes["phase"].texts if text.get_fontweight() == "bold"]
    assert names == ["sft", "dpo"]


def test_the_axis_of_scans_has_the_names_of_their_stages(tmp_path: Path) -> None:
    def scan(name: str, *names: str) -> Run:
        (run,) = planted_chain(tmp_path, [(name, [*np.linspace(0, 1, len(names))], 1)], tasks=2)
        stages = [{"name": stage, "step": step} for step, stage in enumerate(names)]
        return replace(run, info={"stages": stages})

    def written(*runs: Run) -> list[str]:
        ticks = axes_of(stage_figure(runs))["kl"].get_xticklabels()
        return [tick.get_text() for tick in ticks]

    one, other = scan("one", "base", "sft", "rl-$x$"), scan("other", "b", "dpo")
    assert written(one) == ["base", "sft", "rl-$x$"]
    assert written(one, other) == ["base", "sft", "rl-$x$ | b", "dpo"]
    assert written(one, make_run("sft", 0, 9)) != ["base", "sft"]
    many = [f"checkpoint-{number:05}-of-a-long-training" for number in range(30)]
    figure = stage_figure([scan("many", *many)])
    labels = axes_of(figure)["kl"].get_xticklabels()
    assert 1 < len(labels) <= 12
    assert {label.get_rotation() for label in labels} == {90}
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    assert min(label.get_window_extent().y0 for label in labels) > 0


def test_the_strip_shows_the_suites_phases_in_their_colours(chain: list[Run]) -> None:
    strip = axes_of(stage_figure(chain))["phase"]
    blocks = [patch for patch in strip.patches if patch.get_label() in PHASE_COLOURS]
    expected = [
        phase
        for run in chain
        for index, phase in enumerate(record.phase for record in run.records)
        if index == 0 or run.records[index - 1].phase != phase
    ]
    assert [block.get_label() for block in blocks] == expected
    assert {"liquid", "nucleating", "crystallized"} <= set(expected)
    ends = [
        (block.get_x(), block.get_x() + block.get_width())
        for block in blocks
        if isinstance(block, Rectangle)
    ]
    assert (ends[0][0], ends[-1][1]) == (0, 130)
    assert [stop for _, stop in ends[:-1]] == [start for start, _ in ends[1:]]


def test_suite_events_are_lines_with_names(chain: list[Run]) -> None:
    axes = axes_of(stage_figure(chain))
    suite = [event for event in chain[0].events if event.task is None]
    assert [event.kind for event in suite] == ["nucleation_onset", "nucleation_complete"]
    labels = [text.get_text() for text in axes["events"].texts]
    assert labels == [event.kind.replace("_", " ") for event in suite]
    lines = [float(np.asarray(line.get_xdata())[0]) for line in axes["events"].lines]
    assert set(lines) == {event.step for event in suite} | {90}


def test_intervals_are_bands(chain: list[Run]) -> None:
    ax = axes_of(stage_figure(chain))["alike"]
    low, high = chain[0].intervals("crystallinity")
    box = ax.collections[0].get_paths()[0].get_extents()
    assert (box.ymin, box.ymax) == pytest.approx((low.min(), high.max()))


def crowded(tmp_path: Path) -> list[Run]:
    wave = [0.0, 0.5, 1.0, 1.0, 1.0, 0.1, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    stages = [("a-rather-long-name-of-a-stage", wave, 40)]
    stages += [(f"short-stage-{index}", wave, 2) for index in range(3)]
    return planted_chain(tmp_path, stages, tasks=2)


def overlaps(figure: Figure, texts: list[Text]) -> list[tuple[str, str]]:
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [(text.get_text(), Text.get_window_extent(text, renderer)) for text in texts]
    return [
        (one, other)
        for index, (one, box) in enumerate(boxes)
        for other, next_box in boxes[index + 1 :]
        if box.padded(-1.0).overlaps(next_box.padded(-1.0))
    ]


def test_labels_do_not_overlap_and_stay_inside(tmp_path: Path) -> None:
    figure = stage_figure(crowded(tmp_path))
    figure.savefig(io.BytesIO())
    axes = axes_of(figure)
    texts = [*axes["phase"].texts, *axes["events"].texts]
    assert len(axes["events"].texts) > 8
    assert overlaps(figure, texts) == []
    for text in texts:
        box = Text.get_window_extent(text)
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1


def test_a_run_of_one_bare_probe_can_be_drawn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = replace(make_run("x", 0, metrics={}, ci={}), events=())
        figure = stage_figure([run])
        figure.savefig(io.BytesIO())
    assert list(axes_of(figure)) == ["phase", "alike", "tasks", "kl"]


def test_the_figure_leaves_pyplot_alone(tmp_path: Path) -> None:
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_report import make_run
from crystalmon.report.stage_figure import stage_figure
stage_figure([make_run("x", 0, 5)]).savefig({str(tmp_path / "figure.png")!r})
print([m for m in ("matplotlib.pyplot", "torch", "transformers") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
