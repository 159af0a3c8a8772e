"""What is refused before a trial is spent: broken files, repeats, too much new data, text of the data set."""

from __future__ import annotations

import ast
import base64
import bz2
import codecs
import importlib
import inspect
import lzma
import re
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.gates import (
    LARGE_RUN,
    LARGE_STRIDE,
    SMALL_RUN,
    SMALL_TOKENS,
    GateLimits,
    HeldOut,
    fingerprint,
    refuse,
)
from runner.prepare import Prepared

ROOT = Path(__file__).parents[1]
TRAIN = (ROOT / "trainer" / "train.py").read_text()
CHAMPION = '''"""A small champion."""
import torch

RATE = 1000  # the learning rate


def main() -> None:
    """Train."""
    print("ready", RATE)
'''
CHANGED = CHAMPION.replace("1000", "2000")
LIMITS = GateLimits()


def refused(source: str, champion: str = CHAMPION, **more: object) -> str | None:
    given = {"tried": {}, "limits": LIMITS, "held_out": None, "scored": False, **more}
    found = refuse(source, champion=champion, **given)  # type: ignore[arg-type]
    return None if found is None else found.reason


# The same experiment ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  # the learning rate", "\n\n# slower\n"),
        ('    """Train."""\n', ""),
        ('    """Train."""\n', "    pass\n    ...\n"),
        ('"""A small champion."""', ""),
        ("1000", "1_000"),
        ("1000", "(0x3E8)"),
        ('"ready"', "'re' 'ady'"),
        ('print("ready", RATE)', 'print(\n        "ready",\n        RATE,\n    )'),
        ("\n", "\r\n"),
    ],
)
def test_what_cannot_matter_gives_the_same_fingerprint(old: str, new: str) -> None:
    changed = CHAMPION.replace(old, new)
    assert changed != CHAMPION
    assert fingerprint(changed) == fingerprint(CHAMPION)
    assert (
        refused(changed)
        == "the same program as the champion: at most, only comments, docstrings or layout differ"
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("1000", "1e3"),
        ("1000", "True"),
        ("1000", "-1000"),
        ("1000", "b'1000'"),
        ("1000", "'1000'"),
        ("RATE)", "RATE, None)"),
        ("RATE)", "RATE + 0)"),
        ("-> None", ""),
        ("import torch", "import torch as torch_"),
        ('print("ready", RATE)', "pass"),
        ("\n\n\ndef main", "\n\n\nasync def main"),
    ],
)
def test_what_can_matter_gives_another_fingerprint(old: str, new: str) -> None:
    changed = CHAMPION.replace(old, new)
    assert fingerprint(changed) not in {None, fingerprint(CHAMPION)}
    assert refused(changed) is None


EXPRESSIONS = st.recursive(
    st.sampled_from(["a", "1", "1.0", "True", "'x'", "b'x'", "..."]),
    lambda inner: st.builds(
        "{}({}, {}){}".format, st.sampled_from(["f", "", "-"]), inner, inner, st.sampled_from(["", ".a"])
    ),
    max_leaves=4,
)


@given(EXPRESSIONS, EXPRESSIONS)
def test_fingerprints_are_equal_exactly_where_the_trees_are(first: str, second: str) -> None:
    sources = [f"x = {first}", f"x = ({second}) # a comment"]
    same = ast.dump(ast.parse(sources[0])) == ast.dump(ast.parse(sources[1]))
    assert (fingerprint(sources[0]) == fingerprint(sources[1])) is same
    assert fingerprint(sources[0]) == fingerprint(f"x = (({first}))")


def test_a_real_file_printed_anew_from_its_tree_is_the_same_program() -> None:
    assert fingerprint(ast.unparse(ast.parse(TRAIN))) == fingerprint(TRAIN)


