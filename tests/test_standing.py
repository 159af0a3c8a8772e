from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner import ledger
from runner.errors import StateError
from runner.ledger import JOURNAL, Ledger, record_to_json
from runner.money import account
from runner.report import standing
from runner.report.standing import STANDING, Standing
from runner.report.summary import summarise
from runner.trial import Measured, Record, Verdict

HEADER = {"format": ledger.FORMAT, "tag": "t", "base": "base"}
IDEAS = (Verdict.KEEP, Verdict.DISCARD, Verdict.CRASH, Verdict.INVALID)
SCORES = (None, 1.5, 1.25, 2.0, float(10**9))


def record(trial: int, verdict: Verdict, commit: str | None, scores: tuple[float | None, ...], sigma: float | None) -> Record:
    known = [score for score in scores if score is not None]
    return Record(
        trial=trial, tag="t", commit=commit, parent="base", agent="llm", cost_usd=0.25 if trial % 2 else None, prompt_tokens=trial, completion_tokens=1, idea=f"idea {trial}", verdict=verdict,
        val_bpb=sum(known) / len(known) if known else None, score_level="audited" if known else None,
        measurements=tuple(Measured(seed=1, val_bpb=score, seconds=0.5) for score in scores), sigma=sigma,
        sigma_interval=None if sigma is None else (sigma / 2, sigma * 2), losses=((1, 2.0),), summary=(("depth", "4"),),
    )  # fmt: skip


@st.composite
def histories(draw: st.DrawFn) -> list[list[Record]]:
    """Steps of a run, each with what is judged in it: a candidate, and before it perhaps the champion that it waits for."""
    steps: list[list[Record]] = []
    champion, trial = "base", 0
    for _ in range(draw(st.integers(0, 12))):
        scores = draw(st.lists(st.sampled_from(SCORES), max_size=3).map(tuple))
        sigma = draw(st.sampled_from((None, 0.01, 0.02)))
        verdict = Verdict.BASELINE if trial < 2 else draw(st.sampled_from(IDEAS))
        commit = {Verdict.BASELINE: "base", Verdict.INVALID: None}.get(verdict, f"c{trial}")
        step = [record(trial, verdict, commit, scores, sigma)]
        if verdict in (Verdict.KEEP, Verdict.DISCARD) and draw(st.booleans()):
            step.insert(0, record(trial + 1, Verdict.REPEAT, champion, draw(st.lists(st.sampled_from(SCORES), max_size=2).map(tuple)), sigma))
        champion = f"c{trial}" if verdict is Verdict.KEEP else champion
        trial += len(step)
        steps.append(step)
    return steps


def judge(run: Ledger, step: list[Record]) -> None:
    for one in sorted(step, key=lambda known: known.trial):
        run.write("proposed", trial=one.trial, idea=one.idea)
    for one in step:
        run.write("judged", trial=one.trial, record=record_to_json(one))
        run.write("done", trial=one.trial)


def in_full(folder: Path) -> Standing:
    state = ledger.read(folder)
    return Standing(state=replace(state, records=[]), summary=summarise(state.records), account=account(state.records))


def made(folder: Path, trials: int = 4, *, saved_after: int = 3, why: str = "") -> None:
    with ledger.writing(folder) as run:
        run.write("run", **HEADER)
        for trial in range(trials):
            verdict = Verdict.BASELINE if trial < 2 else Verdict.KEEP
            one = record(trial, verdict, "base" if trial < 2 else f"c{trial}", (1.5 - trial / 8,), 0.01)
            judge(run, [replace(one, why=why)])
            if trial + 1 == saved_after:
                standing.save(folder)


