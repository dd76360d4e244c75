"""Reads back what trackers have written, from the backends' own files."""

from __future__ import annotations

import importlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest


def read_wandb(folder: Path) -> list[Any]:
    """The records of an offline run's file: a LevelDB log of protobuf messages.

    The file begins with 7 bytes of its own. Then follow blocks of 32 KiB of fragments, each with
    a header: checksum, length, and whether it is a whole record (1) or its first (2), middle (3)
    or last (4) fragment. Less than a header at a block's end is padding.
    """
    messages: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")

    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    data, position, message, records = file.read_bytes(), 7, b"", []
    while position + 7 <= len(data):
        room = 32768 - position % 32768
        if room < 7:
            position += room
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        message += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            records.append(messages.Record.FromString(message))
            message = b""
    return records


def wandb_history(records: list[Any]) -> list[dict[str, Any]]:
    rows = [r.history.item for r in records if r.WhichOneof("record_type") == "history"]
    return [{"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in r} for r in rows]


def wandb_summary(records: list[Any]) -> dict[str, Any]:
    updates = [
        update
        for record in records
        if record.WhichOneof("record_type") == "summary"
        for update in record.summary.update
    ]
    return {"/".join(u.nested_key) or u.key: json.loads(u.value_json) for u in updates}


def read_tensorboard(folder: Path) -> Any:
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    return module.EventAccumulator(str(folder)).Reload()