def test_a_program_that_was_tried_is_refused_with_the_number_of_its_trial() -> None:
    source = CHANGED
    tried = {str(fingerprint(CHAMPION.replace("1000", "2_000"))): 12}
    assert refused(source, tried=tried) == (
        "the same program as trial 12: at most, only comments, docstrings or layout differ"
    )
    assert refused(CHAMPION.replace("1000", "3000"), tried=tried) is None


# Files that cannot be read ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("a = 1\nb = = 2\n", r"does not parse: line 2: invalid syntax"),
        ("def f():\nreturn 1\n", r"does not parse: line 2: expected an indented block"),
        ("a = 1\nb = '\0'\n", r"line 2 has a null byte"),
        ("a = 1\nb = '\ud800'\n", r"line 2 is not UTF-8 text"),
        ("# coding: latin-1\na = 1\n", r"a comment at its top declares another encoding than UTF-8"),
        (
            "#!/usr/bin/python\n# vim: set fileencoding=utf-7 :\na = 1\n",
            r"a comment at its top declares another",
        ),
        ("\f\f# coding: nonsense\n", r"a comment at its top declares another"),
        ("a\r\n# coding=utf-16\r\n", r"a comment at its top declares another"),
        ("-" * 60_000 + "1", r"does not parse: it is nested too deeply"),
        ("(" * 60_000, r"does not parse: line 1: "),
        ("a" + ".b" * 30_000, r"does not parse: it is nested too deeply"),
        ("+".join("a" * 30_000), r"does not parse: it is nested too deeply"),
        ("lambda:" * 8_000 + "1", r"does not parse: it is nested too deeply"),
        ("if a: pass\n" + "elif b: pass\n" * 4_500, r"does not parse: it is nested too deeply"),
        ("".join(" " * depth + "if a:\n" for depth in range(300)), r"does not parse: line 101: "),
        ("x = " + "9" * 60_000, r"does not parse: line 1: "),
        ("x = 0x" + "f" * 60_000, r"the file grows by"),
        ("f'" + "{a}" * 15_000 + "'", r"the file grows by"),
        ("a;" * 30_000, r"the file grows by"),
        ("x = 1\n" * 20_000, r"the file has 120,000 bytes; 65,536 are allowed"),
    ],
)
def test_hostile_files_are_refused_in_bounded_time(source: str, reason: str) -> None:
    began = time.process_time()
    found = refused(source)
    assert found is not None
    assert re.match(reason, found)
    assert len(found) < 300
    assert found.isprintable()
    assert time.process_time() - began < 3


@pytest.mark.parametrize(
    "first", ["# coding: utf-8\n", "# -*- coding: UTF8 -*-\n", "\ufeff", "\f\n", "# encodings matter\n"]
)
def test_files_that_python_reads_are_read(first: str) -> None:
    assert refused(first + CHANGED) is None


@given(st.text(max_size=200))
def test_no_text_at_all_raises(source: str) -> None:
    reason = refused(source, held_out=HeldOut([], []))
    assert reason is None or reason.isprintable()


def test_an_odd_escape_is_no_warning() -> None:
    assert refused(CHAMPION + r"PATTERN = '\d'") is None


# Too much at a time -----------------------------------------------------------------------------------------------


def test_growth_is_capped_against_the_champion() -> None:
    longer = CHAMPION + "".join(f"a{number} = torch\n" for number in range(400))
    growth = len(longer) - len(CHAMPION)
    assert growth > 4096
    assert (
        refused(longer)
        == f"the file grows by {growth:,} bytes over the champion; 4,096 at a time are allowed"
    )
    assert refused(longer, limits=GateLimits(growth_bytes=growth)) is None
    assert refused(longer + "b = torch\n", champion=longer) is None
    assert refused(CHANGED, champion=longer) is None


