"""Pure: the sandbox that an agent of somebody else's runs in, as one list of bubblewrap's arguments.

What is not in the list is not there: the sandbox starts from an empty root.  Programs and libraries of the machine are
read-only, one folder is writable, and so are two in memory.  The network is the machine's own, because such an agent has to
reach its model.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.errors import AgentError, UsageError

WORKDIR, HOME = "/task", "/home/agent"
PROGRAMS = ("/bin", "/sbin", "/lib", "/lib32", "/lib64")
"""Links into /usr on most machines, folders of their own on others."""
CONFIGURATION = (
    "/etc/alternatives", "/etc/ca-certificates", "/etc/group", "/etc/host.conf", "/etc/hosts", "/etc/ld.so.cache", "/etc/localtime",
    "/etc/nsswitch.conf", "/etc/passwd", "/etc/pki", "/etc/protocols", "/etc/resolv.conf", "/etc/services", "/etc/ssl/certs", "/etc/ssl/openssl.cnf",
)  # fmt: skip
"""Names, certificates and the like; not all of /etc, where root would find keys and passwords too."""
USUAL_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
FILE_BLOCKS = 1 << 19
"""The largest file that may be written, in blocks of 512 bytes: 256 MiB."""
LIMITED = f'ulimit -c 0; ulimit -f {FILE_BLOCKS}; exec "$@"'
CLOSED = ("/dev", "/etc", "/proc", "/run", "/sys", WORKDIR)
"""Neither these nor anything in or above them can be shown to an agent: devices, keys and the sockets of an engine lie there."""
NOT_WHOLE = ("/tmp", HOME)
"""The sandbox's own folders of these names would be covered."""
INSTALL = "As root on Debian or Ubuntu: apt-get install bubblewrap; elsewhere it is the package bubblewrap too"


@dataclass(frozen=True, kw_only=True)
class Confinement:
    """What one run of a command may see beyond the machine's programs."""

    scratch: Path
    """The one place of the machine that it may write to."""
    given: tuple[Path, ...] = ()
    """Files that lie in the scratch folder under their own names, read-only."""
    agent_paths: tuple[Path, ...] = ()
    """Folders that it finds where they are, read-only."""


def arguments(bwrap: str, confinement: Confinement, command: Sequence[str], *, status: int) -> list[str]:
    """The whole command line of the program `bwrap`; what becomes of it is reported on the file descriptor `status`.

    No variable's value is in it: everybody on the machine can read command lines.  They are the process's own (`environment`).
    """
    return [
        bwrap,
        "--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try",
        "--die-with-parent", "--new-session", "--cap-drop", "ALL",
        "--ro-bind", "/usr", "/usr",
        *(word for place in (*PROGRAMS, *CONFIGURATION) for word in ("--ro-bind-try", place, place)),
        "--dev", "/dev",
        # Read-only, or what root started could set the machine's kernel through /proc/sys: capabilities are not asked for there.
        "--proc", "/proc", "--remount-ro", "/proc",
        "--tmpfs", "/tmp",
        "--tmpfs", HOME,
        *(word for place in confinement.agent_paths for word in ("--ro-bind", str(place), str(place))),
        "--bind", str(confinement.scratch), WORKDIR,
        *(word for file in confinement.given for word in ("--ro-bind", str(file), f"{WORKDIR}/{file.name}")),
        "--remount-ro", "/",
        "--chdir", WORKDIR,
        "--json-status-fd", str(status),
        "--", "/bin/sh", "-c", LIMITED, "sh", *command,
    ]  # fmt: skip


def environment(passed: Mapping[str, str], agent_paths: Sequence[Path]) -> dict[str, str]:
    """Everything that the sandbox has for an environment; bubblewrap adds PWD."""
    path = (*(name for place in agent_paths for name in (f"{place}/bin", str(place))), *USUAL_PATH)
    return {**passed, "HOME": HOME, "PATH": ":".join(path)}


def words(command: str, *, prompt_file: str, seconds: int) -> list[str]:
    """A command as a list of words, its placeholders filled in; other braces stay.  Raises `UsageError`."""
    try:
        found = shlex.split(command)
    except ValueError as error:
        message = f"--command {command!r}: {error}"
        raise UsageError(message) from None
    if not found or "\0" in command:
        message = "--command: there is no command in it"
        raise UsageError(message)
    known = {"{prompt_file}": prompt_file, "{workdir}": WORKDIR, "{seconds}": str(seconds)}
    return [re.sub(r"\{(prompt_file|workdir|seconds)\}", lambda match: known[match[0]], word) for word in found]


def passed_variables(names: Sequence[str], ours: Mapping[str, str]) -> dict[str, str]:
    """The variables that a person names, with their values from `ours`.  Raises `UsageError`."""
    for name in names:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            message = f"--pass-env {name}: name a variable; its value is taken from the environment, so that no command line shows it"
        elif name in ("HOME", "PATH", "PWD") or name.startswith("LD_"):
            message = f"--pass-env {name}: the sandbox has its own; folders of programs are named by --agent-path"
        elif name not in ours:
            message = f"--pass-env {name}: it is not set here"
        else:
            continue
        raise UsageError(message)
    return {name: ours[name] for name in names}


def shown_paths(paths: Sequence[Path], *, closed: Sequence[Path], home: Path) -> tuple[Path, ...]:
    """The folders that a person names, absolute.  Raises `UsageError` for what no agent may see: `closed`, or all of `home`."""
    return tuple(_shown(path, (*map(Path, CLOSED), *closed), (*map(Path, NOT_WHOLE), home)) for path in paths)


def _shown(path: Path, closed: Sequence[Path], not_whole: Sequence[Path]) -> Path:
    place = Path(os.path.normpath(path.absolute()))
    if not place.is_dir():
        message = f"--agent-path {path}: there is no such folder"
        raise UsageError(message)
    for one in {place, place.resolve()}:
        for other in {name for name in closed for name in (name, name.resolve())}:
            if one.is_relative_to(other) or other.is_relative_to(one):
                message = f"--agent-path {path}: {other} is closed to agents; name the folder that the agent is installed in"
                raise UsageError(message)
        for other in {name for name in not_whole for name in (name, name.resolve())}:
            if other.is_relative_to(one):
                message = f"--agent-path {path}: that shows all of {other}; name the folder in it that the agent is installed in"
                raise UsageError(message)
    return place


def refuse_unseen(program: str, agent_paths: Sequence[Path]) -> None:
    """Raises `AgentError` if the sandbox has no such program, before a proposal is spent on finding out."""
    found = shutil.which(program, path=environment({}, agent_paths)["PATH"]) if "/" not in program or program.startswith("/") else None
    places = [Path(name).resolve() for name in ("/usr", *PROGRAMS, *map(str, agent_paths))]
    if found is None or not any(Path(found).resolve().is_relative_to(place) for place in places):
        instead = "" if found is None else f" ({found} is {Path(found).resolve()}, which is not shown)"
        message = f"--command: the sandbox has no program {program}{instead}; name the folder where it is installed with --agent-path"
        raise AgentError(message)