@settings(max_examples=60, deadline=None)
@given(steps=histories(), saved=st.sets(st.integers(0, 11)))
def test_the_file_and_what_came_after_give_what_the_whole_journal_gives(
    tmp_path_factory: pytest.TempPathFactory, steps: list[list[Record]], saved: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("s") / "t"
    with ledger.writing(folder) as run:
        run.write("run", **HEADER)
        for number, step in enumerate(steps):
            judge(run, step)
            if number in saved:
                standing.save(folder)
            assert standing.look(folder) == in_full(folder)


def test_only_what_came_after_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "s" / "t"
    made(folder, trials=8, saved_after=8, why="x" * standing.EDGE)
    before = in_full(folder)
    path = folder / JOURNAL
    data = path.read_bytes()
    middle = data.index(b'{"n":', len(data) // 2)
    path.write_bytes(data[:middle] + b"#" + data[middle + 1 :])

    # Not even damage is seen where nothing is read.
    assert standing.look(folder) == before
    with pytest.raises(StateError, match="is damaged"):
        ledger.read(folder)


@pytest.mark.parametrize(
    "damage",
    [b"", b"\n", b"{}", b"no digest", b"00\n{}", None],
    ids=["empty", "a line", "no first line", "a word", "wrong digest", "a byte"],
)
def test_a_damaged_file_is_not_read(tmp_path: Path, damage: bytes | None) -> None:
    folder = tmp_path / "s" / "t"
    made(folder)
    path = folder / STANDING
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"keep": 1', b'"keep": 9') if damage is None else damage)

    assert path.read_bytes() != data
    assert standing.look(folder) == in_full(folder)
    standing.save(folder)
    assert standing.look(folder) == in_full(folder)


def test_a_file_of_another_version_is_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "s" / "t"
    made(folder)
    text = (folder / STANDING).read_bytes().split(b"\n", 1)[1]
    value = json.loads(text)
    value["version"][0] += 1
    value["tally"]["counts"]["keep"] = 9
    text = json.dumps(value).encode()
    (folder / STANDING).write_bytes(standing._digest(text).encode() + b"\n" + text)

    assert standing.look(folder) == in_full(folder)


def test_a_journal_cut_anywhere_is_told_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "s" / "t"
    made(folder)
    path = folder / JOURNAL
    data = path.read_bytes()
    for cut in range(len(data), -1, -1):
        path.write_bytes(data[:cut])
        assert standing.look(folder) == in_full(folder)


def test_another_journal_of_the_same_length_is_not_taken_for_this_one(tmp_path: Path) -> None:
    folder = tmp_path / "s" / "t"
    made(folder)
    path = folder / JOURNAL
    path.write_bytes(path.read_bytes().replace(b'"val_bpb":1.25', b'"val_bpb":7.25'))

    assert standing.look(folder) == in_full(folder)


def test_damage_in_what_came_after_is_said_with_its_line(tmp_path: Path) -> None:
    folder = tmp_path / "s" / "t"
    made(folder)
    with (folder / JOURNAL).open("ab") as journal:
        journal.write(b"no JSON\n")
    lines = (folder / JOURNAL).read_bytes().count(b"\n")

    with pytest.raises(StateError, match=f"line {lines} is damaged"):
        standing.look(folder)


def test_nothing_is_saved_while_a_trial_is_under_way(tmp_path: Path) -> None:
    folder = tmp_path / "s" / "t"
    made(folder)
    before = (folder / STANDING).read_bytes()
    with ledger.writing(folder) as run:
        run.write("proposed", trial=4, idea="x")
        standing.save(folder)
        assert (folder / STANDING).read_bytes() == before
        assert standing.look(folder).open_trial == 4


def test_who_had_to_read_much_writes_the_file_unless_a_runner_will(tmp_path: Path) -> None:
    folder = tmp_path / "s" / "t"
    made(folder, trials=standing.MANY + 1, saved_after=0)
    expected = in_full(folder)
    with ledger.writing(folder):
        assert standing.look(folder) == expected
        assert not (folder / STANDING).exists()

    assert standing.look(folder) == expected
    assert (folder / STANDING).exists()
    assert standing.look(folder) == expected


def test_who_may_only_look_does_not_write(tmp_path: Path) -> None:
    folder = tmp_path / "s" / "t"
    made(folder, trials=standing.MANY + 1, saved_after=0)
    (folder / STANDING).mkdir()

    assert standing.look(folder) == in_full(folder)
