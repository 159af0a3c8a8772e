"""The manifest: what every file is, so that the host can tell a whole tree from a damaged one."""

from __future__ import annotations

import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path

FORMAT = 2
NAME = "manifest.json"
BLOCK = 1 << 20


def sha256(path: Path) -> str:
    """Hex digest of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def described(root: Path) -> dict[str, dict[str, object]]:
    """Size and hash of every file under `root`, by path relative to it."""
    paths = sorted(path for path in root.rglob("*") if path.is_file() and path.name != NAME)
    return {
        path.relative_to(root).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in paths
    }


def write(root: Path, facts: dict[str, object]) -> None:
    """Write `manifest.json` for what lies under `root`, by rename, after everything else is on disk."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    value = {"format": FORMAT, **facts, "files": described(root), "created": created}
    part = root / f"{NAME}.part"
    with part.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    part.rename(root / NAME)
