"""Measure the phase detector against what it promises, on histories whose truth is known.

Simulated histories by kind, and real runs with planted seeds: first those of kinds and of a model
that calibration never saw, then those of the calibrated ones. Every share comes with its 95%
Clopper-Pearson interval; the baselines stand in the same table. The last line is JSON.

    python scripts/validate_detection.py             # all of it; trains 148 runs at the first call
    python scripts/validate_detection.py --quick     # a tenth of the simulations, no training
    python scripts/validate_detection.py --stress 1000000
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scenarios import HELD_OUT_KINDS, KINDS, NULL_KINDS, bank, make_scenario, orders
from scipy.stats import beta
from tqdm.auto import tqdm
from trained_bank import CALIBRATED, REPORTED, Bank, prepare_environment
from validation_sets import Look, set_lines, set_numbers
from validation_simulated import BASELINES, NEVER, Outcome, judge, page_hinkley_peak
from validation_stress import stress
from validation_trained import judge_bank, read_bank, seed_lines

CALIBRATION_SEED, TEST_SEED = 1, 7
"""The bank that the thresholds were chosen on is another than the one that is reported."""
POOL_FILE = Path("runs/validation/smollm2.npz")


def share(hits: Iterable[Any]) -> dict[str, float]:
    """Count, total, share and 95% Clopper-Pearson interval."""
    values = [bool(hit) for hit in hits]
    count, total = sum(values), len(values)
    if not total:
        return {"count": 0, "total": 0, "share": float("nan"), "low": 0.0, "high": 1.0}
    low = float(beta.ppf(0.025, count, total - count + 1)) if count else 0.0
    high = float(beta.ppf(0.975, count + 1, total - count)) if count < total else 1.0
    return {"count": count, "total": total, "share": count / total, "low": low, "high": high}


def shown(found: Mapping[str, float]) -> str:
    """A share as text."""
    if not found["total"]:
        return "none"
    return (
        f"{found['count']:.0f}/{found['total']:.0f} = {100 * found['share']:.1f}% "
        f"[{100 * found['low']:.1f}, {100 * found['high']:.1f}]"
    )


class Report:
    """Prints promises as they are measured, and keeps them for the JSON line."""

    def __init__(self) -> None:
        self.data: dict[str, Any] = {}

    def head(self, text: str) -> None:
        print(f"\n{text}\n{'─' * len(text)}")

    def line(self, key: str, label: str, hits: Iterable[Any], bound: str = "") -> None:
        found = share(hits)
        self.data[key] = found
        verdict = ""
        if bound and found["total"]:
            sign, number = bound[0], float(bound[1:]) / 100
            kept = found["share"] >= number if sign == "≥" else found["share"] <= number
            verdict = f"{bound}%: {'kept' if kept else 'NOT KEPT'}"
        print(f"  {label:<52} {shown(found):<30}{verdict}")

    def number(self, key: str, label: str, value: float, bound: float | None = None) -> None:
        self.data[key] = value
        verdict = "" if bound is None else f"≤{bound:g}: {'kept' if value <= bound else 'NOT KEPT'}"
        print(f"  {label:<52} {value:<30.3g}{verdict}")


def run_bank(
    positives: int, nulls: int, held_out: bool, pool: Mapping[str, np.ndarray] | None, limit: float
) -> list[Outcome]:
    """Judge a bank, with a bar."""
    name = "held out" if held_out else "calibrated kinds"
    scenarios = bank(positives, nulls, TEST_SEED, held_out=held_out, pool=pool)
    bar = tqdm(scenarios, total=positives + nulls, desc=name, unit="run", mininterval=5)
    return [judge(scenario, limit) for scenario in bar]


def calibrate_page_hinkley(count: int) -> float:
    """The limit that 1% of calibration nulls pass: the baseline at its best."""
    kinds = [kind for kind in NULL_KINDS if kind != "ordered base"]
    peaks = []
    for index in range(count):
        scenario = make_scenario(kinds[index % len(kinds)], CALIBRATION_SEED * 10**6 + index)
        peaks.append(page_hinkley_peak(orders(scenario.q, scenario.base)).max())
    return float(np.quantile(peaks, 0.99))


def report_bank(report: Report, name: str, outcomes: Sequence[Outcome]) -> None:
    """Every promise on one bank: all kinds together, then kind by kind."""
    nulls = [o for o in outcomes if o.scenario.is_null]
    positives = [o for o in outcomes if not o.scenario.is_null]
    delays = np.array([o.delay for o in positives])
    seeded = [o for o in positives if o.scenario.seed is not None]
    lonely = [o for o in positives if o.scenario.seedless]
    report.head(f"{name}: {len(nulls)} nulls, {len(positives)} positives")
    report.line(f"{name}/false", "nulls with any false event", _false(nulls), "≤1")
    report.line(f"{name}/onset", "onsets found", delays < NEVER, "≥99")
    found = delays[delays < NEVER]
    report.number(f"{name}/median", "median delay, probes", float(np.median(found)), 1)
    report.number(f"{name}/p90", "90th percentile of the delay", float(np.quantile(found, 0.9)), 2)
    report_sets(report, name, [look for o in outcomes for look in o.looks])
    wrong = [o.seed is not None and not o.seed_right for o in seeded]
    report.line(f"{name}/locked", "a seed locked", [o.seed is not None for o in seeded])
    report.line(f"{name}/locked/wrong", "… locked and wrong", wrong, "≤1")
    report.line(f"{name}/called", "… wrongly called seedless", _called(seeded), "≤1")
    report.line(f"{name}/seedless", "seedless, named so", _seedless(lonely), "≥95")
    forced = [o.seed is not None for o in lonely]
    report.line(f"{name}/seedless/forced", "… given a seed instead", forced, "≤1")
    for kind in ("support_leak", "melting", "recrystallization", "format_drift"):
        some = [o for o in outcomes if kind in o.scenario.expected]
        report.line(f"{name}/{kind}", f"{kind} found", (o.found[kind] < NEVER for o in some), "≥95")
    settled = [o for o in positives if o.scenario.kind == "settling"]
    report.line(f"{name}/settling", "settling, the last phase", (o.phase_right for o in settled))
    report.line(f"{name}/extra", "positives with any false event", _false(positives))
    covered = [o.covered for o in positives if o.covered is not None]
    report.line(f"{name}/coverage", "onset inside its 95% interval", covered, "≥95")
    widths = [o.width for o in positives if o.covered is not None]
    report.number(f"{name}/width", "mean width of the interval, probes", float(np.mean(widths)))
    _report_kinetics(report, name, positives)
    _report_warnings(report, name, positives, nulls)
    _report_kinds(report, name, outcomes)
    _report_rivals(report, name, nulls, positives, seeded)


def report_sets(report: Report, name: str, looks: Sequence[Look]) -> None:
    """Coverage and size of the seed sets."""
    for label, key, bound, hits in set_lines(looks):
        report.line(f"{name}/{key}", label, hits, bound)
    for label, key, median, most in set_numbers(looks):
        report.number(f"{name}/{key}", label, median, most)


def _false(outcomes: Iterable[Outcome]) -> list[bool]:
    return [bool(o.false_events) for o in outcomes]


def _right(outcomes: Iterable[Outcome]) -> list[bool]:
    return [o.seed_right for o in outcomes]


def _called(outcomes: Iterable[Outcome]) -> list[bool]:
    return [o.seedless for o in outcomes]


def _seedless(outcomes: Iterable[Outcome]) -> list[bool]:
    return [o.seedless and o.seed is None for o in outcomes]


def _report_kinetics(report: Report, name: str, positives: Sequence[Outcome]) -> None:
    for tempo in ("abrupt", "gradual"):
        some = [o for o in positives if o.scenario.tempo == tempo]
        decided = [o for o in some if o.verdict != "undetermined"]
        right = [o.verdict == tempo for o in decided]
        report.line(f"{name}/kinetics/{tempo}", f"planted {tempo}, called so", right, "≥90")
        open_ = [o.verdict == "undetermined" for o in some]
        report.line(f"{name}/kinetics/{tempo}/open", "… undetermined, counted apart", open_)


def _report_warnings(
    report: Report, name: str, positives: Sequence[Outcome], nulls: Sequence[Outcome]
) -> None:
    slow = [o for o in positives if o.scenario.tempo == "gradual"]
    report.line(
        f"{name}/warned", "gradual ones with an early warning", [o.lead is not None for o in slow]
    )
    leads = [o.lead for o in slow if o.lead is not None]
    if leads:
        report.number(f"{name}/lead", "median lead of the warning, probes", float(np.median(leads)))
    alarm = ["early_warning" in o.false_events for o in nulls]
    report.line(f"{name}/warning/false", "nulls with an early warning", alarm, "≤1")


def _report_kinds(report: Report, name: str, outcomes: Sequence[Outcome]) -> None:
    print(
        f"\n  {'kind':<30}{'runs':>6}{'false events':>30}{'onsets':>9}{'p90':>5}"
        f"  {'seed named rightly':>30}"
    )
    by_kind: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_kind.setdefault(outcome.scenario.kind, []).append(outcome)
    for kind, some in by_kind.items():
        onsets = seeds = tail = ""
        if not some[0].scenario.is_null:
            delays = np.array([o.delay for o in some])
            onsets = f"{100 * np.mean(delays < NEVER):.1f}%"
            tail = f"{np.quantile(delays[delays < NEVER], 0.9):.0f}"
            judge_seed = _seedless(some) if some[0].scenario.seedless else _right(some)
            seeds = shown(share(judge_seed))
            report.data[f"{name}/kind/{kind}/seed"] = share(judge_seed)
        wrong = share(_false(some))
        report.data[f"{name}/kind/{kind}/false"] = wrong
        print(f"  {kind:<30}{len(some):>6}{shown(wrong):>30}{onsets:>9}{tail:>5}  {seeds:>30}")


def _report_rivals(
    report: Report,
    name: str,
    nulls: Sequence[Outcome],
    positives: Sequence[Outcome],
    seeded: Sequence[Outcome],
) -> None:
    print(
        f"\n  {'onset, by method':<24}{'nulls with an alarm':>32}{'onsets within 2 probes':>34}"
        f"{'|delay| p90':>12}"
    )
    rows: list[tuple[str, list[bool], np.ndarray]] = [
        (
            "this detector",
            ["nucleation_onset" in o.false_events for o in nulls],
            np.array([o.delay for o in positives]),
        )
    ]
    for rival in BASELINES:
        alarms = [o.rivals[rival] < NEVER for o in nulls if o.scenario.kind != "ordered base"]
        rows.append((rival, alarms, np.array([o.rivals[rival] for o in positives])))
    for method, alarms, delays in rows:
        timely = np.abs(delays) <= 2
        report.data[f"{name}/method/{method}"] = {"false": share(alarms), "timely": share(timely)}
        tail = np.quantile(np.abs(delays), 0.9)
        print(f"  {method:<24}{shown(share(alarms)):>32}{shown(share(timely)):>34}{tail:>12.0f}")
    report.line(
        f"{name}/method/nearest",
        "seed, baseline: nearest prompt",
        [o.nearest_right for o in seeded],
    )


def real_bases() -> dict[str, np.ndarray]:
    """SmolLM2-135M's answers to the bundled suite, scored once; empty if it is not installed."""
    if not POOL_FILE.is_file():
        from crystalmon import Monitor
        from crystalmon.scoring.models import load_model

        try:
            model, tokenizer = load_model("smollm2-135m")
        except ModuleNotFoundError as error:
            print(f"no real bases in the held-out bank: {error}")
            return {}
        record = Monitor(model, tokenizer, "randomness", progress=True).probe()
        POOL_FILE.parent.mkdir(parents=True, exist_ok=True)
        np.savez(POOL_FILE, allow_pickle=False, **{k: t.q for k, t in record.tasks.items()})
    with np.load(POOL_FILE) as stored:
        rows = {name: np.maximum(stored[name], 1e-7) for name in stored.files}
    return {f"smollm2 {k}": q / q.sum(axis=1, keepdims=True) for k, q in rows.items()}


