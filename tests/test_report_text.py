"""Text from trials and agents is inert before anybody sees it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from runner.report.live import LiveView, trial_line
from runner.report.show import show_text
from runner.report.summary import ranks, summarise
from runner.report.table import print_log, status_lines, status_values
from runner.report.text import block, plain
from runner.trial import AuditFacts, Ending, Measured, Progress, Record, Seconds, Verdict
from tests.records import baseline, record

EVIL = "\x1b[2J\x1b]0;title\x07[bold red]hi[/] \x9b31m\u202egnp\u202c\x00\r\nsecond\tline\x7f\x85\ud800"


def printed(records: list[Record]) -> str:
    out = io.StringIO()
    print_log(records, out)
    return out.getvalue()


def inert(text: str) -> bool:
    return all(letter.isprintable() or letter == "\n" for letter in text)


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        (EVIL, None, "[bold red]hi[/] gnp second line"),
        ("a\tb\n c ", None, "a b c"),
        ("abcdef", 4, "abc…"),
        ("abcd", 4, "abcd"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", None, "link"),
        ("\x1b(0lqk\x1b(B", None, "lqk"),
        ("\x1bPq#0\x1b\\sixel", None, "sixel"),
        ("naïve 日本", None, "naïve 日本"),
    ],
)
def test_one_printable_line(text: str, limit: int | None, expected: str) -> None:
    assert plain(text, limit) == expected


def test_a_block_keeps_its_lines() -> None:
    assert block("a\r\n\tb\x1b[31m\n\n c\rd\x07") == "a\n        b\n\n cd"


@given(st.text(), st.integers(1, 60))
def test_nothing_gets_through(text: str, limit: int) -> None:
    assert inert(plain(text, limit))
    assert len(plain(text, limit)) <= limit
    assert inert(block(text))


@given(st.text(alphabet=st.characters()))
def test_tables_and_pages_stay_inert_whatever_a_record_holds(text: str) -> None:
    evil = record(3, Verdict.KEEP, idea=text, why=text, reason=text, summary=(("depth", text),), kind=text)
    assert inert(printed([evil]))
    assert inert(show_text(evil, text))
    assert all(inert(line) for line in status_lines_of([evil]))


def status_lines_of(records: list[Record]) -> list[str]:
    return status_lines(Path("/runs/nov21"), summarise(records), running=True, open_trial=4)


def test_markup_in_an_idea_is_only_brackets() -> None:
    assert "[bold red]hi[/]" in printed([record(0, idea="[bold red]hi[/]")])


RUN = [
    baseline(0, 1.61, sigma=0.003),
    baseline(1, 1.59, sigma=0.003),
    record(2, Verdict.KEEP, 1.5, gain=0.1, threshold=0.006, steps=150, memory_gb=0.61, seconds=Seconds(total=28.2), sigma=0.004),
    record(3, Verdict.DISCARD, 1.55, gain=-0.05),
    record(4, Verdict.CRASH, None, ending=Ending.CRASHED, reason="train: exit code 1"),
    record(5, Verdict.INVALID, None, commit=None, reason="hunk 1 of 1: its lines are not in the file"),
]  # fmt: skip


def test_the_table_has_every_trial_in_order_with_its_place() -> None:
    rows = [line.split() for line in printed(RUN).splitlines() if line.strip()[:1].isdigit()]
    assert [row[:3] for row in rows[:4]] == [
        ["0", "4", "baseline"],
        ["1", "3", "baseline"],
        ["2", "1", "keep"],
        ["3", "2", "discard"],
    ]
    assert rows[2] == ["2", "1", "keep", "1.5000", "+0.1000", "150", "28.2", "0.6", "idea", "2"]
    assert rows[4][:2] == ["4", "crash"]
    assert "(train: exit code 1)" in printed(RUN)


def test_many_trials_also_give_the_best_ones_by_score() -> None:
    text = printed([record(number, Verdict.DISCARD, 2 - number / 100) for number in range(30)])
    ranked = text[text.index("The best 5") :].splitlines()
    assert [line.split()[0] for line in ranked if line.strip()[:1].isdigit()] == [
        "29",
        "28",
        "27",
        "26",
        "25",
    ]


def test_status_for_a_person() -> None:
    assert status_lines_of(RUN) == [
        "run       nov21: running, trial 4 is under way",
        "trials    4 judged: 1 kept, 1 discarded, 1 crashed, 1 refused; 2 of the baseline before",
        "baseline  1.6000 bits per byte, one measurement ± 0.0040",
        "best      1.5000, trial 2: idea 2",
        "last      trial 5, invalid, hunk 1 of 1: its lines are not in the file: idea 5",
        "plot      /runs/nov21/progress.png",
        "results   /runs/nov21/results.tsv",
    ]


def test_status_for_a_machine_knows_null() -> None:
    empty = status_values(Path("/runs/nov21"), summarise([]), running=False, open_trial=None)
    assert (empty["best"], empty["baseline"], empty["last_trial"], empty["trials"]) == (None, None, None, 0)
    values = status_values(Path("/runs/nov21"), summarise(RUN), running=False, open_trial=None)
    assert values["best"] == {
        "trial": 2,
        "commit": f"{2:040x}",
        "val_bpb": 1.5,
        "verdict": "keep",
        "idea": "idea 2",
    }
    assert values["counts"] == {"baseline": 2, "keep": 1, "discard": 1, "crash": 1, "invalid": 1, "repeat": 0, "abandoned": 0}


def test_show_tells_everything_about_a_trial() -> None:
    kept = record(
        2, Verdict.KEEP, 1.5, gain=0.1, threshold=0.006, sigma=0.003, why="It was\ntoo low.", risk="none", steps=150,
        tokens=230400, params=1311000, memory_gb=0.612, seconds=Seconds(startup=1.25, train=22.0, total=28.0), seed=7,
        ending=Ending.FINISHED, score_level="audited", log_path="/runs/nov21/trials/0002/train.log", summary=(("depth", "4"),),
    )  # fmt: skip
    diff = "--- a/train.py\n+++ b/train.py\n@@ -1 +1 @@\n-LR = 1\n+LR = 2\n"
    assert (
        show_text(kept, diff)
        == f"""trial 2 of nov21: idea 2
  verdict   keep
  ending    finished
  val_bpb   1.500000 bits per byte (audited)
  gain      +0.100000 against the champion, 0.006000 was needed; one measurement has a standard deviation of 0.003000
  seconds   startup 1.2, train 22.0, total 28.0
  work      150 steps, 230,400 tokens, 1,311,000 parameters
  memory    0.61 GB at most
  seed      7
  agent     tuner, other
  commit    {2:040x}
  parent    {"f" * 40}
  log       /runs/nov21/trials/0002/train.log

