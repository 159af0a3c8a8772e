from __future__ import annotations

from pathlib import Path

from runner.tried import OPEN, Barred, tried_in


def test_the_first_trial_of_each_file_is_known(tmp_path: Path) -> None:
    for number, source in enumerate(["a\n", "b\n", "a \n"]):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "train.py").write_text(source)
    (tmp_path / "3").mkdir()  # a refused proposal leaves no file

    found = tried_in(((number, tmp_path / str(number)) for number in range(5)), str.strip)

    assert found == {"a": 0, "b": 1}


def test_what_has_no_fingerprint_was_not_tried(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("def f(:\n")

    assert tried_in([(0, tmp_path)], lambda source: None) == {}


def test_without_gates_only_the_champion_itself_is_refused() -> None:
    assert OPEN.refuse("a", "a", {}) == Barred(reason="the proposed file is the champion's own", mendable=False)
    assert OPEN.refuse("a", "b", {"a": 3}) is None
