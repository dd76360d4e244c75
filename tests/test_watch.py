"""Watching: what the feed tells, what the terminal shows, and how the command ends."""

from __future__ import annotations

import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from fake_runs import make_event, make_record, make_task, write_log
from rich.console import Console
from test_page import make_run

from crystalmon.cli.main import main
from crystalmon.report.live import server as server_module
from crystalmon.report.live.feed import RunFeed
from crystalmon.report.live.server import make_server
from crystalmon.report.live.terminal import screen, sparkline
from crystalmon.runs.names import DEFAULT_NAME
from crystalmon.runs.records import SCHEMA_VERSION
from crystalmon.runs.store import RunStore


def shown(feed: RunFeed) -> str:
    console = Console(width=100, color_system=None)
    with console.capture() as captured:
        console.print(screen(feed.news()))
    return captured.get()


def test_the_feed_waits_then_follows(tmp_path: Path) -> None:
    feed = RunFeed([tmp_path / "run"])
    waiting = feed.news()
    assert waiting.message.startswith(f"Waiting for a run in {tmp_path / 'run'}")
    assert waiting.payload is None
    assert feed.news() is waiting
    store = RunStore.open(tmp_path / "run" / DEFAULT_NAME, {}, resume_step=None)
    assert feed.news().mark != waiting.mark
    for step in range(3):
        store.append(make_record(step), [make_event(step)])
        news = feed.news()
        assert news.message == ""
        assert [record.step for record in news.runs[0].records] == list(range(step + 1))
        assert len(news.runs[0].events) == step + 1
    payload = news.payload
    assert payload is not None
    assert payload["lanes"][0]["step"] == [0, 1, 2]
    assert feed.news().payload is payload


def test_a_probe_is_news_at_once_and_the_log_alone_a_little_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RunStore.open(tmp_path / "run" / DEFAULT_NAME, {}, resume_step=None)
    store.append(make_record(0), [])
    feed = RunFeed([tmp_path / "run"])
    first = feed.news()
    write_log(store, {1: {"loss": 2.0}})
    assert feed.news() is first
    store.append(make_record(2), [])
    assert [row.values["loss"] for row in feed.news().runs[0].trainer_log] == [2.0]
    write_log(store, {3: {"loss": 1.0}})
    monkeypatch.setattr(time, "monotonic", lambda: math.inf)
    assert [row.values["loss"] for row in feed.news().runs[0].trainer_log] == [2.0, 1.0]


def test_a_line_that_is_being_written_is_left_for_later(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [0, 1])
    records = run.folder / "records.jsonl"
    whole = records.read_bytes()
    feed = RunFeed([tmp_path / "run"])
    records.write_bytes(whole[:-20])
    assert [r.step for r in feed.news().runs[0].records] == [0]
    with records.open("ab") as file:
        file.write(whole[-20:])
    news = feed.news()
    assert [r.step for r in news.runs[0].records] == [0, 1]
    assert news.notes == ()
    with records.open("ab") as file:
        file.write(b'{"torn\n')
    assert "line 3 cannot be read" in feed.news().notes[0]


def test_a_run_that_begins_anew_or_resumes_is_read_anew(tmp_path: Path) -> None:
    make_run(tmp_path / "run", [0, 1, 2])
    feed = RunFeed([tmp_path / "run"])
    assert len(feed.news().runs[0].records) == 3
    store = RunStore.open(tmp_path / "run" / DEFAULT_NAME, {}, resume_step=1)
    store.append(make_record(2, phase="melting"), [])
    run = feed.news().runs[0]
    assert [(r.step, r.phase) for r in run.records][-1] == (2, "melting")
    assert run.superseded == 1
    shutil.rmtree(tmp_path / "run")
    assert "Waiting" in feed.news().message
    make_run(tmp_path / "run", [0, 5, 6, 7, 8])
    assert [r.step for r in feed.news().runs[0].records] == [0, 5, 6, 7, 8]


def test_a_newer_schema_is_said_and_does_not_end_the_watch(tmp_path: Path) -> None:
    info = make_run(tmp_path / "run", [0]).folder / "run.json"
    info.write_text(f'{{"schema_version": {SCHEMA_VERSION + 1}}}')
    feed = RunFeed([tmp_path / "run"])
    assert "Upgrade crystalmon" in feed.news().message
    assert feed.news().payload is None
    assert "Upgrade crystalmon" in shown(feed)


