"""``python3 -m corpus [spec.json]``: read the spec, build the tree, end with an exit code.

Exit codes are the host's: 0 done, 6 the data, 7 the disk is full; then the last line on standard output
is ``{"error": "..."}``.  Anything else is a defect of ours, with a traceback on standard error.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corpus.build import Shape, Source, build
from corpus.errors import CorpusError
from corpus.progress import heartbeat, say

EXIT_DATA, EXIT_DISK = 6, 7
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, kw_only=True)
class Spec:
    """`/in/spec.json`."""

    dataset: str
    options: dict[str, Any]
    """All that shapes the data; copied into the manifest."""
    shape: Shape
    salt: bytes
    mirror: str | None
    secrets: Path | None
    """JSON with `token` and `proxies`; apart, since the spec may be shown."""
    authorities: Path | None
    """PEM file of the certificate authorities to trust instead of the built-in ones."""
    files: Path
    cache: Path
    out: Path

    @classmethod
    def load(cls, path: Path) -> Spec:
        """Read the spec; a missing key is a defect of the host side and raises KeyError."""
        value = json.loads(path.read_text(encoding="utf-8"))
        options = value["options"]
        shape = Shape(
            vocab_size=options["vocab_size"],
            sequence_length=options["sequence_length"],
            val_rows=options.get("val_rows"),
        )
        return cls(
            dataset=value["dataset"],
            options=options,
            shape=shape,
            salt=bytes.fromhex(value.get("salt") or ""),
            mirror=value.get("mirror"),
            secrets=_path(value.get("secrets")),
            authorities=_path(value.get("authorities")),
            files=Path(value.get("files", "/in/files")),
            cache=Path(value.get("cache", "/cache")),
            out=Path(value.get("out", "/out")),
        )


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def main(argv: list[str]) -> int:
    """Do what the spec says; the exit code."""
    heartbeat()
    return guarded(lambda: _run(Path(argv[1] if len(argv) > 1 else "/in/spec.json")))


def guarded(work: Callable[[], None]) -> int:
    """Do `work`; errors that a person can act on become one line and an exit code."""
    try:
        work()
    except CorpusError as error:
        say(error=str(error))
        return EXIT_DATA
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        say(error=f"the engine's disk is full ({error.strerror}): free some space and prepare again")
        return EXIT_DISK
    say(stage="done", done=1, total=1, unit="", note="")
    return 0


def _run(path: Path) -> None:
    spec = Spec.load(path)
    _empty(spec.out)
    facts: dict[str, object] = {"dataset": spec.dataset, "options": spec.options}
    build(_source(spec), spec.shape, facts, spec.out, threads=len(os.sched_getaffinity(0)))


def _source(spec: Spec) -> Source:
    """Each imports only what it needs."""
    if spec.dataset == "kjv":
        from corpus.kjv import KingJames

        return KingJames(_salted(spec))
    if spec.dataset == "files":
        from corpus.files import Folder

        return Folder(spec.files, _salted(spec), spec.options["content"])
    from corpus.shards import COLLECTIONS, Shards, Wanted

    if spec.dataset in COLLECTIONS:
        return Shards(
            Wanted(
                dataset=spec.dataset,
                train_shards=int(spec.options["train_shards"]),
                revision=str(spec.options["revision"]),
                mirror=spec.mirror,
                token=_reach_out(spec),
                cache=spec.cache,
            )
        )
    msg = f"there is no data set {spec.dataset!r}"
    raise CorpusError(msg)


def _salted(spec: Spec) -> bytes:
    if len(spec.salt) < 16:
        msg = "the spec has no salt, so the split would be guessable"
        raise CorpusError(msg)
    return spec.salt


def _reach_out(spec: Spec) -> str | None:
    """Put proxies and authorities where requests looks for them; the hub's token."""
    if spec.authorities is not None:
        os.environ["REQUESTS_CA_BUNDLE"] = str(spec.authorities)
    if spec.secrets is None:
        return None
    secrets = json.loads(spec.secrets.read_text(encoding="utf-8"))
    os.environ.update(secrets.get("proxies", {}))
    token = secrets.get("token")
    return str(token) if token else None


def _empty(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