@pytest.mark.parametrize(
    "data",
    [
        "TEXT = '" + "word " * 900 + "'\n",
        "TEXT = '''" + "a line of it\n" * 400 + "'''\n",
        "".join(f"# {number} remarks about nothing\n" for number in range(200)),
        f"IDS = {list(range(1000, 2200))}\n",
        "TEXT = f'" + "word " * 900 + "{RATE}'\n",
        "".join(f"a{number} = b'{number:050}'\n" for number in range(80)),
    ],
)
def test_new_literals_and_comments_are_capped_even_where_the_file_does_not_grow(data: str) -> None:
    champion = CHAMPION + "".join(f"a{number} = torch\n" for number in range(800))
    reason = refused(CHAMPION + data, champion=champion)
    assert reason is not None
    assert re.match(
        r"[4-9],\d{3} bytes of literals and comments are new; 4,096 at a time are allowed", reason
    )


def test_literals_and_comments_of_the_champion_are_not_new_wherever_they_stand() -> None:
    remarks = "".join(f"# {number} remarks about nothing\n" for number in range(400))
    assert refused(CHANGED + remarks, champion=remarks + CHAMPION) is None


def test_a_large_champion_may_stay_large() -> None:
    champion = CHAMPION + "".join(f"a{number} = torch\n" for number in range(8000))
    assert refused(champion.replace("1000", "2000"), champion=champion) is None


# Text of the data set ---------------------------------------------------------------------------------------------

TEXT = (
    "A grey heron stood motionless beside the mill pond, watching seven small fish circle under the lilies. "
    "Nobody in the village remembered who had planted that crooked walnut tree behind the old customs house. "
)
MERGES = [b"er", b"on", b" the", b" s", b"ll", b"tree", b"ed", b"illage"]
PIECES = [bytes([byte]) for byte in range(256)] + MERGES
QUOTE = TEXT[13:76]


def tokens(text: str) -> list[int]:
    """Greedy: the longest piece that fits."""
    pattern = b"|".join(re.escape(piece) for piece in sorted(PIECES, key=len, reverse=True))
    return [PIECES.index(match[0]) for match in re.finditer(pattern, text.encode(), re.DOTALL)]


