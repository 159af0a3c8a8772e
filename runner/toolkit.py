"""Which NVIDIA container toolkit is on this machine, by asking `nvidia-ctk`.  The only module that runs it."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass

from runner.errors import EngineError

PROGRAM = "nvidia-ctk"
ANSWER_SECONDS = 5.0
FLAWS = (
    ((1, 16, 2), ("CVE-2024-0132", "CVE-2024-0133")),
    ((1, 17, 8), ("CVE-2025-23266", "CVE-2025-23267")),
)
"""The first version without a flaw that lets a container reach its host, and the flaw."""
OLDEST = ".".join(map(str, FLAWS[-1][0]))
_VERSION = re.compile(r"\bversion v?(?P<numbers>[0-9]{1,4}\.[0-9]{1,4}\.[0-9]{1,4})(?P<before>-(?:rc|alpha|beta)[0-9A-Za-z.]*)?(?:[-+~][0-9A-Za-z.+~-]*)?\s")


@dataclass(frozen=True, kw_only=True)
class Version:
    """Of the toolkit."""

    numbers: tuple[int, int, int]
    before: bool = False
    """Whether it is one that was handed out before the release of these numbers."""

    def __str__(self) -> str:
        return ".".join(map(str, self.numbers)) + (" before its release" if self.before else "")

    def flaws(self) -> list[str]:
        """Pure: what is known to let a container of this toolkit out, by CVE id."""
        return [flaw for fixed, ids in FLAWS if (self.numbers, not self.before) < (fixed, True) for flaw in ids]


@dataclass(frozen=True, kw_only=True)
class Toolkit:
    """What could be found out."""

    version: Version | None = None
    unknown: str = ""
    """Why there is no version, in words."""


def is_here() -> bool:
    """Whether there is a program to ask."""
    return shutil.which(PROGRAM) is not None


def look(*, local: bool) -> Toolkit:
    """The toolkit of the engine, which is this machine's if the engine is on it (`local`).  Never raises."""
    if not local:
        return Toolkit(unknown="the engine is not on this machine")
    program = shutil.which(PROGRAM)
    if program is None:
        return Toolkit(unknown=f"{PROGRAM} is not on the PATH")
    try:
        done = subprocess.run(
            [program, "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=ANSWER_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Toolkit(unknown=f"{program} does not answer within {ANSWER_SECONDS:.0f} s")
    except (OSError, ValueError) as error:
        return Toolkit(unknown=f"{program} cannot be run ({error})")
    said = done.stdout.decode(errors="replace")
    version = parse(said) if done.returncode == 0 else None
    if version is None:
        first = "".join(letter for letter in said.partition("\n")[0] if letter.isprintable())[:80]
        return Toolkit(unknown=f"{program} --version ended with {done.returncode} and said {first!r}")
    return Toolkit(version=version)


def parse(said: str) -> Version | None:
    """Pure: the version in what `nvidia-ctk --version` says; None if there is none."""
    found = _VERSION.search(f"{said}\n")
    if found is None:
        return None
    first, second, third = map(int, found["numbers"].split("."))
    return Version(numbers=(first, second, third), before=found["before"] is not None)


def refuse_flawed(toolkit: Toolkit) -> None:
    """Raises `EngineError` if the toolkit is known to let a container out; one that is not known is not refused."""
    flaws = toolkit.version.flaws() if toolkit.version else []
    if flaws:
        message = (
            f"the NVIDIA container toolkit here is {toolkit.version}, in which a container with a GPU can reach its host ({', '.join(flaws)}), "
            f"so none is started: install {OLDEST} or later"
        )
        raise EngineError(message)
