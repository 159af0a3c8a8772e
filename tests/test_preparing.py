"""How a preparation is shown: never silent, never a flood."""

from __future__ import annotations

import io
import time

from runner.prepare import PrepareProgress
from runner.report.preparing import PrepareView, amount


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_there_is_a_plain_line_now_and_then() -> None:
    stream = io.StringIO()
    with PrepareView(stream, line_seconds=0.2) as view:
        view.say("licence: [free] of charge")
        for done in range(1000):
            view.progress(PrepareProgress(stage="pack train", done=done, total=1000, unit="documents"))
            time.sleep(0.0005)
        time.sleep(0.5)
    first, *lines = stream.getvalue().splitlines()
    assert first == "licence: [free] of charge"
    assert 2 <= len(lines) <= 8
    assert lines[-1].endswith("pack train: 999 of 1,000 documents")
    assert "\x1b" not in stream.getvalue()


def test_it_is_not_silent_before_the_first_word() -> None:
    stream = io.StringIO()
    with PrepareView(stream, line_seconds=0.05):
        time.sleep(0.3)
    assert "starting the container" in stream.getvalue()


def test_a_terminal_gets_a_bar_with_every_stage() -> None:
    stream = Terminal()
    with PrepareView(stream) as view:
        view.progress(PrepareProgress(stage="download", done=5_000_000, total=10_000_000, unit="bytes"))
        view.say("a sentence")
        view.progress(PrepareProgress(stage="tokenizer", done=7, unit="documents"))
    text = stream.getvalue()
    assert "download" in text
    assert "5 of 10 MB" in text
    assert "tokenizer" in text
    assert "a sentence" in text


def test_amounts_in_words() -> None:
    assert (
        amount(PrepareProgress(stage="x", done=1234, total=5678, unit="rows", note="all"))
        == "1,234 of 5,678 rows all"
    )
    assert amount(PrepareProgress(stage="x")) == "0"
