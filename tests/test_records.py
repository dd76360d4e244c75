"""Records and events: strict JSON out, the same values back in."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from crystalmon.phases import PhaseDetector
from crystalmon.runs.json_values import json_value, number_value
from crystalmon.runs.records import (
    EVENT_KINDS,
    PHASES,
    SCHEMA_VERSION,
    Event,
    ProbeRecord,
    TaskRecord,
)

NUMBERS = st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True)
KEYS = st.text(min_size=1, max_size=8)


def distributions(weights: np.ndarray) -> np.ndarray:
    """Rows on the simplex; one of NaN where the weights are."""
    return weights / weights.sum(axis=1, keepdims=True)


TASKS = st.builds(
    TaskRecord,
    q=hnp.arrays(
        np.float64,
        st.tuples(st.integers(1, 3), st.integers(2, 4)),
        elements=st.floats(1e-9, 1.0) | st.just(math.nan),
    ).map(distributions),
    metrics=st.dictionaries(KEYS, NUMBERS, max_size=3),
    ci=st.dictionaries(KEYS, st.tuples(NUMBERS, NUMBERS), max_size=3),
    phase=st.sampled_from(PHASES),
    seed=st.none() | st.just(0),
    view=st.sampled_from(["raw", "chat"]),
)
RECORDS = st.builds(
    ProbeRecord,
    step=st.integers(0, 10**9),
    epoch=st.none() | NUMBERS,
    time=NUMBERS,
    seconds=NUMBERS,
    share=NUMBERS,
    phase=st.sampled_from(PHASES),
    metrics=st.dictionaries(KEYS, NUMBERS, max_size=3),
    ci=st.dictionaries(KEYS, st.tuples(NUMBERS, NUMBERS), max_size=3),
    tasks=st.dictionaries(KEYS, TASKS, max_size=2),
)


def no_constant(name: str):
    raise AssertionError(f"{name} is not JSON")


def through_text(data):
    """As another program would read it: strict JSON, no NaN or Infinity literals."""
    return json.loads(json.dumps(data, allow_nan=False), parse_constant=no_constant)


def same(a, b) -> bool:
    """Equal type by type and bit by bit, NaN equal to NaN, 0.0 not equal to −0.0."""
    if isinstance(a, np.ndarray):
        return type(a) is type(b) and a.dtype == b.dtype and a.tobytes() == b.tobytes()
    if dataclasses.is_dataclass(a):
        names = [field.name for field in dataclasses.fields(a)]
        return type(a) is type(b) and all(same(getattr(a, n), getattr(b, n)) for n in names)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, tuple | list):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and isinstance(b, float):
        nan = math.isnan(a) and math.isnan(b)
        return nan or (a == b and math.copysign(1, a) == math.copysign(1, b))
    return type(a) is type(b) and a == b


def task_record(**changes) -> TaskRecord:
    parts = {
        "q": np.array([[0.25, 0.75], [0.0, 1.0]]),
        "metrics": {"order": 0.5, "seed": math.nan},
        "ci": {"order": (0.25, math.inf)},
        "phase": "liquid",
        "seed": None,
        "view": "raw",
    }
    return TaskRecord(**(parts | changes))


def probe_record(**changes) -> ProbeRecord:
    parts = {
        "step": 10,
        "epoch": 0.5,
        "time": 1.7e9,
        "seconds": 0.25,
        "share": 0.01,
        "phase": "liquid",
        "metrics": {"coverage": 0.875, "free_energy": -math.inf},
        "ci": {"coverage": (0.75, 1.0)},
        "tasks": {"coin": task_record()},
    }
    return ProbeRecord(**(parts | changes))


# --- round trips -----------------------------------------------------------------------------


@settings(max_examples=30, deadline=None, derandomize=True)
@given(RECORDS)
def test_a_record_comes_back_bit_by_bit(record):
    back = ProbeRecord.from_json(through_text(record.to_json()))
    # q's NaN payloads are not numbers; every other bit is
    assert same(_canonical(record), _canonical(back))


def _canonical(record: ProbeRecord) -> ProbeRecord:
    tasks = {
        name: dataclasses.replace(task, q=np.where(np.isnan(task.q), np.nan, task.q))
        for name, task in record.tasks.items()
    }
    return dataclasses.replace(record, tasks=tasks)


def test_same_can_tell():
    """The oracle of this file sees each kind of difference."""
    record = probe_record()
    assert same(record, probe_record())
    assert not same(record, probe_record(step=11))
    assert not same(record, probe_record(metrics={"coverage": 0.875}))
    assert not same(record, probe_record(ci={"coverage": [0.75, 1.0]}))
    assert not same(record, probe_record(tasks={"coin": task_record(q=np.eye(2))}))
    assert not same(0.0, -0.0)
    assert same(math.nan, math.nan)
    assert not same(math.nan, 0.0)


def test_the_line_on_disk_holds_what_the_contract_lists():
    line = through_text(probe_record().to_json())
    assert {"step", "epoch", "time", "seconds", "metrics", "tasks"} <= set(line)
    assert {"metrics", "ci", "phase", "seed", "q", "view"} <= set(line["tasks"]["coin"])
    assert line["tasks"]["coin"]["q"] == [[0.25, 0.75], [0.0, 1.0]]
    assert line["tasks"]["coin"]["metrics"] == {"order": 0.5, "seed": "NaN"}
    assert line["tasks"]["coin"]["ci"] == {"order": [0.25, "Infinity"]}
    assert line["metrics"]["free_energy"] == "-Infinity"
    assert SCHEMA_VERSION == 1


def test_numbers_of_the_run_itself_may_be_non_finite_or_numpy_too():
    record = probe_record(
        step=np.int64(10), epoch=math.nan, seconds=np.float32(0.5), share=np.float64(math.inf)
    )
    line = through_text(record.to_json())
    assert (line["step"], line["epoch"], line["seconds"], line["share"]) == (
        10,
        "NaN",
        0.5,
        "Infinity",
    )
    back = ProbeRecord.from_json(line)
    assert math.isnan(back.epoch)  # type: ignore[arg-type]
    assert back.share == math.inf


def test_a_record_outside_a_trainer_has_no_epoch():
    line = through_text(probe_record(epoch=None).to_json())
    assert line["epoch"] is None
    assert ProbeRecord.from_json(line).epoch is None


def test_q_comes_back_as_a_float64_table_and_ci_as_pairs():
    back = TaskRecord.from_json(through_text(task_record(q=np.eye(2, dtype=int)).to_json()))
    assert back.q.dtype == np.float64
    assert back.q.shape == (2, 2)
    assert back.ci == {"order": (0.25, math.inf)}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    evidence=st.dictionaries(
        KEYS,
        st.recursive(
            NUMBERS | st.integers(-(10**9), 10**9) | st.booleans() | st.none(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
            max_leaves=6,
        ),
        max_size=3,
    )
)
def test_an_event_comes_back_with_its_evidence(evidence):
    event = Event("melting", 7, "coin", evidence, "order has fallen")
    assert same(Event.from_json(through_text(event.to_json())), event)


def test_an_event_of_the_whole_suite_has_no_task():
    event = Event("nucleation_onset", 3, None, {"tasks": {"liquid": 2}}, "one sentence")
    line = through_text(event.to_json())
    assert line == {
        "kind": "nucleation_onset",
        "step": 3,
        "task": None,
        "evidence": {"tasks": {"liquid": 2}},
        "message": "one sentence",
    }
    assert Event.from_json(line) == event


def test_every_event_of_the_detector_comes_back():
    base = np.array([[0.7, 0.2, 0.1], [0.2, 0.6, 0.2], [0.1, 0.1, 0.8], [0.4, 0.4, 0.2]])
    detector = PhaseDetector(base, "t")
    events = []
    for step, share in enumerate((0, 0.9, 0.95, 1, 1, 0, 0)):
        events += detector.update(step, (1 - share) * base + share * base[0])
    assert {event.kind for event in events} >= {"nucleation_onset", "seed_locked", "melting"}
    for event in events:
        assert same(Event.from_json(through_text(event.to_json())), event)


# --- json_value and number_value -------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [(math.nan, "NaN"), (math.inf, "Infinity"), (-math.inf, "-Infinity")],
)
def test_non_finite_numbers_have_their_protobuf_names(value, text):
    assert json_value(value) == text
    assert json_value(np.float64(value)) == text
    assert json_value(np.float32(value)) == text
    assert json_value({"a": [(value, 1.5)]}) == {"a": [[text, 1.5]]}
    assert same(number_value(text), value)


def test_numpy_values_become_plain_ones():
    plain = json_value(
        {"a": np.int64(3), "b": np.float32(0.5), "c": np.bool_(True), "d": np.arange(3.0)}
    )
    assert plain == {"a": 3, "b": 0.5, "c": True, "d": [0.0, 1.0, 2.0]}
    assert [type(value) for value in plain.values()] == [int, float, bool, list]


def test_other_values_pass_unchanged():
    for value in ("text", "", "nan", "inf", 3, -0.5, True, None, []):
        assert same(json_value(value), value)
        assert same(number_value(value), value)


def test_input_is_left_alone():
    value = {"a": [math.nan, {"b": math.inf}]}
    json_value(value)
    assert math.isnan(value["a"][0])
    assert value["a"][1] == {"b": math.inf}


# --- the names -------------------------------------------------------------------------------


def test_phases_keep_their_place():
    """Trackers log the index of the phase: the order is a contract."""
    first = ("liquid", "nucleating", "crystallized", "settling", "melting", "ordered")
    assert (*first, "not measurable") == PHASES


def test_event_kinds_are_those_of_the_contract():
    assert set(EVENT_KINDS) == {
        "nucleation_onset",
        "nucleation_complete",
        "seed_locked",
        "seedless_collapse",
        "support_leak",
        "recrystallization",
        "melting",
        "format_drift",
        "early_warning",
        "entropy_collapse",
        "free_energy_jump",
    }


def test_records_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        probe_record().step = 3  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        task_record().phase = "melting"  # type: ignore[misc]
