"""Where the files are that travel with the package: trainer/, images/, examples/, program.md, autoresearch.yaml.

In a wheel they lie in `runner/_data` (see hatch_build.py); in a checkout, beside `runner`.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def root() -> Path:
    """The folder that holds them."""
    data = _PACKAGE / "_data"
    return data if data.is_dir() else _PACKAGE.parent


def resource(*parts: str) -> Path:
    """The path of one of them, for example `resource("trainer", "train.py")`."""
    return root().joinpath(*parts)