def report_trained(report: Report, count: int | None) -> None:
    """The promises on real training runs, those of the model that calibration never saw first."""
    _report_bank_of_runs(report, "trained", REPORTED, count)
    for of_model in CALIBRATED:
        name = f"trained, calibration, {of_model.family.name}"
        _report_bank_of_runs(report, name, of_model, count)


def _report_bank_of_runs(report: Report, name: str, trained: Bank, count: int | None) -> None:
    folders, histories = read_bank(trained, count)
    if not histories:
        return
    base = trained.family.name
    report.head(f"{name}: {len(folders)} runs of {base}, {len(histories)} task histories")
    lines = judge_bank(folders, histories) if trained == REPORTED else seed_lines(histories)
    for label, key, bound, hits in lines:
        report.line(f"{name}/{key}", label, hits, bound)
    looks = [look for history in histories if history.group for look in history.looks()]
    for label, key, median, most in set_numbers(looks):
        report.number(f"{name}/{key}", label, median, most)


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the phase detector.")
    parser.add_argument("--quick", action="store_true", help="a tenth of it, and no training")
    parser.add_argument("--positives", type=int, default=2000)
    parser.add_argument("--nulls", type=int, default=2000)
    parser.add_argument("--held-out", type=int, default=600, help="of each, positives and nulls")
    parser.add_argument("--trained", type=int, help="runs of each trained bank; all if not given")
    parser.add_argument("--stress", type=int, default=0, help="only this: so many random probes")
    args = parser.parse_args()
    began = time.perf_counter()
    if args.stress:
        print(json.dumps(stress(args.stress)))
        return 0
    prepare_environment()
    if args.quick:
        args.positives, args.nulls, args.held_out = 200, 200, 100
        args.trained = 0
    report = Report()
    limit = calibrate_page_hinkley(min(400, args.nulls))
    held = run_bank(args.held_out, args.held_out, True, None, limit)
    report_bank(report, "held out", held)
    if not args.quick and (pool := real_bases()):
        some = args.held_out // 3
        report_bank(report, "held out, SmolLM2 bases", run_bank(some, some, True, pool, limit))
    report_trained(report, args.trained)
    report_bank(report, "calibrated", run_bank(args.positives, args.nulls, False, None, limit))
    report.data["seconds"] = round(time.perf_counter() - began)
    kinds = {"kinds": [*KINDS, *NULL_KINDS], "held_out_nulls": [*HELD_OUT_KINDS]}
    print(f"\ntook {report.data['seconds']} s")
    print(json.dumps({**report.data, **kinds}, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
