"""results.tsv shows the right thing to upstream's notebook, re-read here by the notebook's own rules."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import StateError
from runner.report.tsv import tsv_text, write_tsv
from runner.trial import Record, Verdict
from tests.records import baseline, record

RUN = [
    baseline(0, 1.60, memory_gb=44.06),
    baseline(1, 1.59),
    baseline(2, 1.61),
    record(3, Verdict.DISCARD, 1.58, memory_gb=1.26),
    record(4, Verdict.KEEP, 1.50, memory_gb=1.24),
    record(5, Verdict.CRASH, None, reason="train: exit code 1", memory_gb=3.0),
    record(6, Verdict.INVALID, None, commit=None, reason="stale"),
    record(7, Verdict.KEEP, 1.45),
]


@dataclass
class Notebook:
    """What upstream's analysis.ipynb makes of the file."""

    rows: list[dict[str, str]]

    @classmethod
    def read(cls, text: str) -> Notebook:
        """As `pandas.read_csv(sep="\\t")`: a field that begins with a quote would run over lines."""
        header, *lines = text.split("\n")[:-1]
        assert header == "commit\tval_bpb\tmemory_gb\tstatus\tdescription"
        rows = [dict(zip(header.split("\t"), line.split("\t"), strict=True)) for line in lines]
        assert not any(value.startswith('"') for row in rows for value in row.values())
        return cls(rows)

    def count(self, status: str) -> int:
        return sum(row["status"].upper() == status for row in self.rows)

    @property
    def baseline(self) -> float:
        assert self.rows[0]["status"].upper() != "CRASH"
        return float(self.rows[0]["val_bpb"])

    @property
    def running_minimum(self) -> list[float]:
        kept = [float(row["val_bpb"]) for row in self.rows if row["status"].upper() == "KEEP"]
        return [min(kept[: end + 1]) for end in range(len(kept))]


def test_the_notebook_sees_the_search() -> None:
    book = Notebook.read(tsv_text(RUN))
    assert book.baseline == 1.6
    assert book.running_minimum == [1.6, 1.5, 1.45]
    assert (book.count("KEEP"), book.count("DISCARD"), book.count("CRASH")) == (3, 3, 2)


def test_the_whole_file() -> None:
    assert tsv_text(RUN) == (
        "commit\tval_bpb\tmemory_gb\tstatus\tdescription\n"
        "bbbbbbb\t1.600000\t44.1\tkeep\tbaseline: the unmodified file\n"
        "bbbbbbb\t1.590000\t0.0\tdiscard\tbaseline: the unmodified file\n"
        "bbbbbbb\t1.610000\t0.0\tdiscard\tbaseline: the unmodified file\n"
        "0000000\t1.580000\t1.3\tdiscard\tidea 3\n"
        "0000000\t1.500000\t1.2\tkeep\tidea 4\n"
        "0000000\t0.000000\t0.0\tcrash\tidea 5 | train: exit code 1\n"
        "-------\t0.000000\t0.0\tcrash\tidea 6 | stale\n"
        "0000000\t1.450000\t0.0\tkeep\tidea 7\n"
    )


def test_the_reason_follows_the_idea() -> None:
    kept = record(4, Verdict.KEEP, 1.5, reason="gain +0.1 is more than the 0.01 needed", score_level="audited")
    assert tsv_text([kept]).endswith("\tkeep\tidea 4 | gain +0.1 is more than the 0.01 needed\n")


def test_a_reported_score_is_called_unverified() -> None:
    row = tsv_text([record(4, Verdict.DISCARD, 0.9, score_level="reported", metric="accuracy", maximise=True, reason="why")])
    assert row.endswith("\t0.900000\t0.0\tdiscard\tidea 4 | accuracy, unverified | why\n")


def test_a_champion_measured_again_is_no_progress_in_the_notebook() -> None:
    again = record(8, Verdict.REPEAT, 1.40, agent="runner", commit=f"{7:040x}")
    book = Notebook.read(tsv_text([*RUN, again]))
    assert book.running_minimum == [1.6, 1.5, 1.45]


@pytest.mark.parametrize(
    "idea", ['"quoted', "nan", "None", "", "tab\there", "two\nlines", "\x1b[31mred", "N/A"]
)
def test_no_idea_breaks_the_table(idea: str) -> None:
    [row] = Notebook.read(tsv_text([record(0, idea=idea)])).rows
    assert row["description"].lower() not in {"nan", "none", "", "n/a"}
    assert row["description"].isprintable()


@given(
    st.lists(
        st.tuples(st.sampled_from(list(Verdict)), st.none() | st.floats(), st.text(), st.text()), max_size=5
    )
)
def test_any_records_give_a_table(facts: list[tuple[Verdict, float | None, str, str]]) -> None:
    records: list[Record] = [
        record(number, verdict, score, idea=idea, reason=reason)
        for number, (verdict, score, idea, reason) in enumerate(facts)
    ]
    rows = Notebook.read(tsv_text(records)).rows
    assert len(rows) == len(records)
    assert {row["status"] for row in rows} <= {"keep", "discard", "crash"}
    for row, known in zip(rows, records, strict=True):
        if known.val_bpb is None or not math.isfinite(known.val_bpb):
            assert (row["status"], row["val_bpb"], row["memory_gb"]) == ("crash", "0.000000", "0.0")


def test_the_file_is_replaced_at_once(tmp_path: Path) -> None:
    path = tmp_path / "results.tsv"
    write_tsv(RUN[:1], path)
    with path.open() as reader:
        write_tsv(RUN, path)
        assert reader.read() == tsv_text(RUN[:1])
    assert path.read_text() == tsv_text(RUN)
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"cannot write .*results\.tsv: No such file or directory"):
        write_tsv(RUN, tmp_path / "absent" / "results.tsv")
