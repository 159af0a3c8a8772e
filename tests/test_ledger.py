from __future__ import annotations

import json
import os
import resource
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner import ledger
from runner.errors import StateError
from runner.trial import AuditFacts, Ending, Measured, Record, Seconds, Verdict


def record(trial: int, verdict: Verdict = Verdict.DISCARD) -> Record:
    return Record(
        trial=trial,
        tag="t",
        commit=f"{trial:040x}",
        parent=None,
        agent="tuner",
        idea="an idea",
        ending=Ending.FINISHED,
        verdict=verdict,
        val_bpb=1.5,
        sigma=0.003,
        sigma_interval=(0.002, 0.006),
        audit=AuditFacts(
            rounds=4, k=1744, correction=0.0, standard_error=0.0001, detectable_blind=0.0007, detectable_informed=0.008, worst=0.0
        ),
        measurements=(
            Measured(seed=1, val_bpb=1.5, charge=0.01, standard_error=0.0001, seconds=20.0, confirmed=True),
            Measured(seed=2, val_bpb=1.5),
        ),
        seconds=Seconds(train=1.0),
        summary=(("depth", "4"),),
        losses=((1, 2.0), (2, 1.5)),
    )


def write_all(folder: Path) -> None:
    with ledger.writing(folder) as run:
        run.write("run", format=ledger.FORMAT, tag="t")
        for trial in range(3):
            run.write("proposed", trial=trial, idea="x")
            run.write("candidate", trial=trial, commit="c")
            run.write("judged", trial=trial, record=ledger.record_to_json(record(trial)))
            run.write("done", trial=trial)
        run.write("proposed", trial=3, idea="under way")


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    write_all(tmp_path / "s" / "t")

    state = ledger.read(tmp_path / "s" / "t")

    assert state.records == [record(0), record(1), record(2)]
    assert state.open is not None
    assert state.open.trial == 3
    assert state.unfinished is None
    assert state.next_trial() == 4


def test_one_record_is_found_among_all(tmp_path: Path) -> None:
    folder = tmp_path / "s" / "t"
    with ledger.writing(folder) as run:
        run.write("run", format=ledger.FORMAT, tag="t")
        for trial in (0, 1, 11):
            run.write("proposed", trial=trial, idea='"event":"judged","trial":7,')
            run.write("judged", trial=trial, record=ledger.record_to_json(record(trial)))

    assert [ledger.judged(folder, trial) for trial in (0, 1, 7, 11)] == [record(0), record(1), None, record(11)]
    path = folder / ledger.JOURNAL
    data = path.read_bytes()
    path.write_bytes(data[:-1])  # torn: it was never judged
    assert ledger.judged(folder, 11) is None
    path.write_bytes(data.replace(b'"tag":"t","commit"', b'"tag":,"commit"'))
    with pytest.raises(StateError, match="line 3 is damaged"):
        ledger.judged(folder, 11)
    path.write_bytes(b"")
    assert ledger.judged(folder, 0) is None


def test_what_was_measured_of_an_open_trial_is_read_again(tmp_path: Path) -> None:
    with ledger.writing(tmp_path / "s" / "t") as run:
        run.write("proposed", trial=0, idea="x")
        run.write("measured", trial=0, index=0, measurement={"val_bpb": 1.5})
        run.write("measured", trial=0, index=1, measurement={"val_bpb": 1.6})
        run.write("confirmed", trial=0, index=0, measurement={"val_bpb": 1.55})

    opened = ledger.read(tmp_path / "s" / "t").opened[0]
    assert opened.measured == ({"val_bpb": 1.55}, {"val_bpb": 1.6})
    assert opened.confirmed == {0}


def test_a_trial_may_wait_for_another_and_both_keep_their_places(tmp_path: Path) -> None:
    with ledger.writing(tmp_path / "s" / "t") as run:
        run.write("proposed", trial=0, idea="waits")
        run.write("proposed", trial=1, idea="is waited for")
        run.write("failed", trial=1, reason="the engine")
        assert run.state.open is not None
        assert (run.state.open.trial, run.state.open.failures) == (0, ())
        assert run.state.opened[1].failures == ("the engine",)
        run.write("judged", trial=1, record=ledger.record_to_json(record(1)))
        assert (list(run.state.opened), run.state.next_trial(), run.state.unfinished) == ([0], 2, 1)
        run.write("judged", trial=0, record=ledger.record_to_json(record(0)))

    state = ledger.read(tmp_path / "s" / "t")
    assert [one.trial for one in state.records] == [0, 1]
    assert state.unfinished == 0
    assert state.record(1) == record(1)


