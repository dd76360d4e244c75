"""The probe of one stage that is loaded: scored, compared with the base, written down."""

from __future__ import annotations

import math
from typing import Any

from crystalmon.metrics.catalogue import BRIEF, brief_value
from crystalmon.monitor.probe import Monitor
from crystalmon.phases.in_words import phase_words
from crystalmon.scan.chat_templates import check_chat_template
from crystalmon.scan.scan_folder import ScanFolder

OTHER_TOKENS = (
    "\n  its tokens for the suite differ from the base's: answers are compared by choice, and what "
    "needs the whole vocabulary (the free energy and its like) is NaN"
)


def probe_stage(folder: ScanFolder, step: int, model: Any, tokenizer: Any) -> tuple[str, str]:
    """Probe a stage as a resumed run would, after the stages before it.

    The stages after it that were measured before are written anew behind it, all at once; a kill
    at that moment costs scoring them again.

    Returns:
        What to tell of the stage, and a remark that need not be made twice.

    Raises:
        ValueError: if the view is `chat` and the stage has no chat template, its own or lent.
        Exception: what scoring raises.
    """
    if folder.view == "chat":
        check_chat_template(tokenizer)
    base = "initial" if step == 0 else folder.reference
    monitor = Monitor(model, tokenizer, folder.suite, base, view=folder.view, answers_only=step > 0)
    monitor.detector.training = False
    if step == 0:
        folder.begin(monitor)
    known = [folder.records[each] for each in sorted(folder.records)]
    for record in known:
        if record.step < step:
            monitor.replay(record)
    probed = monitor.probe(step, unchanged=step == 0)  # the base's answers are known by now
    made = [(probed, monitor.events)]
    made += [(monitor.course.remeasure(each), monitor.events) for each in known if each.step > step]
    folder.write(made, monitor)
    figures = [
        f"{metric.label} {value:.3f} {metric.unit}".rstrip()
        for metric in BRIEF
        if math.isfinite(value := brief_value(metric, probed.metrics))
    ]
    seconds = monitor.seconds_a_probe or probed.seconds
    line = ", ".join([f"{seconds:.1f} s", *figures, phase_words(probed)])
    return line, "" if monitor.shares_tokens else OTHER_TOKENS
