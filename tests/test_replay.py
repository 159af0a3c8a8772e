"""Replayed proposals are applied exactly, all or nothing, and taken up where the ledger ends."""

from __future__ import annotations

import difflib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.agents.edits import Edit, RefusedEditError, apply_edits, apply_patch
from runner.agents.replay import ReplayAgent
from runner.durable import write_durably
from runner.errors import UsageError
from runner.ledger import FORMAT, record_to_json, writing
from runner.trial import Kind, Proposal, Record, Refusal, Verdict
from tests.records import record

SOURCE = "import torch\n\nLR = 0.1\nDEPTH = 4  # blocks\n\n\ndef main():\n    train()\n    save()\n"


def diff(old: str, new: str, context: int = 3) -> str:
    lines = difflib.unified_diff(
        old.splitlines(keepends=True), new.splitlines(keepends=True), "a/train.py", "b/train.py", n=context
    )
    return "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines
    )


PATCH = diff(SOURCE, SOURCE.replace("0.1", "0.2"))


def jsonl(tmp_path: Path, *items: object) -> Path:
    path = tmp_path / "night.jsonl"
    path.write_text("".join((item if isinstance(item, str) else json.dumps(item)) + "\n" for item in items))
    return path


def play(agent: ReplayAgent, champion: str = SOURCE) -> list[Proposal | Refusal]:
    """All turns, each recorded as the loop would."""
    history: list[Record] = []
    turns: list[Proposal | Refusal] = []
    while (turn := agent.propose(champion, history)) is not None:
        turns.append(turn)
        history.append(record(len(history), Verdict.DISCARD, agent="replay", token=turn.token))
    return turns


def sources(turns: list[Proposal | Refusal]) -> list[str]:
    return [turn.source for turn in turns if isinstance(turn, Proposal)]


def test_every_kind_of_change_in_a_jsonl_file(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path,
        {"idea": "whole\n file", "source": "x = 1\n", "why": "why", "risk": "risk", "kind": "systems"},
        {"idea": "constants", "constants": {"LR": 0.3, "DEPTH": 6}},
        {"idea": "patch", "patch": PATCH},
        "",
        {
            "idea": "edits",
            "edits": [{"search": "train()", "replace": "fit()"}, {"search": "LR = 0.1", "replace": "LR = 1"}],
        },
    )
    turns = play(ReplayAgent(path))
    assert sources(turns) == [
        "x = 1\n",
        SOURCE.replace("0.1", "0.3").replace("= 4", "= 6"),
        SOURCE.replace("0.1", "0.2"),
        SOURCE.replace("train()", "fit()").replace("LR = 0.1", "LR = 1"),
    ]
    assert turns[0] == Proposal(
        agent="replay",
        idea="whole file",
        why="why",
        risk="risk",
        kind=Kind.SYSTEMS,
        source="x = 1\n",
        token="0",
    )
    assert [turn.token for turn in turns] == ["0", "1", "2", "3"]


def test_what_does_not_fit_the_champion_is_refused_and_the_next_follows(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path,
        {"idea": "stale", "patch": PATCH},
        {"idea": "absent", "constants": {"WIDTH": 1}},
        {"idea": "twice", "edits": [{"search": "    ", "replace": ""}]},
        {"idea": "good", "edits": [{"search": "save()", "replace": "keep()"}]},
    )
    champion = SOURCE.replace("LR = 0.1", "LR = 0.5")
    turns = play(ReplayAgent(path), champion)
    assert turns[:3] == [
        Refusal(agent="replay", idea="stale", token="0", reason="hunk 1 of 1: its lines are not in the file (line 1 of the diff's own file)"),
        Refusal(agent="replay", idea="absent", token="1", reason="WIDTH: no constant of this name at the top level of the file"),
        Refusal(agent="replay", idea="twice", token="2", reason="edit 1 of 1: the text to search is there 2 times"),
    ]  # fmt: skip
    assert sources(turns) == [champion.replace("save()", "keep()")]


def test_it_goes_on_after_the_last_turn_on_record(tmp_path: Path) -> None:
    agent = ReplayAgent(jsonl(tmp_path, *({"idea": str(n), "source": f"x = {n}\n"} for n in range(4))))
    history = [
        record(3, Verdict.CRASH, None, agent="replay", token="0"),
        record(4, Verdict.INVALID, None, agent="replay", token="1"),
        record(5, Verdict.KEEP, agent="tuner", token="7"),
    ]
    turn = agent.propose(SOURCE, history)
    assert turn is not None
    assert turn.token == "2"


