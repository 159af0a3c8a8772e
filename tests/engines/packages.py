"""Engines and runtimes newer than the machine's own, from Debian's packages; unpacked into a folder and not installed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from runner.setup.steps import apt_install, run, say

STATE = Path(__file__).parents[2] / ".autoresearch" / "engines"
INSTALLED = {
    "rootlesskit": "rootlesskit",
    "newuidmap": "uidmap",
    "podman": "podman",
    "setpriv": "util-linux",
    "useradd": "passwd",
    "pkill": "procps",
}
"""Package by program."""
UNPACKED = {"docker": ("trixie", ("docker.io", "containerd")), "gvisor": ("bookworm-backports", ("runsc",))}
"""Folder, suite, packages: Docker 26 is the first of Debian's with CDI, and gVisor of 2024 the first that new kernels run."""
DOCKER_PATH = f"{STATE}/docker/usr/sbin:{STATE}/docker/usr/bin"
RUNSC = STATE / "gvisor" / "usr" / "bin" / "runsc"


def provide() -> None:
    """Install and unpack what is missing.  Raises `CommandError`; as root on Debian 12."""
    missing = sorted(package for program, package in INSTALLED.items() if shutil.which(program) is None)
    if missing:
        apt_install(missing, what="installing engines of other kinds", say=say)
        say(f"engines: installed {', '.join(missing)}")
    for folder, (suite, packages) in UNPACKED.items():
        if not (STATE / folder / "complete").exists():
            _unpack(STATE / folder, suite, packages)
            say(f"engines: unpacked {', '.join(packages)} of {suite}")


def _unpack(folder: Path, suite: str, packages: tuple[str, ...]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("lists/partial", "archives/partial"):
        (folder / part).mkdir(parents=True)
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (folder / "sources.list").write_text(f"deb [signed-by={keyring}] {_mirror()} {suite} main\n")
    options = [
        f"Dir::Etc::sourcelist={folder}/sources.list", "Dir::Etc::sourceparts=-", f"Dir::State::lists={folder}/lists",
        f"Dir::Cache::archives={folder}/archives", "APT::Sandbox::User=root",
    ]  # fmt: skip
    apt = ["apt-get", *(word for option in options for word in ("-o", option))]
    run([*apt, "update"], what=f"the list of {suite}", say=say)
    run([*apt, "download", *(f"{package}/{suite}" for package in packages)], what=f"downloading {', '.join(packages)}", say=say, cwd=folder)
    for archive in sorted(folder.glob("*.deb")):
        run(["dpkg", "-x", str(archive), str(folder)], what=f"unpacking {archive.name}", say=say)
    (folder / "complete").touch()


def _mirror() -> str:
    """Where this machine has its own packages from."""
    for path in (*sorted(Path("/etc/apt/sources.list.d").glob("debian*")), Path("/etc/apt/sources.list")):
        if path.exists() and (found := re.search(r"https?://\S+/debian/?(?=\s)", path.read_text())):
            return found[0]
    message = "no source of Debian's packages is known to this machine"
    raise SystemExit(message)