def test_a_record_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    old = ledger.record_to_json(record(0))
    for name in ("measurements", "sigma_interval", "audit"):
        del old[name]

    found = ledger.record_from_json(old)
    assert (found.measurements, found.sigma_interval, found.audit) == ((), None, None)


def test_a_judged_trial_without_done_has_effects_to_finish(tmp_path: Path) -> None:
    with ledger.writing(tmp_path / "s" / "t") as run:
        run.write("proposed", trial=0, idea="x")
        run.write("judged", trial=0, record=ledger.record_to_json(record(0)))

    assert ledger.read(tmp_path / "s" / "t").unfinished == 0


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 10_000))
def test_a_journal_cut_anywhere_gives_a_prefix_of_its_trials_and_can_go_on(tmp_path: Path, cut: int) -> None:
    folder = tmp_path / "s" / "t"
    (folder / ledger.JOURNAL).unlink(missing_ok=True)
    write_all(folder)
    path = folder / ledger.JOURNAL
    data = path.read_bytes()
    path.write_bytes(data[: cut % len(data)])

    before = ledger.read(folder).records
    with ledger.writing(folder) as run:
        assert run.state.records == before == [record(trial) for trial in range(len(before))]
        run.write("judged", trial=99, record=ledger.record_to_json(record(99)))

    assert ledger.read(folder).records == [*before, record(99)]


def test_a_damaged_line_is_refused_and_named(tmp_path: Path) -> None:
    write_all(tmp_path / "s" / "t")
    path = tmp_path / "s" / "t" / ledger.JOURNAL
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = b"{garbage\n"
    path.write_bytes(b"".join(lines))

    with pytest.raises(StateError, match=r"journal\.jsonl line 3 is damaged"):
        ledger.read(tmp_path / "s" / "t")


def test_another_format_is_refused(tmp_path: Path) -> None:
    with ledger.writing(tmp_path / "s" / "t") as run:
        run.write("run", format=99)

    with pytest.raises(StateError, match="format 99"):
        ledger.read(tmp_path / "s" / "t")


def test_a_second_writer_is_refused_and_another_run_is_not(tmp_path: Path) -> None:
    with ledger.writing(tmp_path / "s" / "t"):
        with pytest.raises(StateError, match=f"held by another runner \\(process {os.getpid()}\\)"), ledger.writing(tmp_path / "s" / "t"):
            pass
        with ledger.writing(tmp_path / "s" / "u"):
            pass


def test_who_holds_a_run_is_known_without_disturbing(tmp_path: Path) -> None:
    folder = tmp_path / "s" / "t"
    assert ledger.is_held(folder) is False
    with ledger.writing(folder):
        assert ledger.is_held(folder) is True
    assert ledger.is_held(folder) is False


def test_the_state_folder_is_private_and_ignores_itself(tmp_path: Path) -> None:
    write_all(tmp_path / "s" / "t")

    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "s" / "t").stat().st_mode) == 0o700
    assert (tmp_path / "s" / ".gitignore").read_text() == "*\n"


def test_a_state_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "s").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(StateError, match="is a link"):
        write_all(tmp_path / "s" / "t")


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """The kernel takes ten bytes of the line and refuses the rest, as a disk does that is full."""
    folder = tmp_path / "s" / "t"
    with ledger.writing(folder) as run:
        run.write("run", format=ledger.FORMAT)
        before = (folder / "journal.jsonl").read_bytes()
        usual = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, usual[1]))
        try:
            with pytest.raises(StateError, match=r"cannot write .*File too large. Nothing recorded is lost"):
                run.write("proposed", trial=0, idea="x")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, usual)
        assert run.state.open is None
        assert (folder / "journal.jsonl").read_bytes() == before
        run.write("proposed", trial=0, idea="y")

    assert ledger.read(folder).opened[0].proposed["idea"] == "y"


