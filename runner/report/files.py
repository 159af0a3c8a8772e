"""Put a file in place by one rename, so that whoever reads it sees a whole one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from runner.durable import PARTIAL
from runner.errors import StateError


def replace_file(path: Path, data: bytes) -> None:
    """Write `data` to `path`.  Raises `StateError` if that is not possible; the old file then stays."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PARTIAL, dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            Path(name).chmod(0o644)  # the folder is private; in it, files are ordinary ones
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StateError(f"cannot write {path}: {error.strerror}") from error
