"""The figures of a long run: how long `report` and `detect` take, how soon the page is there.

Writes a run of 1,000 probes × 15 tasks × 24 prompts with the choices of the bundled suite, or a
small one of 3 tasks × 8 prompts × 6 choices; makes its report and replays it as a user would, opens
the page in headless Chromium, and prints a table and one JSON line. Seconds are those of the
processor (user and system), so that other work on the machine hardly counts.

    python scripts/measure_report.py
    python scripts/measure_report.py --small --records 100000
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from browser import find_chromium  # noqa: E402

from crystalmon.runs.records import ProbeRecord, TaskRecord  # noqa: E402
from crystalmon.runs.reference import CHOICE_PREFIX, TENSOR_FILE  # noqa: E402
from crystalmon.runs.store import RunStore  # noqa: E402
from crystalmon.suites.tasks import load_suite  # noqa: E402

KEYS = "order crystallinity seed_mass liquidity free_energy free_energy_choice free_energy_format"
KEYS += " coverage entropy entropy_mixture seed_jsd seed_mse crystal_fraction susceptibility"
PHASES = ("liquid", "nucleating", "crystallized", "settling")


def write_run(folder: Path, probes: int, small: bool) -> None:
    """A collapse of every task, as lines of the real form and length, with the base's answers."""
    suite, rng = load_suite("randomness"), np.random.default_rng(0)
    shapes = {task.name: (len(task.prompts), len(task.choices)) for task in suite}
    info = {"suite": suite.name, "suite_hash": suite.hash, "max_steps": probes - 1}
    if small:
        shapes, info = dict.fromkeys(("one", "two", "three"), (8, 6)), {}
    store = RunStore.open(folder / "crystalmon", info, resume_step=None)
    base = {}
    for name, (rows, columns) in shapes.items():
        b = rng.dirichlet(np.full(columns, 0.4), rows) + 1e-6
        base[name] = b / b.sum(axis=1, keepdims=True)
    reference = folder / "crystalmon" / "reference"
    reference.mkdir()
    save_file(
        {CHOICE_PREFIX + name: np.log(b) for name, b in base.items()}, reference / TENSOR_FILE
    )
    for probe in range(probes):
        g = probe / (probes - 1)
        metrics = {key: g * float(rng.uniform(0.9, 1)) for key in KEYS.split()}
        ci = {key: (value - 0.02, value + 0.02) for key, value in metrics.items()}
        phase = PHASES[int(3.99 * g)]
        tasks = {}
        for name, b in base.items():
            q = np.exp((1 - g) * np.log(b) + g * np.log(b[0]) + 0.05 * rng.normal(size=b.shape))
            q = np.vectorize(lambda value: float(f"{value:.8g}"))(q / q.sum(1, keepdims=True))
            tasks[name] = TaskRecord(q, metrics, ci, phase, 0 if g > 0.5 else None, "raw")
        record = ProbeRecord(probe, g, 1e9 + probe, 0.2, 0.02, phase, metrics, ci, tasks)
        store.append(record, [])


def run_command(name: str, *arguments: str) -> dict[str, float]:
    """Seconds of the processor and GB at the most that a command of crystalmon takes."""
    command = [sys.executable, "-m", "crystalmon.cli.main", name, *arguments]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise RuntimeError(f"crystalmon {name} failed; see above.")
    seconds = usage.ru_utime + usage.ru_stime
    return {f"{name}_s": seconds, f"{name}_gb": usage.ru_maxrss / 1e6}


def open_page(file: Path) -> dict[str, float]:
    """Seconds from navigation until all is drawn, and of one move of the slider."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        began = time.perf_counter()
        page.goto(file.as_uri(), wait_until="commit")
        page.wait_for_selector("html[data-ready]", state="attached", timeout=60_000)
        interactive = time.perf_counter() - began
        page.locator("#slider").focus()
        began = time.perf_counter()
        for _ in range(20):
            page.keyboard.press("ArrowLeft")
        moved = (time.perf_counter() - began) / 20
        browser.close()
    return {"interactive_s": interactive, "slider_move_s": moved}


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the report of a long run.")
    parser.add_argument("--records", type=int, default=1000)
    parser.add_argument("--small", action="store_true", help="3 tasks × 8 prompts × 6 choices")
    parser.add_argument("--keep", type=Path, help="copy the page here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_run(folder / "long", arguments.records, arguments.small)
        records = (folder / "long/crystalmon/records.jsonl").stat().st_size
        output = folder / "report.html"
        figures = {"probes": float(arguments.records), "records_mb": records / 1e6}
        figures |= run_command("report", str(folder / "long"), "-o", str(output))
        figures["page_mb"] = output.stat().st_size / 1e6
        figures |= run_command("detect", str(folder / "long"))
        if find_chromium() is None:
            print("no Chromium on the path: the page was not opened", file=sys.stderr)
        else:
            figures |= open_page(output)
        if arguments.keep:
            shutil.copyfile(output, arguments.keep)
    for key, value in figures.items():
        print(f"{key:<16}{value:>10.3f}")
    print(json.dumps({key: round(value, 4) for key, value in figures.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