def test_a_folder_is_taken_in_the_order_of_its_names(tmp_path: Path) -> None:
    (tmp_path / "02-larger_rate.patch").write_text(PATCH)
    (tmp_path / "01-first.diff").write_text(f"Raise the rate\n\nIt was too low.\nMuch too low.\n\n{PATCH}")
    (tmp_path / "03-other-file.py").write_text("x = 3\n")
    (tmp_path / "04.patch").write_text(
        f"From 0123 Mon Sep 17 00:00:00 2001\nFrom: A <a@b>\nDate: now\nSubject: [PATCH 1/2] Raise the\n rate again\n\n"
        f"Because.\n---\n train.py | 2 +-\n\n{PATCH}-- \n2.39\n"
    )
    (tmp_path / "notes.txt").write_text("not a proposal")
    turns = [turn for turn in play(ReplayAgent(tmp_path)) if isinstance(turn, Proposal)]
    assert [(turn.idea, turn.why) for turn in turns] == [
        ("Raise the rate", "It was too low.\nMuch too low."),
        ("larger rate", ""),
        ("other file", ""),
        ("Raise the rate again", "Because."),
    ]
    assert [turn.source for turn in turns] == [SOURCE.replace("0.1", "0.2")] * 2 + [
        "x = 3\n",
        SOURCE.replace("0.1", "0.2"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("[]", "line 1: must be an object"),
        ('{"source": "x"}', "line 1: idea is missing"),
        ('{"idea": "a"}', "line 1: give exactly one of source, constants, patch, edits"),
        ('{"idea": "a", "source": "x", "patch": "y"}', "line 1: give exactly one of source, constants, patch, edits"),
        ('{"idea": "a", "sauce": "x"}', "line 1: sauce: unknown key (known: idea, why, risk, kind, source, constants, patch, edits)"),
        ('{"idea": 3, "source": "x"}', "line 1: idea: must be text"),
        ('{"idea": "a", "source": 3}', "line 1: source: must be text"),
        ('{"idea": "a", "source": "x", "kind": "magic"}', "line 1: kind: 'magic' is not one of hyperparameter, architecture, optimizer, schedule, init, systems, simplification, other"),
        ('{"idea": "a", "constants": {}}', "line 1: constants: must be an object with a value for each name"),
        ('{"idea": "a", "constants": {"A": {}}}', "line 1: constants.A: must be a number, text, true, false or a list of these"),
        ('{"idea": "a", "edits": [{"search": "x"}]}', "line 1: edits: each has search and replace, and nothing else"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_before_the_first_trial(tmp_path: Path, line: str, message: str) -> None:
    path = jsonl(tmp_path, line)
    with pytest.raises(UsageError) as caught:
        ReplayAgent(path)
    assert str(caught.value) == f"{path}, {message}"


def test_what_is_not_there_or_not_readable(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "none.jsonl", "cannot be read: No such file or directory"),
        (tmp_path, "holds no .patch, .diff or .py file"),
    ):
        with pytest.raises(UsageError, match=message):
            ReplayAgent(path)
    (tmp_path / "a.patch").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8 text"):
        ReplayAgent(tmp_path)
    (tmp_path / "a.patch").write_text("just words")
    with pytest.raises(UsageError, match="holds no unified diff"):
        ReplayAgent(tmp_path)


def test_a_hunk_that_moved_is_found_if_its_lines_stand_in_one_place() -> None:
    moved = "# a comment\n# another\n" + SOURCE
    assert apply_patch(moved, PATCH) == moved.replace("0.1", "0.2")
    with pytest.raises(RefusedEditError, match="its lines are there 2 times"):
        apply_patch("pass\n" + SOURCE + SOURCE, PATCH)


def test_a_patch_is_applied_whole_or_not_at_all() -> None:
    new = "first\n" + SOURCE.replace("save()", "keep()")
    both = diff(SOURCE, new, context=1)
    assert both.count("@@ -") == 2
    assert apply_patch(SOURCE, both) == new
    with pytest.raises(RefusedEditError, match="hunk 2 of 2"):
        apply_patch(SOURCE.replace("save()", "store()"), both)


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ("nonsense", "the diff changes 0 files, not one"),
        (PATCH + PATCH.replace("train.py", "prepare.py"), "the diff changes 2 files, not one"),
        ("--- /dev/null\n+++ b/x.py\n@@ -0,0 +1 @@\n+a\n", "the diff does not change the lines of a file that is there"),
        ("--- a/x.py\n+++ /dev/null\n@@ -1 +0,0 @@\n-a\n", "the diff does not change the lines of a file that is there"),
        (PATCH.rsplit("\n", 2)[0] + "\n", "not a unified diff: Hunk is shorter than expected"),
        ("--- a/x\n+++ b/x\n@@ -3,0 +4 @@\n+a\n", "hunk 1 of 1: it has no line of the file to be found by"),
        (PATCH.replace(" import torch", " import  torch"), "hunk 1 of 1: its lines are not in the file (line 1 of the diff's own file)"),
    ],
)  # fmt: skip
def test_a_patch_that_is_none_or_not_exact(patch: str, message: str) -> None:
    with pytest.raises(RefusedEditError) as caught:
        apply_patch(SOURCE, patch)
    assert str(caught.value) == message


