from __future__ import annotations

import pytest

from runner.codesize import code_size, smaller_by

CODE = '''
def f(x):
    return x + 1


def main():
    print(f(2))
'''


@pytest.mark.parametrize(
    "same",
    [
        "# a comment\n" + CODE,
        '"""What the file does, at length."""\n' + CODE,
        CODE.replace("def f(x):\n", 'def f(x):\n    """Adds one."""\n'),
        CODE.replace("x + 1", "(x\n        + 1)"),
        CODE.replace("f(", "much_longer_name("),
    ],
)
def test_comments_docstrings_layout_and_names_do_not_count(same: str) -> None:
    assert code_size(same) == code_size(CODE)


def test_code_that_is_gone_counts() -> None:
    shorter = CODE.split("def main", maxsplit=1)[0]

    assert 0.3 < smaller_by(shorter, CODE) < 0.7
    assert smaller_by(CODE, shorter) < 0
    assert smaller_by(CODE, CODE) == 0


def test_code_that_hides_in_a_string_is_not_gone() -> None:
    body = "def f(x):\n" + "".join(f"    x = x + {number}\n" for number in range(40))

    assert smaller_by(f"exec({body!r})\n", body) < 0.5
    assert smaller_by("f = 1\n", body) > 0.9


@pytest.mark.parametrize("odd", ["def f(:\n", "x = '\0'\n", "(" * 10_000 + ")" * 10_000])
def test_what_does_not_parse_is_not_smaller(odd: str) -> None:
    assert code_size(odd) is None
    assert smaller_by(odd, CODE) == 0
    assert smaller_by(CODE, odd) == 0


@pytest.mark.parametrize(
    "hidden",
    [
        "import zlib\nexec(zlib.decompress(({0}).to_bytes(900, 'big')))",
        "exec('''{0}''')",
        "x = {0}",
        "x = b'{0}'",
        "x = '{0}'",
        "x{0} = 1",
        "import importlib\nimportlib.import_module('x')",
    ],
)
def test_code_that_hides_is_not_gone(hidden: str) -> None:
    before = "\n".join(f"x{number} = {number} + {number}" for number in range(400))
    assert smaller_by("x = 1", before) > 0.9
    assert smaller_by(hidden.format("7" * 900), before) == 0
