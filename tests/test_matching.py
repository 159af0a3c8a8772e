"""Edits are applied where they belong, all of them, or nowhere."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.agents.answer import MalformedAnswerError, parse
from runner.agents.edits import RefusedEditError
from runner.agents.grammar import Answer, Edit, Replace, Set
from runner.agents.matching import UnchangedError, apply

SOURCE = """\
import torch

DEPTH = 4  # blocks
RATE = 0.1  # of all
BETAS = (0.8, 0.9)


def first(x):
    y = x + 1
    print(y)
    return y


def second(x):
    if x:
        y = x + 1
    z = 3  # trailing
    return y


main()
"""


def edited(*edits: Edit, source: str = SOURCE) -> str:
    return apply(Answer(idea="x", edits=edits), source)


def refusal(*edits: Edit, source: str = SOURCE) -> str:
    with pytest.raises(RefusedEditError) as caught:
        edited(*edits, source=source)
    return str(caught.value)


# One block --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("search", "replace", "old", "new"),
    [
        ("    print(y)\n", "    print(x)\n", "print(y)", "print(x)"),
        ("    print(y)", "    print(x)", "print(y)", "print(x)"),
        ("    print(y)\n", "", "    print(y)\n", ""),
        ("    print(y)  \n", "    print(x)\t\n", "print(y)", "print(x)"),
        ("print(y)\nreturn y\n", "\nif x:\n    return x\nreturn y\n", "    print(y)\n", "\n    if x:\n        return x\n"),
        ("            if x:\n                y = x + 1\n", "            if y:\n                y = x + 1\n", "if x", "if y"),
        ("\n\nmain()\n", "\nmain(1)\n", "\n\nmain()", "\nmain(1)"),
        ("    z = 3  # trailing\n    return y\n", "    z = 4\n    return y\n", "z = 3  # trailing", "z = 4"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("variant", ["", "crlf", "open", "mark", "crlf open mark"])
def test_a_block_that_stands_there_once(search: str, replace: str, old: str, new: str, variant: str) -> None:
    def varied(source: str) -> str:
        source = source.removesuffix("\n") if "open" in variant else source
        source = source.replace("\n", "\r\n") if "crlf" in variant else source
        return "\ufeff" + source if "mark" in variant else source

    assert SOURCE.count(old) == 1
    assert edited(Replace(search, replace), source=varied(SOURCE)) == varied(SOURCE.replace(old, new))


@pytest.mark.parametrize(
    ("search", "replace", "message"),
    [
        ("", "x\n", "Edit 1 of 1 (block): SEARCH is empty."),
        (" \n\n", "x\n", "SEARCH is empty."),
        ("    return y\n", "    return x\n", "SEARCH was found 2 times, at lines 11 and 18. Add lines before or after it"),
        ("y = x + 1\n", "y = 1\n", "SEARCH was found 2 times, at lines 9 and 16."),
        ("DEPTH = 4\n", "DEPTH = 5\n", "Line 3 of the file is `DEPTH = 4  # blocks`, where SEARCH has `DEPTH = 4`."),
        ("    print(Y)\n", "    print(x)\n", "Line 10 of the file is `    print(y)`, where SEARCH has `    print(Y)`."),
        ("    y = x + 1\n    return y\n", "    return 1\n", "SEARCH was not found. Line 17 of the file is `    z = 3  # trailing`"),
        ("def first(x):\n  y = x + 1\n", "", "Line 9 of the file is `    y = x + 1`, where SEARCH has `  y = x + 1`."),
        ("qqq\nwww\n", "x\n", "Nothing in the file is like it."),
        ("        print(y)\n", "    print(x)\n", "SEARCH is not indented as the file is, and REPLACE is neither as SEARCH: `    print(x)`."),
        ("print(y)\n", "    print(x)\n", "SEARCH is not indented as the file is, and REPLACE is neither as SEARCH: `    print(x)`."),
        ("      print(y)\n", "      print(x)\n pass\n", "REPLACE is neither as SEARCH: ` pass`. Indent both as the file is."),
        ("    y = x + 1\n", "    y = x + 1\n    print(y)\n", "`print(y)` stands right after the lines of SEARCH and is in REPLACE too"),
        ("    print(y)\n", "    y = x + 1\n    print(2)\n", "`y = x + 1` stands right before the lines of SEARCH"),
        (SOURCE + "more\n", "x\n", "SEARCH was not found."),
    ],
)  # fmt: skip
def test_a_block_that_does_not_fit(search: str, replace: str, message: str) -> None:
    told = refusal(Replace(search, replace))
    assert message in told
    assert told.endswith("\n\nNothing was applied. Send all of the answer again, with every edit.")


def test_the_nearest_lines_are_shown_whole_and_not_too_many() -> None:
    block = "    if x:\n        y = x + 1\n    z = 4  # trailing\n    return y\n"
    assert "The file has, from line 15:\n    if x:\n        y = x + 1\n    z = 3  # trailing\n    return y\n\n" in refusal(
        Replace(block, "")
    )
    long = "".join(f"{'x' * 900} = {n}\n" for n in range(500))
    assert len(refusal(Replace(long.replace("= 250", "= 0250"), ""), source=long)) < 4000


def test_a_line_without_its_comment_is_shown_with_it() -> None:
    told = refusal(Replace("MATRIX_LR = 0.04\n", "MATRIX_LR = 0.05\n"), source=TRAIN)
    assert "is `MATRIX_LR = 0.04  # Muon: the matrices of the blocks`, where SEARCH has `MATRIX_LR = 0.04`." in told


def test_an_exact_place_is_preferred_to_one_that_is_indented_otherwise() -> None:
    assert edited(Replace("    y = x + 1\n", "    y = x\n")) == SOURCE.replace("    y = x + 1\n    print", "    y = x\n    print")


# Constants --------------------------------------------------------------------------------------


def test_constants_keep_their_comments() -> None:
    edits = (Set("DEPTH", 6), Set("RATE", 0.25), Set("BETAS", (0.7, 0.9)))
    want = SOURCE.replace("= 4 ", "= 6 ").replace("0.1 ", "0.25 ").replace("(0.8", "(0.7")
    assert edited(*edits) == want
    assert edited(*reversed(edits)) == want


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Set("DEPHT", 6), "Edit 1 of 1 (SET DEPHT): DEPHT: no constant of this name at the top level of the file (did you mean DEPTH?)"),
        (Set("DEPTH", 0.5), "DEPTH: line 3 holds 4 (int), not 0.5"),
        (Set("BETAS", 0.5), "BETAS: line 5 holds (0.8, 0.9) (tuple), not 0.5"),
    ],
)  # fmt: skip
def test_a_constant_that_cannot_be_set(edit: Edit, message: str) -> None:
    assert message in refusal(edit)


# Several edits ----------------------------------------------------------------------------------


def test_edits_beside_each_other_share_what_neither_changes() -> None:
    one = Replace("def first(x):\n    y = x + 1\n    print(y)\n", "def first(x):\n    y = x + 2\n    print(y)\n")
    two = Replace("    print(y)\n    return y\n", "    print(y)\n    return z\n")
    want = SOURCE.replace("x + 1\n    print(y)\n    return y", "x + 2\n    print(y)\n    return z")
    assert edited(one, two, Set("DEPTH", 5)) == want.replace("= 4 ", "= 5 ")


def test_insertions_at_one_place_stay_with_what_they_are_beside() -> None:
    after = Replace("    y = x + 1\n    print(y)\n", "    y = x + 1\n    print(y)\n    a()\n")
    before = Replace("    return y\n\n\ndef second(x):\n", "    b()\n    return y\n\n\ndef second(x):\n")
    want = SOURCE.replace("print(y)\n", "print(y)\n    a()\n    b()\n")
    assert edited(after, before) == edited(before, after) == want


def test_text_that_an_edit_inserted_is_not_looked_at() -> None:
    insert = Replace("main()\n", "save()\nmain()\n")
    change = Replace("save()\n", "load()\n")
    assert refusal(insert, change).startswith(
        "Edit 2 of 2 (block): SEARCH is not in the file as you were shown it, only in what edit 1 makes of it."
    )
    # Nor does it make a place ambiguous.
    again = Replace("import torch\n", "import torch\nmain()\n")
    assert edited(again, insert) == SOURCE.replace("import torch\n", "import torch\nmain()\n").replace(
        "\n\nmain()", "\n\nsave()\nmain()"
    )


@pytest.mark.parametrize(
    "edits",
    [
        (Set("DEPTH", 5), Replace("DEPTH = 4  # blocks\nRATE = 0.1  # of all\n", "RATE = 0.2\n")),
        (Replace("DEPTH = 4  # blocks\n", "DEPTH = 6\n"), Set("DEPTH", 5)),
        (Set("DEPTH", 5), Set("DEPTH", 6)),
        (Replace("import torch\n\nDEPTH = 4  # blocks\n", "import torch\n\nX = 1\nDEPTH = 4  # blocks\n"), Replace("\nDEPTH = 4  # blocks\n", "\nDEPTH = 6\n")),
    ],
)  # fmt: skip
def test_an_edit_that_needs_what_an_earlier_one_changed(edits: tuple[Edit, ...]) -> None:
    assert "Edit 2 of 2" in refusal(*edits)
    assert "edit 1 changes the file at line 3, which this one needs as it was. Make one block of both." in refusal(*edits)


def test_all_or_none_and_every_edit_that_does_not_fit_is_named() -> None:
    bad = Replace("nothing like it\n", "x\n")
    told = refusal(Set("DEPTH", 5), bad, Set("WIDTH", 1), bad, bad)
    assert re.findall(r"^Edit (\d) of 5", told, re.MULTILINE) == ["2", "3", "4"]
    assert "1 more edits do not fit." in told


def test_an_answer_that_changes_nothing_is_an_error_of_its_own() -> None:
    same = "    print(y)\n"
    for answer in (
        Answer(idea="x", edits=(Replace(same, same), Set("DEPTH", 4))),
        Answer(idea="x", whole=SOURCE),
    ):
        with pytest.raises(UnchangedError):
            apply(answer, SOURCE)
    assert edited(Set("DEPTH", 4), Replace(same, "")) == SOURCE.replace(same, "")


def test_a_whole_file_has_the_endings_of_the_old_one() -> None:
    answer = Answer(idea="x", whole="a\nb\n")
    assert apply(answer, SOURCE) == "a\nb\n"
    assert apply(answer, "\ufeffa\r\n") == "\ufeffa\r\nb\r\n"


# Any file and any edits -------------------------------------------------------------------------


@given(st.data())
def test_nothing_changes_outside_of_the_edited_lines(data: st.DataObject) -> None:
    """Edits of parts that do not touch, in any order, against a file that is put together by hand."""
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=8))
    pieces: list[str] = []
    want: list[str] = []
    edits: list[Edit] = []
    number = 0
    for size in sizes:
        old = [f"{'    ' * (n % 3)}line {n}  # with a comment" for n in range(number, number + size)]
        number += size
        pieces += old
        new = data.draw(st.none() | st.lists(st.sampled_from(["", "  new", "other ", *old]), max_size=4))
        want += old if new is None else new
        if new is not None:
            edits.append(Replace(_text(old), _text(new)))
    edits = data.draw(st.permutations(edits))
    try:
        result = edited(*edits, source=_text(pieces))
    except UnchangedError:
        result = _text(pieces)
    assert result == _text(want)


@given(
    file=st.lists(st.sampled_from(["", "a", "  a", "    a", "b", "b ", "  b", "a b"]), min_size=1, max_size=12),
    search=st.lists(st.sampled_from(["", "a", "  a", "b", "b  ", "  b"]), min_size=1, max_size=3),
    replace=st.lists(st.sampled_from(["", "a", "  c", "    d"]), max_size=3),
)
def test_what_is_replaced_is_what_was_searched_for_but_for_spaces(
    file: list[str], search: list[str], replace: list[str]
) -> None:
    try:
        result = edited(Replace(_text(search), _text(replace)), source=_text(file)).split("\n")[:-1]
    except RefusedEditError:
        return
    words = [line.split() for line in search]
    places = [
        at
        for at in range(len(file) - len(search) + 1)
        if [line.split() for line in file[at : at + len(search)]] == words
        and result[:at] == file[:at]
        and result[at + len(replace) :] == file[at + len(search) :]
        and [line.split() for line in result[at : at + len(replace)]] == [line.split() for line in replace]
    ]
    assert places


def _text(lines: list[str]) -> str:
    return "".join(line + "\n" for line in lines)


# Mutated blocks ---------------------------------------------------------------------------------

TRAIN = (Path(__file__).parents[1] / "trainer" / "train.py").read_text()
FILE = TRAIN.split("\n")[:-1]
EACH = 25


@dataclass
class Block:
    """A valid edit of lines that stand in the file once, before it is mutated."""

    start: int
    search: list[str]
    replace: list[str]
    changed: int
    """Which line of `search` the edit is about."""
    cut: Callable[[str], str] = str
    """What happens to the text of the answer."""

    @property
    def answer(self) -> str:
        block = f"<<<<<<< SEARCH\n{_text(self.search)}=======\n{_text(self.replace)}>>>>>>> REPLACE\n"
        return self.cut(f"IDEA: x\nKIND: other\nEDITS:\n{block}END\n")


def draw_block(rng: random.Random) -> Block:
    """Two to eight lines of train.py, of which one is replaced, deleted or followed by a new one."""
    while True:
        size = rng.randint(2, 8)
        start = rng.randrange(len(FILE) - size + 1)
        search = FILE[start : start + size]
        filled = [at for at, line in enumerate(search) if line.strip()]
        if len(filled) < 2 or _times(search) != 1:
            continue
        changed = rng.choice(filled)
        line = search[changed]
        indentation = line[: len(line) - len(line.lstrip())]
        new = rng.choice([[line, f"{indentation}new = {rng.random()}"], [f"{indentation}other = {rng.random()}"], []])
        return Block(start, search, [*search[:changed], *new, *search[changed + 1 :]], changed)


Mutation = Callable[[Block, random.Random], bool]
"""Changes a block in place; False: it does not apply to this one."""


def untouched(block: Block, rng: random.Random) -> bool:
    return True


def spaces_at_the_ends(block: Block, rng: random.Random) -> bool:
    before = list(block.search)
    for part in (block.search, block.replace):
        part[:] = [line + " " * rng.randint(0, 3) for line in part]
    return block.search != before


def all_outdented(block: Block, rng: random.Random) -> bool:
    lines = [line for line in [*block.search, *block.replace] if line.strip()]
    most = min(len(line) - len(line.lstrip()) for line in lines)
    by = rng.randint(1, most) if most else 0
    for part in (block.search, block.replace):
        part[:] = [line[by:] for line in part]
    return by > 0


def all_indented(block: Block, rng: random.Random) -> bool:
    by = " " * rng.choice([1, 2, 4])
    for part in (block.search, block.replace):
        part[:] = [by + line if line else line for line in part]
    return True


def less_context(block: Block, rng: random.Random) -> bool:
    """Both parts begin or end a line later or earlier: another block, as valid."""
    at = rng.choice([0, -1])
    if block.changed in (at, len(block.search) + at):
        return False
    del block.search[at], block.replace[at]
    return any(map(str.strip, block.search))


def _context(block: Block, rng: random.Random, *, inner: bool) -> int | None:
    """A line with something on it that the edit leaves as it is, inside of the block or at one end of it."""
    last = len(block.search) - 1
    places = [
        at for at, line in enumerate(block.search)
        if line.strip() and at != block.changed and (0 < at < last) is inner
    ]  # fmt: skip
    return rng.choice(places) if places else None


def inner_line_lost(block: Block, rng: random.Random) -> bool:
    at = _context(block, rng, inner=True)
    if at is not None:
        del block.search[at]
    return at is not None


def outer_line_lost(block: Block, rng: random.Random) -> bool:
    """Only in SEARCH: what is left stands in the file, but REPLACE would write the line a second time."""
    at = _context(block, rng, inner=False)
    if at is not None:
        del block.search[at]
    return at is not None and any(map(str.strip, block.search))


def line_cut_short(block: Block, rng: random.Random) -> bool:
    at = rng.choice([at for at, line in enumerate(block.search) if len(line.strip()) > 1])
    line = block.search[at]
    block.search[at] = line[: rng.randint(len(line) - len(line.lstrip()) + 1, len(line) - 1)].rstrip()
    return True


def last_line_cut_short(block: Block, rng: random.Random) -> bool:
    line = block.search[-1]
    block.search[-1] = line[: len(line) - rng.randint(1, 5)].rstrip()
    return len(line.strip()) > 6


def comment_lost(block: Block, rng: random.Random) -> bool:
    """In both parts, as models do: were it applied, the comment would be gone from the file."""
    places = [at for at, line in enumerate(block.search) if re.search(r"\S {2}# ", line)]
    if not places:
        return False
    old = block.search[rng.choice(places)]
    for part in (block.search, block.replace):
        part[:] = [line.partition("  # ")[0] if line == old else line for line in part]
    return True


def stale(block: Block, rng: random.Random) -> bool:
    """A name or a number is what it was some trials ago."""
    at = rng.choice([at for at, line in enumerate(block.search) if re.search(r"\w", line)] or [-1])
    words = list(re.finditer(r"\w+", block.search[at]))
    if not words:
        return False
    word = rng.choice(words)
    old = str(rng.randint(10, 99)) if word[0].isdigit() else f"old_{word[0]}"
    block.search[at] = block.search[at][: word.start()] + old + block.search[at][word.end() :]
    return True


def _times(lines: list[str]) -> int:
    return sum(FILE[at : at + len(lines)] == lines for at in range(len(FILE)))


REPEATED = [
    (at, size) for size in (1, 2, 3) for at in range(len(FILE) - size)
    if any(map(str.strip, FILE[at : at + size])) and _times(FILE[at : at + size]) > 1
]  # fmt: skip


def repeated_in_the_file(block: Block, rng: random.Random) -> bool:
    """The block is so short that it stands in the file more than once."""
    block.start, size = rng.choice(REPEATED)
    block.search = FILE[block.start : block.start + size]
    block.replace = [*block.search, "new = 1"]
    return True


def line_doubled(block: Block, rng: random.Random) -> bool:
    at = rng.choice([at for at, line in enumerate(block.search) if line.strip()])
    block.search.insert(at, block.search[at])
    return True


def one_line_indented(block: Block, rng: random.Random) -> bool:
    at = rng.choice([at for at, line in enumerate(block.search) if line.strip()])
    block.search[at] = " " * rng.choice([1, 2, 4]) + block.search[at]
    return True


def tabs(block: Block, rng: random.Random) -> bool:
    before = list(block.search)
    block.search = [re.sub(r"^( {4})+", lambda found: "\t" * (len(found[0]) // 4), line) for line in before]
    return block.search != before


def spaces_inside(block: Block, rng: random.Random) -> bool:
    places = [at for at, line in enumerate(block.search) if " " in line.strip()]
    if not places:
        return False
    at = rng.choice(places)
    line = block.search[at]
    gap = rng.choice([found.start() for found in re.finditer(r"(?<=\S) ", line)])
    block.search[at] = line[:gap] + rng.choice(["", "  ", "\t"]) + line[gap + 1 :]
    return True


def lines_swapped(block: Block, rng: random.Random) -> bool:
    at = rng.randrange(len(block.search) - 1)
    one, two = block.search[at : at + 2]
    block.search[at : at + 2] = [two, one]
    return one.strip() != two.strip() and bool(one.strip() and two.strip())


def wrong_case(block: Block, rng: random.Random) -> bool:
    places = [at for at, line in enumerate(block.search) if line != line.swapcase()]
    if not places:
        return False
    at = rng.choice(places)
    block.search[at] = block.search[at].swapcase()
    return True


def blank_line_lost_or_added(block: Block, rng: random.Random) -> bool:
    """Not at an end of the block: there a blank line more or less makes another valid one."""
    inner = range(1, len(block.search) - 1)
    blank = [at for at in inner if not block.search[at]]
    if blank:
        del block.search[rng.choice(blank)]
    else:
        block.search.insert(rng.choice(inner or [1]), "")
    return bool(block.search[0] and block.search[-1])


def marker_cut(block: Block, rng: random.Random) -> bool:
    marker = rng.choice(["<<<<<<< SEARCH", "=======", ">>>>>>> REPLACE"])
    size = rng.randrange(len(marker))
    block.cut = lambda text: text.replace(f"\n{marker}\n", f"\n{marker[:size]}\n")
    return True


def answer_cut(block: Block, rng: random.Random) -> bool:
    part = rng.random()
    block.cut = lambda text: text[: int(part * (len(text) - 1))]
    return True


HARMLESS: tuple[Mutation, ...] = (untouched, spaces_at_the_ends, all_outdented, all_indented, less_context)
HARMFUL: tuple[Mutation, ...] = (
    inner_line_lost, outer_line_lost, line_cut_short, last_line_cut_short, comment_lost, stale, repeated_in_the_file,
    line_doubled, one_line_indented, tabs, spaces_inside, lines_swapped, wrong_case, blank_line_lost_or_added, marker_cut,
    answer_cut,
)  # fmt: skip
Applier = Callable[[str, str], str]


def ours(answer: str, champion: str) -> str:
    return apply(parse(answer), champion)


def first_place(answer: str, champion: str) -> str:
    """What other runners do: replace the first place where the text stands, in the middle of a line or not."""
    found = re.search(r"SEARCH\n(.*)\n=======\n(.*)>>>>>>> REPLACE", answer, re.DOTALL)
    if not found or found[1] not in champion:
        raise RefusedEditError
    return champion.replace(found[1], found[2].removesuffix("\n"), 1)


def tally(applier: Applier, mutation: Mutation, rng: random.Random) -> Counter[str]:
    """How often the result is the file with the block's own lines replaced, and nothing else."""
    counts: Counter[str] = Counter()
    while counts.total() < EACH:
        block = draw_block(rng)
        size, replace = len(block.search), list(block.replace)
        if not mutation(block, rng):
            continue
        if mutation is repeated_in_the_file:
            size, replace = len(block.search), block.replace
        right = _text([*FILE[: block.start], *replace, *FILE[block.start + size :]])
        try:
            result = applier(block.answer, TRAIN)
        except (RefusedEditError, MalformedAnswerError):
            counts["rejected"] += 1
        else:
            counts["right" if result == right else "wrong"] += 1
    return counts


def table(applier: Applier) -> dict[str, Counter[str]]:
    rng = random.Random(20)
    counts = {mutation.__name__: tally(applier, mutation, rng) for mutation in (*HARMLESS, *HARMFUL)}
    print(f"\n{applier.__name__:<26}{'right':>9}{'rejected':>9}{'wrong':>9}")
    for name, count in {**counts, "all": sum(counts.values(), Counter[str]())}.items():
        print(f"{name:<26}" + "".join(f"{count[column]:>9}" for column in ("right", "rejected", "wrong")))
    return counts


def test_no_mutated_block_is_applied_in_a_wrong_place() -> None:
    counts = table(ours)
    assert sum(count.total() for count in counts.values()) >= 400
    assert {name: count["wrong"] for name, count in counts.items() if count["wrong"]} == {}
    assert {name: count["right"] for name, count in counts.items() if count["right"] < 0.8 * EACH} == {
        mutation.__name__: 0 for mutation in HARMFUL
    }


def test_the_same_blocks_find_an_applier_out_that_takes_the_first_place() -> None:
    counts = table(first_place)
    assert sum(count["wrong"] for count in counts.values()) > EACH