def test_the_terminal_shows_phase_curves_tasks_and_events(tmp_path: Path) -> None:
    feed = RunFeed([tmp_path / "run"])
    assert "Waiting for a run" in shown(feed)
    store = RunStore.open(
        tmp_path / "run" / DEFAULT_NAME, {"max_steps": 50, "suite": "x"}, resume_step=None
    )
    assert "no probe yet" in shown(feed)
    tasks = {"coin": make_task(1), "[red]x": make_task(2, phase="crystallized")}
    for step in range(30):
        store.append(make_record(step, tasks=tasks), [make_event(step)])
    text = shown(feed)
    for part in ("step 29 of 50", "liquid", "[red]x", "crystallized", "choice ", "step 29 nucle"):
        assert part in text
    assert "▁" in text
    assert "step 20 nucl" not in text, "only the last events"


def test_a_curve_in_text() -> None:
    assert sparkline(np.array([0.0, 0.5, 1.0, 2.0, np.nan]), 1.0) == "▁▅██ "
    assert len(sparkline(np.linspace(0, 1, 500), 1.0)) == 40
    assert sparkline(np.linspace(0, 1, 500), 1.0)[-1] == "█"


def test_an_idle_connection_ends_and_their_number_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "MOST_CONNECTIONS", 2)
    with make_server(RunFeed([tmp_path]), 0) as server:
        monkeypatch.setattr(server.RequestHandlerClass, "timeout", 1.5)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            place = ("127.0.0.1", server.server_address[1])
            idle = [socket.create_connection(place, timeout=20) for _ in range(2)]
            time.sleep(0.3)
            with socket.create_connection(place, timeout=20) as third:
                assert third.recv(1) == b"", "two are served already"
            for each in idle:
                assert each.recv(1) == b""
                each.close()
            time.sleep(0.3)
            with socket.create_connection(place, timeout=20) as later:
                later.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert later.recv(12) == b"HTTP/1.1 200"
        finally:
            server.shutdown()
            thread.join()


def test_a_port_in_use_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["watch", str(tmp_path), "--port", str(port)]) == 2
    said = capsys.readouterr().err
    assert f"port must be free, got {port}: another program uses it." in said
    assert "--port 0" in said
    with pytest.raises(ValueError, match="port must lie between 0 and 65535, got 70000"):
        make_server(RunFeed([tmp_path]), 70000)


def test_an_interrupt_ends_the_server_cleanly(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "crystalmon.cli.main",
            "watch",
            str(tmp_path / "run"),
            "--port",
            "0",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        # a test run in the background hands down that interrupts are ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout is not None
        assert "watching at http://127.0.0.1:" in process.stdout.readline()
        assert "Waiting for a run in" in process.stdout.readline()
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0
    assert "stopped watching; the training is not affected" in out
    assert err == ""


def test_a_pipe_gets_the_screen_once_per_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = RunStore.open(tmp_path / "run" / DEFAULT_NAME, {"max_steps": 9}, resume_step=None)
    printed: list[str] = []

    def write_or_end(seconds: float) -> None:
        printed.append(capsys.readouterr().out)
        if len(printed) == 5:
            raise KeyboardInterrupt
        if len(printed) in (1, 3):
            store.append(make_record(len(printed)), [make_event(len(printed))])

    monkeypatch.setattr("crystalmon.report.live.terminal.time.sleep", write_or_end)
    assert main(["watch", str(tmp_path / "run"), "--terminal"]) == 0
    assert "no probe yet" in printed[0]
    assert printed[1].startswith("run  step 1 of 9  liquid")
    assert printed[3].startswith("run  step 3 of 9  liquid")
    assert printed[2] == printed[4] == ""
    assert "\x1b" not in "".join(printed), "no colours or cursor movements"


def test_an_interrupt_ends_the_terminal_cleanly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("crystalmon.report.live.terminal.time.sleep", interrupt)
    assert main(["watch", str(tmp_path / "run"), "--terminal"]) == 0
    out = capsys.readouterr().out
    assert "Waiting for a run in" in out
    assert "stopped watching; the training is not affected" in out
