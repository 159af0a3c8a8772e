"""Whatever kills a runner at whatever moment: the next one goes on, and in the end nothing is otherwise."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner import ledger
from tests.conftest import run_git
from tests.crashing import Case, Stage, in_a_process, kill_at, matrix, stages
from tests.lasting import STAGES, Scene, outcome

IN_MEMORY = Path("/dev/shm")
"""A disk that is written to in no time."""
SAMPLE = 6
"""Of the points at the steps, one in so many is tried where time is short."""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="autoresearch-crash-", dir=IN_MEMORY if IN_MEMORY.is_dir() else None) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def story(folder: Path) -> list[Stage]:
    return list(stages(folder))


@pytest.fixture(scope="module")
def undisturbed(story: list[Stage], folder: Path) -> Scene:
    assert story
    return Scene(folder / "undisturbed")


def told(cases: list[Case]) -> str:
    """What differed, for a person."""
    return "\n".join(
        f"{STAGES[case.stage]}, killed at {case.kills}: {'; '.join(case.differs)}\n{case.said[-2000:]}" for case in cases if case.differs
    )


def test_the_story_has_what_can_happen(story: list[Stage], undisturbed: Scene) -> None:
    records = story[-1].after["records"]
    assert [record["verdict"] for record in records] == [
        "baseline", "baseline", "keep", "discard", "crash", "invalid", "discard", "repeat", "keep",
    ]  # fmt: skip
    assert [len(record["measurements"]) for record in records] == [1, 1, 1, 1, 1, 0, 2, 1, 1]
    events = [json.loads(line)["event"] for line in (undisturbed.run / ledger.JOURNAL).read_bytes().splitlines()]
    assert set(events) == {
        "run", "data", "proposed", "candidate", "examined", "created", "started", "exited", "trained", "claimed", "audited", "measured", "confirmed",
        "judged", "done",
    }  # fmt: skip
    assert story[-1].after["containers"] == []
    # Each has points before and after writes to every part that a step may change.
    for stage in story:
        changed = frozenset[str]().union(*(point.before for point in stage.points))
        assert changed >= ({"journal", "git"} if STAGES[stage.number] == "a refusal" else {"journal", "git", "engine", "leases"})


@pytest.mark.timeout(1800)
def test_killed_before_or_after_a_step_nothing_is_lost(story: list[Stage], folder: Path) -> None:
    cases = [(stage, (point.number,)) for stage in story for point in stage.points if point.at_a_step][::SAMPLE]

    assert told(matrix(cases, folder)) == ""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_any_point_nothing_is_lost(story: list[Stage], folder: Path) -> None:
    cases = [(stage, (point.number,)) for stage in story for point in stage.points]

    assert told(matrix(cases, folder)) == ""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_again_and_again_while_it_goes_on_nothing_is_lost(story: list[Stage], folder: Path) -> None:
    """The second runner has points of its own: it does less, and mends.  The third is killed as well."""
    chance = random.Random(26)
    cases = [
        (stage, (point.number, chance.randrange(1, stage.count // 2 + 2), chance.randrange(1, stage.count // 2 + 2)))
        for stage in story
        for point in stage.points[:: 2 * SAMPLE]
    ]

    assert told(matrix(cases, folder)) == ""


def test_a_difference_is_seen(story: list[Stage], folder: Path) -> None:
    """The matrix itself: a branch, a note, a table, a container, a lease, a file that is not as it was is told."""
    stage = story[1]
    found = stage.after
    scene = stage.before.copy_to(folder / "seen")
    assert in_a_process(scene, stage.work(scene)) == 0
    assert outcome(scene) == found

    def differs() -> set[str]:
        return {name for name, value in outcome(scene).items() if value != found[name]}

    base = run_git(scene.task, "rev-parse", "main")
    run_git(scene.task, "update-ref", "refs/heads/autoresearch/t", base)
    run_git(scene.task, "notes", "--ref=autoresearch", "add", "-f", "-m", "another", base)
    (scene.run / "results.tsv").write_text("another")
    (scene.engine / "left").write_text("{}")
    (scene.leases / "GPU-0.lease").write_text("left")
    (scene.temporary / "left").write_text("")
    (scene.task / "program.md").write_text("another")
    (scene.run / "trials" / "0000" / ".claim.npy.partial").write_text("")
    assert differs() == {"refs", "notes", "results.tsv", "containers", "leases", "temporary", "checkout", "files"}
    shutil.rmtree(scene.root)

    killed = stage.before.copy_to(folder / "seen")
    status = in_a_process(killed, stage.work(killed), kill_at(stage.points[-1].number // 2))
    assert os.WIFSIGNALED(status)
    assert outcome(killed) != found
    shutil.rmtree(killed.root)


# -- a journal that is cut -----------------------------------------------------------------------------


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", [1, pytest.param(-1, marks=pytest.mark.slow)], ids=["two baselines", "everything"])
def test_a_journal_cut_at_every_byte_is_read_as_what_was_whole_before(story: list[Stage], tmp_path: Path, part: int) -> None:
    scene = story[part].before
    data = (scene.run / ledger.JOURNAL).read_bytes()
    folder = tmp_path / "t"
    folder.mkdir()
    path = folder / ledger.JOURNAL
    whole, at = ledger.State(), 0
    for line in data.splitlines(keepends=True):
        for length in range(len(line)):
            path.write_bytes(data[: at + length])
            assert ledger.read(folder) == whole, f"cut at byte {at + length}"
        at += len(line)
        path.write_bytes(data[:at])
        more = ledger.read(folder)
        assert more.events == whole.events + 1
        whole = more
    assert whole == ledger.read(scene.run)
    assert len(whole.records) >= 2


@pytest.mark.timeout(1800)
def test_a_run_goes_on_after_its_journal_lost_its_end(story: list[Stage], folder: Path) -> None:
    """It does again what the journal does not know of.  A branch that is ahead of it is not taken for its own, and the message says what to do."""
    stage, before = story[1], story[2].before
    data = (before.run / ledger.JOURNAL).read_bytes()
    ends = [at + 1 for at, byte in enumerate(data) if byte == ord("\n")]
    ended = Counter[str]()
    for number, end in enumerate(ends[:-1]):
        scene = before.copy_to(folder / "cut")
        os.truncate(scene.run / ledger.JOURNAL, end if number % 2 else end + 7)  # at a line's end, or in the middle of one
        ended[how_it_goes_on(scene, stage)] += 1
        shutil.rmtree(scene.root)
    # Between its measurement and its verdict a trial needs its claim, which the verdict has removed.
    assert set(ended) == {"as undisturbed", "after the branch was put back", "refused: the journal is older than the files beside it"}


def how_it_goes_on(scene: Scene, stage: Stage) -> str:
    said = scene.root.with_name(f"{scene.root.name}.said")
    how = "as undisturbed"
    if in_a_process(scene, stage.work(scene)) != 0:
        advice = re.search(r"StateError: the branch autoresearch/t is \w+, but .*: put it back \(`git (update-ref \S+ \S+)`\)", said.read_text())
        assert advice is not None, said.read_text()
        run_git(scene.task, *advice[1].split())
        how = "after the branch was put back"
        if in_a_process(scene, stage.work(scene)) != 0:
            assert "StateError" in said.read_text()
            assert "the journal is older than the files beside it. Put the newer one back" in said.read_text()
            return "refused: the journal is older than the files beside it"
    assert outcome(scene) == stage.after
    return how