@pytest.mark.parametrize("how", ["removed", "replaced", "moved with its state folder"])
def test_a_journal_that_went_away_is_said_and_not_written_on(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "s" / "t"
    with ledger.writing(folder) as run:
        run.write("run", format=ledger.FORMAT)
        path = folder / "journal.jsonl"
        if how == "moved with its state folder":
            (tmp_path / "s").rename(tmp_path / "elsewhere")
        else:
            path.rename(folder / "saved")
        if how == "replaced":
            path.write_text("")
        with pytest.raises(StateError, match=r"journal.jsonl was removed or replaced .* start another run with --new.*refs/autoresearch/t/"):
            run.write("proposed", trial=0, idea="x")
        assert run.state.open is None


def test_a_state_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("")

    with pytest.raises(StateError, match=r"/s is no folder: .* move that away"):
        write_all(tmp_path / "s" / "t")


def test_a_state_folder_that_others_can_read_is_closed_to_them(tmp_path: Path) -> None:
    state = tmp_path / ".autoresearch"
    state.mkdir(mode=0o755)
    (state / "kept").write_text("x")

    ledger.make_state(state)

    assert state.stat().st_mode & 0o777 == 0o700
    assert (state / "kept").read_text() == "x"


def test_a_line_that_is_there_twice_or_is_missing_is_refused(tmp_path: Path) -> None:
    write_all(tmp_path / "s" / "t")
    path = tmp_path / "s" / "t" / ledger.JOURNAL
    lines = path.read_bytes().splitlines(keepends=True)

    for at in range(len(lines) - 1):
        path.write_bytes(b"".join([*lines[: at + 1], *lines[at:]]))
        with pytest.raises(StateError, match=rf"journal\.jsonl line {at + 2} is damaged"):
            ledger.read(tmp_path / "s" / "t")
        path.write_bytes(b"".join([*lines[:at], *lines[at + 1 :]]))
        with pytest.raises(StateError, match=rf"journal\.jsonl line {at + 1} is damaged"):
            ledger.read(tmp_path / "s" / "t")


def test_a_journal_whose_lines_have_no_number_goes_on_with_them(tmp_path: Path) -> None:
    """As an earlier version wrote it."""
    folder = tmp_path / "s" / "t"
    write_all(folder)
    path = folder / ledger.JOURNAL
    old = [json.loads(line) for line in path.read_bytes().splitlines()]
    path.write_text("".join(json.dumps({key: value for key, value in event.items() if key != ledger.NUMBER}) + "\n" for event in old))

    with ledger.writing(folder) as run:
        run.write("judged", trial=3, record=ledger.record_to_json(record(3)))

    assert [found.trial for found in ledger.read(folder).records] == [0, 1, 2, 3]
    assert json.loads(path.read_bytes().splitlines()[-1])[ledger.NUMBER] == len(old)


@pytest.mark.parametrize("tail", [b"\0" * 4096, b"\xff\xfe garbage", b'{"n":14,"event":"done"', b"{"])
def test_a_torn_tail_of_any_kind_is_cut_off(tmp_path: Path, tail: bytes) -> None:
    folder = tmp_path / "s" / "t"
    write_all(folder)
    path = folder / ledger.JOURNAL
    before = path.read_bytes()
    path.write_bytes(before + tail)

    assert ledger.read(folder).records == [record(0), record(1), record(2)]
    with ledger.writing(folder):
        pass
    assert path.read_bytes() == before


@pytest.mark.parametrize("line", [b"\0" * 100 + b"\n", b"5\n", b"[]\n", b"null\n", b"{}\n", b"\n", b'{"event":"proposed"}\n'])
def test_a_last_line_that_is_whole_and_makes_no_sense_is_refused(tmp_path: Path, line: bytes) -> None:
    folder = tmp_path / "s" / "t"
    write_all(folder)
    path = folder / ledger.JOURNAL
    path.write_bytes(path.read_bytes() + line)

    with pytest.raises(StateError, match=r"journal\.jsonl line 15 is damaged: restore the file"):
        ledger.read(folder)


def test_a_newer_format_is_named_whatever_its_lines_look_like(tmp_path: Path) -> None:
    folder = tmp_path / "s" / "t"
    write_all(folder)
    (folder / ledger.JOURNAL).write_text('{"n":0,"event":"run","format":4}\n{"of":"a kind that nobody knows"}\n')

    with pytest.raises(StateError, match="has format 4, this version reads 2 and 3: use the version that wrote it"):
        ledger.read(folder)
