from __future__ import annotations

from functools import partial
from pathlib import Path

from runner.tried import OPEN, Barred, Fingerprints, Gate, tried_in


class Counted:
    """A gate whose fingerprint is a file without its blanks, and how often one was made."""

    def __init__(self, rules: str | None = "1") -> None:
        self.made: list[str] = []
        self.gate = Gate(fingerprint=self._made, refuse=OPEN.refuse, rules=rules)

    def _made(self, source: str) -> str | None:
        self.made.append(source)
        return source.strip() or None


def test_the_first_trial_of_each_file_is_known(tmp_path: Path) -> None:
    for number, source in enumerate(["a\n", "b\n", "a \n"]):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "train.py").write_text(source)
    (tmp_path / "3").mkdir()  # a refused proposal leaves no file

    trials = [(number, f"c{number}", tmp_path / str(number)) for number in range(5)]
    found = tried_in(trials, Fingerprints(tmp_path / "known", Counted().gate))

    assert found == {"a": 0, "b": 1}


def test_what_has_no_fingerprint_or_no_commit_was_not_tried(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("\n")
    counted = Counted()

    assert tried_in([(0, "c", tmp_path), (1, None, tmp_path)], Fingerprints(tmp_path / "known", counted.gate)) == {}
    assert counted.made == ["\n"]


def test_a_fingerprint_is_made_once_and_found_again_whatever_else_is_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "known"
    first, again, other = Counted(), Counted(), Counted("2")
    assert [Fingerprints(path, first.gate).of(name, partial(str, name)) for name in ("a", "b")] == ["a", "b"]
    text = path.read_text()
    path.write_text(f'{text}\nno JSON\n[]\n{{"rules": "1"}}\n{text[: text.index("}")]}')  # the last line is torn

    known = Fingerprints(path, again.gate)
    assert [known.of(name, partial(str, name)) for name in ("a", "b", "c")] == ["a", "b", "c"]
    assert again.made == ["c"]
    assert Fingerprints(path, other.gate).of("a", lambda: "otherwise") == "otherwise"
    assert Fingerprints(path, Counted().gate).of("c", lambda: "not asked for") == "c"


def test_fingerprints_that_are_whole_files_are_not_kept(tmp_path: Path) -> None:
    assert Fingerprints(tmp_path / "known", OPEN).of("a", lambda: "text") == "text"
    assert not (tmp_path / "known").exists()


def test_without_gates_only_the_champion_itself_is_refused() -> None:
    assert OPEN.refuse("a", "a", {}) == Barred(reason="the proposed file is the champion's own", mendable=False)
    assert OPEN.refuse("a", "b", {"a": 3}) is None
