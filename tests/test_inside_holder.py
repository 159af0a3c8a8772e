"""The program that looks at a folder which a hostile trial writes: it must never wait, follow or fail."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from runner.sandbox import inside_holder
from runner.sandbox.inside_holder import hold_rounds, is_ready, said, take

F_SETLEASE = 1024


@pytest.mark.parametrize("make", ["file", "folder", "pipe", "link to itself", "dangling link"])
def test_anything_called_ready_is_ready(tmp_path: Path, make: str) -> None:
    path = tmp_path / "ready"
    assert is_ready(str(tmp_path)) is False
    match make:
        case "file":
            path.touch()
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "link to itself":
            path.symlink_to("ready")
        case _:
            path.symlink_to("/nowhere")

    assert is_ready(str(tmp_path)) is True


def test_step_and_loss_are_said(tmp_path: Path) -> None:
    (tmp_path / "progress.json").write_text('{"step": 12, "loss": 3.25, "losses": [[1, 2.0]], "more": "words"}')

    assert said(str(tmp_path)) == '{"step": 12, "loss": 3.25}'


@pytest.mark.parametrize(
    "text",
    ["", "nan", "[]", '"x"', "[" * 60_000, '{"step": "x"}', '{"step": true, "loss": 1}', '{"loss": NaN}', '{"step": -1}',
     '{"loss": 1e999}', '{"step": ' + "9" * 4000 + "}", "x" * (1 << 20)],
)  # fmt: skip
def test_garbage_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "progress.json").write_text(text)

    assert said(str(tmp_path)) == ""


def test_pipes_links_and_folders_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    (tmp_path / "secret").write_text('{"step": 1}')
    os.mkfifo(path)
    assert said(str(tmp_path)) == ""
    path.unlink()
    for target in ("secret", "progress.json", "/dev/zero"):
        path.symlink_to(target)
        assert said(str(tmp_path)) == ""
        path.unlink()
    path.mkdir()
    assert said(str(tmp_path)) == ""


def test_a_lease_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    path.write_text('{"step": 1}')
    before = signal.signal(signal.SIGIO, lambda *_: None)
    with path.open("r+") as file:
        fcntl.fcntl(file, F_SETLEASE, fcntl.F_WRLCK)
        began = time.monotonic()
        assert said(str(tmp_path)) == ""
        assert time.monotonic() - began < 1
    signal.signal(signal.SIGIO, before)


def test_a_file_that_changes_under_the_eye_never_holds_it_up(tmp_path: Path) -> None:
    """A regular file and a pipe take turns at the name, as fast as another thread can swap them."""
    path, over = tmp_path / "progress.json", threading.Event()
    (tmp_path / "file").write_text('{"step": 7}')
    os.mkfifo(tmp_path / "pipe")

    def swap() -> None:
        while not over.is_set():
            for name in ("file", "pipe"):
                (tmp_path / "new").unlink(missing_ok=True)
                os.link(tmp_path / name, tmp_path / "new")
                (tmp_path / "new").replace(path)

    thread = threading.Thread(target=swap)
    thread.start()
    began = time.monotonic()
    seen = {said(str(tmp_path)) for _ in range(2000)}
    took = time.monotonic() - began
    over.set()
    thread.join()

    assert seen <= {"", '{"step": 7, "loss": null}'}
    assert took < 10


def test_it_speaks_and_ends_by_itself(tmp_path: Path) -> None:
    (tmp_path / "ready").touch()
    (tmp_path / "progress.json").write_text('{"step": 3, "loss": 1.5}')
    program = Path(inside_holder.__file__).read_text()
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, str(tmp_path), "0.3", "[]"], capture_output=True, text=True, check=True, timeout=20
    )

    assert done.stdout == 'ready\nsaid {"step": 3, "loss": 1.5}\n'


@pytest.mark.parametrize("make", ["nothing", "short", "long", "link", "pipe", "folder"])
def test_only_a_regular_file_of_the_right_size_is_an_answer(tmp_path: Path, make: str) -> None:
    source, target = tmp_path / "answer", tmp_path / "kept"
    match make:
        case "short":
            source.write_bytes(b"1234")
        case "long":
            source.write_bytes(b"123456")
        case "link":
            (tmp_path / "other").write_bytes(b"12345")
            source.symlink_to("other")
        case "pipe":
            os.mkfifo(source)
        case "folder":
            source.mkdir()
        case _:
            pass

    assert take(str(source), str(target), 5) is False
    assert not target.exists()


def test_an_answer_is_taken_whole(tmp_path: Path) -> None:
    data = os.urandom((3 << 20) + 17)
    (tmp_path / "answer").write_bytes(data)

    assert take(str(tmp_path / "answer"), str(tmp_path / "kept"), len(data)) is True
    assert (tmp_path / "kept").read_bytes() == data
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answer", "kept"]


def test_the_next_question_is_shown_only_when_the_answer_is_kept(tmp_path: Path) -> None:
    out, inside, kept = (tmp_path / name for name in ("out", "in", "kept"))
    for folder in (out, inside, kept):
        folder.mkdir()
    (inside / "q0").touch(0o444)
    (inside / "q1").touch(0o400)
    rounds = [("q0", "a0", 2), ("q1", "a1", 2)]
    thread = threading.Thread(
        target=hold_rounds, args=(str(out), str(inside), str(kept), rounds, time.monotonic() + 20)
    )
    thread.start()
    (out / "a1").write_bytes(b"22")  # before its question: it is taken when it is its turn, and not before
    time.sleep(0.1)

    assert (inside / "q1").stat().st_mode & 0o777 == 0o400
    assert list(kept.iterdir()) == []
    (out / "a0").write_bytes(b"11")
    thread.join()
    assert (inside / "q1").stat().st_mode & 0o777 == 0o444
    assert [(kept / name).read_bytes() for name in ("a0", "a1")] == [b"11", b"22"]
    assert (inside / "end").exists()


def test_who_waits_for_answers_ends_by_itself(tmp_path: Path) -> None:
    hold_rounds(str(tmp_path), str(tmp_path), str(tmp_path), [("q0", "a0", 2)], time.monotonic() + 0.05)

    assert list(tmp_path.iterdir()) == []
