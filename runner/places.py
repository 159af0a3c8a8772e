"""Where a task's state lies, and what a run can be called: without git, whose library takes longer to import than `status` to run."""

from __future__ import annotations

import os
import re
from pathlib import Path

STATE_FOLDER = ".autoresearch"
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def state_beside(common: Path) -> Path:
    """The state folder of the repository with this common git directory: beside it, or in it if it has another name than `.git`."""
    return common.parent / STATE_FOLDER if common.name == ".git" else common / STATE_FOLDER[1:]


def find_state(folder: Path) -> Path | None:
    """The state folder of the checkout that `folder` is in, linked worktrees included; None if that is not plain to see."""
    if not folder.is_dir():
        return None
    for parent in (here := Path(os.path.abspath(folder)), *here.parents):  # noqa: PTH100 - links are not followed, as git's library does not
        git = parent / ".git"
        try:
            if (git / "HEAD").is_file():
                return state_beside(git.resolve())
            if git.is_file():
                private = (parent / git.read_text().removeprefix("gitdir:").strip()).resolve()
                common = private / "commondir"
                return state_beside((private / common.read_text().strip()).resolve() if common.is_file() else private)
        except (OSError, ValueError):
            return None
    return None


def check_tag(tag: str) -> bool:
    """True if `tag` can name a branch and a folder."""
    return bool(_TAG.fullmatch(tag)) and ".." not in tag and not tag.endswith((".lock", "."))
