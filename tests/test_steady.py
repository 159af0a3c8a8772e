"""What is done when the engine fails under a container: how often, how long, and what is made anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from runner.errors import EngineError, EngineFailedError, GpuError, StateError, StuckContainerError
from runner.sandbox.steady import IN_A_ROW, LOOK_SECONDS, Patience, SteadySandbox
from runner.trial import Ending, Limits, Progress, Result, TrialSpec

LIMITS = Limits(memory_bytes=1, cpus=1, output_bytes=1, scratch_bytes=1, startup_seconds=30, seconds=300)
SPEC = TrialSpec(phase="claim", image="sha256:1", command=("true",), limits=LIMITS)
DONE = Result(ending=Ending.FINISHED, reason="exit code 0")


@dataclass
class Engine:
    """A whole fake of an engine with a sandbox on it, and of the time that passes."""

    fails: list[BaseException | None] = field(default_factory=list)
    """Raised by the next containers, in turn; None lets one pass."""
    away: float = 0.0
    """Seconds for which it does not answer after each failure."""
    asked_to_stop_at: float = float("inf")
    now: float = 0.0
    back: float = 0.0
    done: list[str] = field(default_factory=list)
    shown: list[Progress] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def run(
        self, spec: TrialSpec, destination: Path, *, created: Callable[[str], None], progress: Callable[[Progress], None]
    ) -> Result:
        assert spec is SPEC
        del destination, progress
        self.done.append("run")
        created("c0ffee")
        error = self.fails.pop(0) if self.fails else None
        if error is not None:
            self.back = self.now + self.away
            raise error
        return DONE

    def reap(self, labels: dict[str, str]) -> int:
        return len(labels)

    def sleep(self, seconds: float) -> None:
        assert 0 < seconds <= LOOK_SECONDS
        self.now += seconds

    def steady(self, patience: float = 300.0) -> SteadySandbox:
        return SteadySandbox(
            self,
            absent=lambda: "no engine answers at unix:///s" if self.now < self.back else None,
            stopping=lambda: self.now >= self.asked_to_stop_at,
            tell=self.told.append,
            patience=Patience(seconds=patience, clock=lambda: self.now, sleep=self.sleep),
        )

    def try_it(self, sandbox: SteadySandbox, folder: Path) -> Result:
        return sandbox.run(SPEC, folder, created=lambda _: None, progress=self.shown.append)


def failing(times: int, *messages: str) -> list[BaseException | None]:
    return [EngineFailedError((messages or ("it stopped answering",))[at % max(len(messages), 1)]) for at in range(times)]


def test_what_trials_need_is_made_at_once_and_anew_after_each_failure(tmp_path: Path) -> None:
    engine = Engine(fails=failing(2))
    sandbox = engine.steady()
    for name in ("reap", "probe", "fill"):
        sandbox.needs(lambda name=name: engine.done.append(name))  # type: ignore[misc]

    assert engine.try_it(sandbox, tmp_path) is DONE
    assert engine.try_it(sandbox, tmp_path) is DONE

    again = ["reap", "probe", "fill", "run"]
    assert engine.done == [*again, *again, *again, "run"]
    assert engine.told == ["it stopped answering. Waiting for the engine; then the container of phase claim runs again"] * 2
    assert sandbox.reap({"a": "b"}) == 1


def test_what_fails_several_times_in_a_row_ends_it_with_advice(tmp_path: Path) -> None:
    engine = Engine(fails=failing(IN_A_ROW))

    with pytest.raises(EngineFailedError) as caught:
        engine.try_it(engine.steady(), tmp_path)

    assert engine.done == ["run"] * IN_A_ROW == ["run"] * 3
    said = str(caught.value)
    assert said.startswith("the container engine failed 3 times in a row under the container of phase claim: it stopped answering. ")
    assert "`autoresearch doctor`" in said
    assert said.endswith("the same command goes on")


def test_each_of_several_different_failures_is_told(tmp_path: Path) -> None:
    engine = Engine(fails=failing(3, "one", "two"))

    with pytest.raises(EngineFailedError, match="one; then two; then one"):
        engine.try_it(engine.steady(), tmp_path)


def test_a_container_that_ended_starts_the_count_anew(tmp_path: Path) -> None:
    engine = Engine(fails=[*failing(2), None, *failing(2)])
    sandbox = engine.steady()

    assert [engine.try_it(sandbox, tmp_path) for _ in range(2)] == [DONE, DONE]


def test_a_failure_of_what_is_made_anew_counts_too(tmp_path: Path) -> None:
    engine = Engine(fails=failing(1))
    sandbox = engine.steady()
    tries = iter([None, EngineFailedError("the probe was lost"), EngineFailedError("the probe was lost")])

    def probe() -> None:
        if (error := next(tries)) is not None:
            raise error

    sandbox.needs(probe)
    with pytest.raises(EngineFailedError, match="then the probe was lost; then the probe was lost"):
        engine.try_it(sandbox, tmp_path)
    assert engine.done == ["run"]


@pytest.mark.parametrize(
    "error", [StuckContainerError("x"), EngineError("no image"), GpuError("x"), StateError("x"), KeyboardInterrupt(), RuntimeError()]
)
def test_what_does_not_pass_by_itself_is_not_tried_again(tmp_path: Path, error: BaseException) -> None:
    engine = Engine(fails=[error])

    with pytest.raises(type(error)) as caught:
        engine.try_it(engine.steady(), tmp_path)

    assert caught.value is error
    assert engine.done == ["run"]


@pytest.mark.parametrize("away", [1.0, 45.0, 250.0])
def test_an_engine_that_comes_back_is_waited_for_and_that_is_shown(tmp_path: Path, away: float) -> None:
    engine = Engine(fails=failing(1), away=away)

    assert engine.try_it(engine.steady(), tmp_path) is DONE

    assert away <= engine.now < away + 21
    assert {one.phase for one in engine.shown} == {"engine failed, waiting"}
    assert engine.shown[-1].seconds == pytest.approx(engine.now - LOOK_SECONDS, abs=LOOK_SECONDS)


@pytest.mark.parametrize("patience", [0.0, 4.0, 300.0])
def test_an_engine_that_does_not_come_back_is_given_up(tmp_path: Path, patience: float) -> None:
    engine = Engine(fails=failing(1), away=float("inf"))

    with pytest.raises(EngineFailedError, match=r"it stopped answering\) and did not come back within .*no engine answers at unix:///s\. Nothing was judged"):
        engine.try_it(engine.steady(patience), tmp_path)

    assert patience <= engine.now <= patience + 21
    assert engine.done == ["run"]


def test_a_wish_to_stop_ends_the_waiting_and_is_no_failure(tmp_path: Path) -> None:
    engine = Engine(fails=failing(1), away=100.0, asked_to_stop_at=7.0)

    with pytest.raises(EngineError, match="asked to stop while the container engine was waited for") as caught:
        engine.try_it(engine.steady(), tmp_path)

    assert not isinstance(caught.value, EngineFailedError)
    assert engine.now == pytest.approx(7.0, abs=LOOK_SECONDS)