Why
  It was
  too low.

Risk
  none

The agent
  The tuner does not read program.md: it tries numbers.

What train.py said about itself (not checked)
  depth: 4

Diff
{diff}"""
    )


def test_show_tells_what_a_verdict_rests_on() -> None:
    facts = AuditFacts(
        rounds=4, k=1744, correction=1.2e-5, standard_error=2e-4, detectable_blind=7e-4, detectable_informed=8.7e-3, worst=0.01
    )
    text = show_text(
        record(
            2, Verdict.KEEP, 1.5, gain=0.1, threshold=0.006, sigma=0.003, sigma_interval=(0.002, 0.006), charge=0.0125,
            slack=0.002, audit=facts, score_level="audited",
            measurements=(
                Measured(seed=8, val_bpb=1.4, seconds=20.0, confirmed=True),
                Measured(seed=9, val_bpb=1.6, charge=0.025, seconds=21.0),
            ),
        ),
        "",
    )  # fmt: skip

    assert "one measurement has a standard deviation of 0.003000 (90 %: 0.002000 to 0.006000)\n" in text
    assert "charge    0.012500 for computation beyond the baselines', what is not charged is worth 0.002000 at most\n" in text
    assert (
        "audit     1,744 tokens in 4 rounds moved the score by +0.000012 (standard error 0.000200); "
        "a liar could hide 0.000700, one who knows the reference 0.008700, 1 time in 100\n"
    ) in text
    assert "Measurements\n  1  seed 8  1.400000  20.0 s  confirmed\n  2  seed 9  1.600000  charge 0.025000  21.0 s\n" in text


GROWING = [
    baseline(0, 0.70, score_level="reported", metric="accuracy", maximise=True, sigma=0.01, sigma_interval=(0.005, 0.02)),
    record(1, Verdict.KEEP, 0.80, score_level="reported", metric="accuracy", maximise=True),
    record(2, Verdict.DISCARD, 0.75, score_level="reported", metric="accuracy", maximise=True),
]


def test_reported_scores_are_called_unverified_wherever_they_stand(tmp_path: Path) -> None:
    assert "Trials, in order: accuracy, unverified" in printed(GROWING)
    assert "0.800000 accuracy (reported, unverified; higher is better)" in show_text(GROWING[1], "")
    lines = status_lines_of(GROWING)
    assert lines[2] == "baseline  0.7000 accuracy (unverified), one measurement ± 0.0100 (90 %: 0.0050 to 0.0200)"
    assert lines[3] == "best      0.8000 (unverified), trial 1: idea 1"
    assert lines[4] == "last      trial 2, discard, 0.7500 (unverified): idea 2"
    assert "unverified" in trial_line(GROWING[1], 0.8)
    values = status_values(tmp_path, summarise(GROWING), running=False, open_trial=None)
    assert (values["score_level"], values["metric"], values["maximise"]) == ("reported", "accuracy", True)


def test_places_follow_the_direction_and_leave_out_what_is_no_idea() -> None:
    assert ranks(GROWING) == {0: 3, 1: 1, 2: 2}
    again = record(3, Verdict.REPEAT, 0.99, maximise=True)
    broken = record(4, Verdict.DISCARD, 0.95, maximise=True, guards_broken="too slow")
    assert ranks([*GROWING, again, broken]) == {0: 3, 1: 1, 2: 2}


def test_a_champion_is_known_by_everything_that_was_measured_of_it() -> None:
    kept = record(2, Verdict.KEEP, 1.5, measurements=(Measured(seed=1, val_bpb=1.4), Measured(seed=2, val_bpb=1.6)))
    again = record(3, Verdict.REPEAT, 1.56, commit=kept.commit, measurements=(Measured(seed=3, val_bpb=1.56),))
    summary = summarise([baseline(0), kept, again])

    assert summary.best_score == pytest.approx(1.52)
    assert summary.trials == 1
    assert "champions measured again 1 times" in status_lines_of([baseline(0), kept, again])[1]


def test_show_of_a_refused_proposal_and_of_the_baseline() -> None:
    refused = show_text(RUN[5], "")
    assert "verdict   invalid, hunk 1 of 1: its lines are not in the file\n" in refused
    assert "commit    none: it was refused before it became one\n" in refused
    assert "Diff" not in refused
    assert show_text(baseline(0), "").endswith("Diff\n  none: the file is the same\n")


def test_the_live_line_goes_on_after_the_champion_was_measured_in_between(tmp_path: Path) -> None:
    screen = io.StringIO()
    view = LiveView(tmp_path, console=Console(file=screen, force_terminal=True, width=160, highlight=False, soft_wrap=True))
    view.started(3, "a wider model")
    view.started(4, "the champion again")
    view.progress(4, Progress(phase="claim", seconds=2.0))
    view.finished(record(4, Verdict.REPEAT, idea="the champion again"), [baseline(0), record(4, Verdict.REPEAT)])
    before = len(screen.getvalue())
    view.progress(3, Progress(phase="train", seconds=7.0))
    view.close()
    shown = screen.getvalue()[before:]
    assert "a wider model" in shown
    assert "train 7 s" in shown
    assert "the champion again" not in shown