def test_an_empty_search_is_refused() -> None:
    with pytest.raises(RefusedEditError, match="edit 2 of 2: the text to search is empty"):
        apply_edits(SOURCE, [Edit(search="save", replace="keep"), Edit(search="", replace="x")])


LINES = st.lists(
    st.sampled_from(["a", "b", "c", "", "x = 1", "\x0c", "\u2028", "-- old", "++ new"]), max_size=12
)


@given(old=LINES, new=LINES, end=st.sampled_from(["", "\n"]), context=st.integers(1, 3))
def test_any_diff_with_context_applies_to_the_file_it_was_made_from(
    old: list[str], new: list[str], end: str, context: int
) -> None:
    before, after = "\n".join(old) + end, "\n".join(new) + end
    lines = difflib.unified_diff(_lines(before), _lines(after), "a/f", "b/f", n=context)
    patch = "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines
    )
    if not before or not after or not patch:
        return
    assert apply_patch(before, patch) == after


def _lines(text: str) -> list[str]:
    pieces = text.split("\n")
    return [*(f"{piece}\n" for piece in pieces[:-1]), *([pieces[-1]] if pieces[-1] else [])]


def test_the_folder_of_a_run_gives_what_was_proposed_there_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with writing(folder) as run:
        run.write("run", format=FORMAT, tag="t")
        for trial, who, verdict in ((0, "baseline", Verdict.BASELINE), (1, "llm", Verdict.DISCARD), (2, "llm", Verdict.INVALID), (3, "runner", Verdict.REPEAT), (4, "llm", Verdict.KEEP)):
            told = record(trial, verdict, agent=who, idea=f"idea {trial}", why="w", kind="optimizer", reason=f"reason {trial}", commit=None)
            run.write("judged", trial=trial, record=record_to_json(told))
            run.write("done", trial=trial)
    for trial in (1, 4):
        write_durably(folder / "trials" / f"{trial:04d}" / "train.py", f"DEPTH = {trial}\n".encode())
    agent = ReplayAgent(folder)

    first = agent.propose("DEPTH = 0\n", [])
    assert isinstance(first, Proposal)
    assert (first.idea, first.why, first.kind, first.source, first.token) == ("idea 1", "w", "optimizer", "DEPTH = 1\n", "0")
    second = agent.propose("DEPTH = 0\n", [record(1, agent="replay", token="0")])
    assert isinstance(second, Refusal)
    assert (second.idea, second.reason) == ("idea 2", "reason 2")
    third = agent.propose("DEPTH = 0\n", [record(2, agent="replay", token="1")])
    assert isinstance(third, Proposal)
    assert third.source == "DEPTH = 4\n"
    assert agent.propose("DEPTH = 0\n", [record(3, agent="replay", token="2")]) is None


def test_a_run_in_which_nobody_proposed_anything_is_refused(tmp_path: Path) -> None:
    with writing(tmp_path / "run") as run:
        run.write("run", format=FORMAT, tag="t")
    with pytest.raises(UsageError, match="no agent has proposed anything"):
        ReplayAgent(tmp_path / "run")
