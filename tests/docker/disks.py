"""A small file system of its own over a folder, which can be filled and made read-only (root)."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path


class Disk:
    """A small file system of its own over the state folder."""

    def __init__(self, place: Path, size: str) -> None:
        self.place, self._filler = place, place / "filler"
        place.mkdir(mode=0o700, exist_ok=True)
        if not os.path.ismount(place):
            self._mount("-t", "tmpfs", "-o", f"size={size},mode=0700", "small", str(place))
        self.free()

    def _mount(self, *arguments: str) -> None:
        subprocess.run(["mount", *arguments], check=True)

    def fill(self, *, leave: int = 0) -> None:
        """Take everything but so many bytes."""
        with self._filler.open("ab") as file:
            for _ in range(8):  # somebody else may take some in the meantime
                there = os.statvfs(self.place)
                size = there.f_bavail * there.f_frsize - leave
                if size <= 0:
                    return
                with suppress(OSError):
                    os.posix_fallocate(file.fileno(), 0, file.seek(0, os.SEEK_END) + size)
                file.seek(0, os.SEEK_END)

    def free(self) -> None:
        """Give it back."""
        self._filler.unlink(missing_ok=True)

    def protect(self, how: str) -> None:
        """`ro` or `rw`; refused by the kernel while somebody writes there."""
        self._mount("-o", f"remount,{how}", str(self.place))

    def unmount(self) -> None:
        """As it was before."""
        subprocess.run(["umount", "--lazy", str(self.place)], check=False)
