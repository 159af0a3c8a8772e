"""What voids a score: seen often enough, and not the trial's own."""

from __future__ import annotations

from pathlib import Path

from runner.disturbance import Reading, Watch
from runner.sandbox.cputime import belongs
from runner.sandbox.ending import undisturbed
from runner.trial import Ending, Result


def reading(*processes: int, slowed: str | None = None) -> Reading:
    return Reading(memory_bytes=1 << 30, processes=processes, slowed=slowed)


def test_the_trials_own_processes_and_those_that_nobody_knows_disturb_nothing() -> None:
    watch = Watch({1: True, 2: None}.get)
    for _ in range(10):
        watch.note(reading(1, 2))

    assert watch.disturbed is None


def test_a_foreign_process_counts_from_the_second_time() -> None:
    watch = Watch(lambda process: process == 1)
    watch.note(reading(1, 7))
    watch.note(reading(1))
    watch.note(reading(1, 8))
    assert watch.disturbed is None

    watch.note(reading(1, 7))
    assert watch.disturbed == "process 7 computed on its GPU too"


def test_a_slow_down_counts_from_the_third_second() -> None:
    watch = Watch(lambda _: True)
    for _ in range(2):
        watch.note(reading(slowed="heat"))
    watch.note(reading())
    assert watch.disturbed is None

    watch.note(reading(slowed="heat"))
    assert watch.disturbed == "its GPU was slowed down (heat)"


def test_only_training_is_timed() -> None:
    for ending in (Ending.FINISHED, Ending.TIMED_OUT, Ending.CRASHED):
        result = Result(ending=ending, reason="exit code 0")
        assert undisturbed(result, "train", None) == result
        assert undisturbed(result, "claim", "process 7") == result
        void = undisturbed(result, "train", "process 7 computed on its GPU too")
        assert (void.ending, void.reason) == (Ending.INVALID_ENVIRONMENT, "process 7 computed on its GPU too")


def test_a_process_is_the_containers_if_its_control_group_says_so(tmp_path: Path) -> None:
    for process, group in ((1, "0::/system.slice/docker-abc.scope\n"), (2, "0::/user.slice\n")):
        (tmp_path / str(process)).mkdir()
        (tmp_path / str(process) / "cgroup").write_text(group)

    assert [belongs(process, "abc", tmp_path) for process in (1, 2, 3)] == [True, False, None]