def rows(text: str, length: int = 16) -> npt.NDArray[np.uint16]:
    ids = tokens(text)
    return np.array(ids[: len(ids) // length * length], dtype=np.uint16).reshape(-1, length)


@pytest.fixture(scope="module")
def held_out() -> HeldOut:
    return HeldOut([rows(TEXT * 3)], PIECES)


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def packed(text: str) -> bytes:
    return np.array(tokens(text), dtype="<u2").tobytes()


SMUGGLED: dict[str, Callable[[str], str]] = {
    "a string": lambda text: f"X = {text!r}",
    "a docstring": lambda text: f"def f():\n    '''{text}'''",
    "a comment": lambda text: f"# {text}",
    "shouted, without spaces": lambda text: f"X = {text.upper().replace(' ', '')!r}",
    "accents": lambda text: f"X = {text.replace('e', 'é').replace('o', 'ö')!r}",
    "full width": lambda text: f"X = {''.join(chr(ord(c) + 0xFEE0) if c.isalpha() else c for c in text)!r}",
    "escapes": lambda text: "X = '" + "".join(f"\\x{ord(letter):02x}" for letter in text) + "'",
    "a list of words": lambda text: f"X = {words(text)}",
    "words as keys": lambda text: f"X = {dict.fromkeys(words(text), 'a value')}",
    "a line a word": lambda text: "\n".join(f"# {word}" for word in words(text)),
    "variables": lambda text: "\n".join(f"v{number} = {word!r}" for number, word in enumerate(words(text))),
    "a sum": lambda text: "X = " + " + ".join(map(repr, words(text))),
    "names": lambda text: " = ".join(f"{word}_" for word in words(text)) + " = 0",
    "one name": lambda text: f"{'_'.join(words(text))} = 0",
    "camel case": lambda text: f"class {''.join(words(text.title()))}: ...",
    "parts of an f-string": lambda text: "X = f'" + "{RATE}".join(words(text)) + "'",
    "a comment a line, between code": lambda text: "\n".join(
        f"v{number} = 0  # {word}" for number, word in enumerate(words(text))
    ),
    "backwards": lambda text: f"X = {text[::-1]!r}",
    "last word first": lambda text: f"X = {' '.join(words(text)[::-1])!r}",
    "rot13": lambda text: f"X = {codecs.encode(text, 'rot13')!r}",
    "bytes": lambda text: f"X = {text.encode()!r}",
    "code points": lambda text: f"X = bytes({list(text.encode())})",
    "token ids": lambda text: f"X = {tokens(text)}",
    "token ids backwards": lambda text: f"X = {tokens(text)[::-1]}",
    "token ids in hexadecimal": lambda text: f"X = [{', '.join(map(hex, tokens(text)))}]",
    "token ids in a string": lambda text: f"X = '{' '.join(map(str, tokens(text)))}'",
    "token ids in a comment": lambda text: f"# {' '.join(map(str, tokens(text)))}",
    "token ids in nested calls": lambda text: (
        "X = " + "".join(f"f({i}, " for i in tokens(text)) + ")" * len(tokens(text))
    ),
    "token ids as characters": lambda text: f"X = {''.join(map(chr, tokens(text)))!r}",
    "token ids as bytes": lambda text: f"X = {packed(text)!r}",
    "a long integer": lambda text: f"X = {int.from_bytes(text.encode(), 'big')}",
    "hexadecimal": lambda text: f"X = '{text.encode().hex()}'",
    "hexadecimal with spaces": lambda text: f"X = '{text.encode().hex(' ')}'",
    "base64": lambda text: f"X = {base64.b64encode(text.encode()).decode()!r}",
    "base64 without its end": lambda text: f"X = {base64.b64encode(text.encode()).decode().rstrip('=')!r}",
    "base64 as bytes": lambda text: f"X = {base64.b64encode(text.encode())!r}",
    "base64 in pieces": lambda text: f"X = {re.findall('.{1,20}', base64.b64encode(text.encode()).decode())}",
    "base64 for addresses": lambda text: f"X = {base64.urlsafe_b64encode(packed(text)).decode()!r}",
    "base85": lambda text: f"X = {base64.b85encode(text.encode()).decode()!r}",
    "ascii85": lambda text: f"X = {base64.a85encode(text.encode()).decode()!r}",
    "zlib": lambda text: f"X = {zlib.compress(text.encode())!r}",
    "zlib in base64": lambda text: f"X = {base64.b64encode(zlib.compress(text.encode())).decode()!r}",
    "bz2 in base85": lambda text: f"X = {base64.b85encode(bz2.compress(text.encode())).decode()!r}",
    "lzma": lambda text: f"X = {lzma.compress(text.encode())!r}",
    "base64 of token ids": lambda text: f"X = {base64.b64encode(packed(text)).decode()!r}",
}


@pytest.mark.parametrize("form", SMUGGLED)
def test_text_of_the_data_set_is_found_in_every_simple_form(held_out: HeldOut, form: str) -> None:
    source = f"{CHANGED}\n{SMUGGLED[form](QUOTE)}\n"
    ast.parse(source)
    reason = refused(source, held_out=held_out)
    assert reason is not None
    assert "repeats text of the data set (24 letters in a row or more)" in reason
    assert not any(
        word in reason.lower() for word in ("heron", "motionless", "beside", "mill", "watching", "fish")
    )


@pytest.mark.parametrize("form", SMUGGLED)
def test_other_text_in_the_same_form_passes(held_out: HeldOut, form: str) -> None:
    harmless = "The learning rate falls at the end, and each matrix of a block is turned before its step."
    assert refused(f"{CHANGED}\n{SMUGGLED[form](harmless)}\n", held_out=held_out) is None


def test_what_the_champion_has_may_stay_and_move_but_not_grow(held_out: HeldOut) -> None:
    champion = f"{CHAMPION}X = {QUOTE!r}\n"
    assert refused(f"X = {QUOTE!r}\n{CHAMPION}Y = torch\n", champion=champion, held_out=held_out) is None
    longer = f"{CHAMPION}X = {TEXT[13:80]!r}\n"
    assert "repeats" in str(refused(longer, champion=champion, held_out=held_out))


def test_a_run_counts_from_its_last_letter_on(held_out: HeldOut) -> None:
    letters = "".join(filter(str.isalpha, QUOTE))
    assert held_out.overlap(f"X = '{letters[:SMALL_RUN]}!'", CHAMPION) is not None
    assert held_out.overlap(f"X = '{letters[: SMALL_RUN - 1]}!'", CHAMPION) is None


def test_text_is_found_across_the_ends_of_rows() -> None:
    many = HeldOut([rows(TEXT), rows(TEXT[::-1])], PIECES)
    letters = "".join(filter(str.isalpha, TEXT))[:140]
    for start in range(0, len(letters) - SMALL_RUN, 5):
        assert many.overlap(f"X = '{letters[start : start + SMALL_RUN]}'", "") is not None


def test_a_file_that_does_not_parse_is_still_looked_at(held_out: HeldOut) -> None:
    assert held_out.overlap(f"X = = {QUOTE}", CHAMPION) is not None


def test_a_large_text_is_found_by_every_eighth_run() -> None:
    """What is repeated has to be longer by the stride; where it begins makes no difference."""
    rng = np.random.default_rng(1)
    large = rng.integers(97, 123, size=(SMALL_TOKENS // 512 + 1, 512)).astype(np.uint16)
    held_out = HeldOut([large], PIECES)
    surely = LARGE_RUN + LARGE_STRIDE - 1
    for start in (0, 1, 2, 3, 5, 600_003, (1 << 18) - 20, large.size - surely):
        quote = bytes(large.reshape(-1)[start : start + surely].tolist()).decode()
        assert held_out.overlap(f"X = {quote!r}", CHAMPION) is not None
        assert held_out.overlap(f"X = {quote[: LARGE_RUN - 1]!r}", CHAMPION) is None


def test_that_of_a_prepared_folder_has_validation_test_and_a_small_training_text(tmp_path: Path) -> None:
    texts = {
        "train": TEXT[:100],
        "val": TEXT[100:],
        "test": "Beyond the quarry the narrow road climbs to the abandoned chapel.",
    }
    counts = {}
    for split, text in texts.items():
        (tmp_path / split).mkdir()
        found = rows(text)
        found.tofile(tmp_path / split / "rows.bin")
        counts[split] = len(found)
    (tmp_path / "prepare").mkdir()
    ranks = ",".join(f'"{base64.b64encode(piece).decode()}"' for piece in PIECES)
    (tmp_path / "prepare" / "tokenizer.json").write_text(f'{{"ranks": [{ranks}]}}')
    prepared = Prepared(
        path=tmp_path,
        manifest={"counts": {"rows": counts}},
        digest="",
        dataset="x",
        vocab_size=len(PIECES) + 1,
        sequence_length=15,
        train_rows=counts["train"],
        val_rows=counts["val"],
        val_bytes=1,
    )
    held_out = HeldOut.of(prepared)
    for text in texts.values():
        assert held_out.overlap(f"# {text[2:50]}", CHAMPION) is not None
    assert (
        held_out.overlap("# " + "It was a bright cold day, and the clocks were striking.", CHAMPION) is None
    )


def test_the_shipped_files_repeat_nothing_of_ordinary_english() -> None:
    """The docstrings of the standard library are the ordinary English here; tests/docker looks at the King James text."""
    modules = (
        "argparse",
        "asyncio.events",
        "logging",
        "random",
        "statistics",
        "typing",
        "unittest.case",
        "zipfile",
    )
    text = "".join(inspect.getsource(importlib.import_module(name)) for name in modules)
    held_out = HeldOut(
        [np.frombuffer(text.encode("ascii", "ignore"), dtype=np.uint8).astype(np.uint16)], PIECES
    )
    assert held_out.overlap(f"# {text[5000:5100]}", "") is not None
    files = [
        ROOT / "trainer" / "train.py",
        ROOT / "program.md",
        *(ROOT / "tests" / "candidates").glob("*.py"),
    ]
    for path in files:
        assert held_out.overlap(path.read_text(), "") is None


def test_looking_at_a_file_of_ordinary_size_is_quick() -> None:
    held_out = HeldOut([np.random.default_rng(0).integers(97, 123, size=1 << 21).astype(np.uint16)], PIECES)
    held_out.overlap("", "")
    began = time.process_time()
    assert refuse(TRAIN + "\nx = 1\n", champion=TRAIN, tried={}, limits=LIMITS, held_out=held_out) is None
    assert time.process_time() - began < 1


# The contract -----------------------------------------------------------------------------------------------------

BODY = "\n\ndef main():\n    print(1)\n"


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ("", "the contract: there is no build_model(device), which the score needs"),
        ("class Trainer:\n    def build_model(self, device):\n        return 1\n", "the contract: build_model at line 2 cannot be called with the device alone"),
        ("def build_model(device, depth):\n    return 1\n", "the contract: build_model at line 1 cannot be called with the device alone"),
        ("def build_model():\n    return 1\n", "the contract: build_model at line 1 cannot be called with the device alone"),
        ("def build_model(device, *, depth):\n    return 1\n", "the contract: build_model at line 1 cannot be called with the device alone"),
    ],
)
def test_a_file_without_a_model_for_the_score_is_refused(made: str, reason: str) -> None:
    assert refused(made + BODY, scored=True) == reason
    assert refused(made + BODY, scored=False) is None


@pytest.mark.parametrize(
    "made",
    [
        "def build_model(device):\n    return 1\n",
        "def build_model(device, depth=2, *more, wide=True):\n    return 1\n",
        "def build_model(*given):\n    return 1\n",
        "def build_model(device=None, /):\n    return 1\n",
        "import functools\n\n@functools.partial\ndef build_model():\n    return 1\n",
        "if 1:\n    def build_model(device):\n        return 1\nelse:\n    def build_model():\n        return 2\n",
        "build_model = lambda device: 1\n",
        "from models import *\n",
        "from models import small as build_model\n",
        "class build_model:\n    def __init__(self, device):\n        self.device = device\n",
        "globals()['build_model'] = print\n",
        "globals().update(build_model=print)\n",
    ],
)
def test_a_model_that_may_be_there_passes(made: str) -> None:
    assert refused(made + BODY, scored=True) is None


def test_a_script_that_is_no_version_of_the_file_is_given_its_container() -> None:
    assert refused("import os\n\nprint(os.listdir('/'))\n", scored=True) is None


def test_what_a_model_cannot_mend_is_said_to_be_so() -> None:
    def mendable(source: str, **more: object) -> bool:
        given = {"tried": {}, "limits": LIMITS, "held_out": None, "scored": True, **more}
        found = refuse(source, champion=CHAMPION, **given)  # type: ignore[arg-type]
        assert found is not None
        return found.mendable

    assert mendable("def f(:\n")
    assert mendable(CHANGED)  # it has no model
    assert mendable(CHANGED + f"DATA = '{'x' * 5000}'\n", limits=GateLimits())
    assert not mendable(CHAMPION + "# again\n")
    assert not mendable(CHANGED, tried={fingerprint(CHANGED): 3})


def test_every_shipped_candidate_and_attack_has_a_model() -> None:
    for path in (ROOT / "tests" / "candidates").glob("*.py"):
        assert refuse(path.read_text(), champion="x = 1\n", tried={}, limits=GateLimits(growth_bytes=1 << 20, text_bytes=1 << 20), held_out=None) is None
