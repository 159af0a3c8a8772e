"""Questions in rounds, and processor seconds, with the real engine."""

from __future__ import annotations

import textwrap
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from runner.sandbox.docker import DockerSandbox
from runner.trial import Ending, InputFile, OutputFile, Result, Round, TrialSpec
from tests.docker.conftest import ours
from tests.docker.test_sandbox import GATE, LIMITS, said

if TYPE_CHECKING:
    from docker import DockerClient

pytestmark = pytest.mark.docker

Run = Callable[..., Result]
QUESTIONS = 3


@pytest.fixture
def run(engine: DockerClient, tmp_path: Path, cpu_image: str) -> Iterator[Run]:
    """Runs a script that is asked three questions, `q0` to `q2`; nothing may be left of it afterwards."""
    name, value = "autoresearch.test", uuid.uuid4().hex
    rounds = []
    for number in range(QUESTIONS):
        (tmp_path / f"q{number}").write_bytes(f"question {number}".encode())
        rounds.append(
            Round(
                question=InputFile(name=f"q{number}", path=tmp_path / f"q{number}"),
                answer=OutputFile(name=f"a{number}", max_bytes=8),
            )
        )

    def run(script: str, **limits: float) -> Result:
        (tmp_path / "train.py").write_text(GATE + textwrap.dedent(script))
        spec = TrialSpec(
            phase="audit",
            image=cpu_image,
            command=("python3", "/in/train.py"),
            environment=(("PATH", "/usr/bin:/bin"), ("HOME", "/tmp")),
            files=(InputFile(name="train.py", path=tmp_path / "train.py"),),
            rounds=tuple(rounds),
            limits=replace(LIMITS, **limits),  # type: ignore[arg-type]
            labels=(("autoresearch", "1"), (name, value)),
        )
        return DockerSandbox(engine).run(spec, tmp_path / "out", created=lambda _: None, progress=lambda _: None)

    yield run
    assert ours(engine, f"{name}={value}") == []


ANSWER = """
def readable(name):
    try:
        return open(f"/in/gated/{name}").read()
    except OSError:
        return None
def wait(name):
    while readable(name) is None: time.sleep(0.002)
def give(number, text):
    with open("/out/partial", "w") as file: file.write(text)
    os.rename("/out/partial", f"/out/a{number}")
"""


def test_the_next_question_is_readable_only_after_the_answer_is_out_of_reach(run: Run) -> None:
    result = run(ANSWER + """
gate()
for number in range(3):
    wait(f"q{number}")
    time.sleep(0.3)
    later = [n for n in range(number + 1, 3) if readable(f"q{n}") is not None]
    assert later == [], later
    assert readable("end") is None
    give(number, f"answer {number}")
wait("end")
# Too late to say something else.
for number in range(3):
    give(number, "another!")
""")

    assert result.ending is Ending.FINISHED, said(result)
    answers = [result.output(f"a{number}") for number in range(QUESTIONS)]
    assert [path.read_text() if path else None for path in answers] == ["answer 0", "answer 1", "answer 2"]


@pytest.mark.parametrize(
    "script",
    [
        "gate(); give(0, 'answer 0')",
        "gate(); give(0, 'too long an answer'); give(1, 'answer 1'); give(2, 'answer 2'); time.sleep(0.2)",
        "gate(); os.symlink('/in/train.py', '/out/a0'); time.sleep(0.2)",
        "gate(); os.mkfifo('/out/a0'); time.sleep(0.2)",
        "gate(); os.mkdir('/out/a0'); time.sleep(0.2)",
    ],
    ids=["answers missing", "wrong size", "link", "pipe", "folder"],
)
def test_what_is_no_answer_is_an_invalid_output(run: Run, script: str) -> None:
    result = run(ANSWER + script)

    assert result.ending is Ending.INVALID_OUTPUT, said(result)
    assert "was not written" in result.reason


def test_processor_seconds_count_children_that_nobody_waits_for(run: Run) -> None:
    result = run(ANSWER + """
gate()
def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end: pass
if os.fork() == 0:
    if os.fork() == 0:
        burn(1.0)
        give(0, "answer 0"); wait("q1"); give(1, "answer 1"); wait("q2"); give(2, "answer 2")
    os._exit(0)
wait("end")
""")

    assert result.ending is Ending.FINISHED, said(result)
    assert result.cpu_seconds is not None
    assert 1.0 <= result.cpu_seconds < 3.0


def test_work_before_the_gate_is_counted_and_told_apart(run: Run) -> None:
    result = run(ANSWER + """
end = time.process_time() + 1.5
while time.process_time() < end: pass
gate()
for number in range(3):
    wait(f"q{number}")
    give(number, f"answer {number}")
wait("end")
""")

    assert result.cpu_seconds is not None
    assert result.startup_cpu_seconds is not None
    assert 1.5 <= result.startup_cpu_seconds < 2.5
    assert 0 <= result.cpu_seconds - result.startup_cpu_seconds < 1.0


def test_too_much_work_before_the_gate_ends_the_trial(run: Run) -> None:
    result = run("while True: pass", cpu_seconds=0.5)

    assert (result.ending, result.seconds) == (Ending.TIMED_OUT, 0.0)
    assert "processor seconds" in result.reason


def test_more_processor_seconds_than_allowed_end_the_trial(run: Run) -> None:
    result = run("gate()\nwhile True: pass", cpu_seconds=0.5)

    assert (result.ending, result.reason) == (
        Ending.TIMED_OUT,
        "used more than the 0.5 processor seconds it may; killed",
    )
