"""Promise 12: a bar on a terminal, a plain line every half minute in a log, counts over resumes."""

import io
import logging
from types import SimpleNamespace

import pytest

from self_lengthen import progress
from self_lengthen.progress import LINE_EVERY_S, Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    now = SimpleNamespace(s=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now.s))
    return now


class Stderr(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.fixture
def stderr(monkeypatch: pytest.MonkeyPatch):
    def make(terminal: bool) -> Stderr:
        stream = Stderr(terminal)
        monkeypatch.setattr(progress.sys, "stderr", stream)
        return stream

    return make


def test_promise_12_a_log_has_a_plain_line_every_half_minute(stderr, clock, caplog):
    stream = stderr(terminal=False)
    caplog.set_level(logging.INFO)
    steps = Progress("step 1", total=200, done=50)
    for unit in range(100):
        clock.s += 1
        steps.advance(kept=unit % 2 == 0)
    steps.close()
    lines = [record.getMessage() for record in caplog.records]
    assert LINE_EVERY_S == 30
    assert lines == [
        "step 1: 50 of 200 done before",
        "step 1: 80 of 200 done, 15 of the last 30 kept, 30 s",
        "step 1: 110 of 200 done, 30 of the last 60 kept, 60 s",
        "step 1: 140 of 200 done, 45 of the last 90 kept, 90 s",
        "step 1: 150 of 200 done, 50 of the last 100 kept, 100 s",
    ]
    assert stream.getvalue() == ""  # no bar and no control characters in a log


def test_promise_12_a_terminal_has_a_bar_that_starts_at_what_was_done_before(stderr, caplog):
    stream = stderr(terminal=True)
    caplog.set_level(logging.INFO)
    steps = Progress("step 1", total=200, done=50)
    for _ in range(150):
        steps.advance(kept=True)
    steps.close()
    drawn = stream.getvalue()
    assert "50/200" in drawn and "200/200" in drawn and "kept=150" in drawn
    assert caplog.records == []
