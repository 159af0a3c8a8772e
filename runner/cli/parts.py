"""Builds the parts that the commands use."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner import ledger
from runner.durable import write_durably
from runner.errors import EngineError, GpuError, StateError, UsageError
from runner.ledger import JOURNAL, Event, State
from runner.places import check_tag, find_state

if TYPE_CHECKING:
    from runner.dryrun import DryRun
    from runner.prepare import Prepared, PrepareOptions
    from runner.protocols import Sandbox
    from runner.report.standing import Standing
    from runner.sandbox.docker import DockerSandbox, Engine
    from runner.sandbox.steady import SteadySandbox
    from runner.sandbox.volumes import PreparedVolume
    from runner.task import Task
    from runner.tried import Barred, Candidate, Gate
    from runner.workspace import Workspace

MAX_SLOTS = 64
VOLUMES_LOCK = "volumes.lock"
"""In the state folder: held while prepared volumes are filled and checked."""
WITHOUT_DRY_RUN = ("tuner", "hand")
"""Who sets constants within ranges that a person gave fails seldom, and a dry run would cost every trial seconds.  And who asks for a
trial of this very file gets one."""
WAIT, MAX_WAIT_SECONDS = "AUTORESEARCH_ENGINE_WAIT", 24 * 3600.0
"""The environment variable that says how many seconds an engine is waited for that failed in the middle of a run."""
ISOLATION = "isolation.sha256"
"""In the state folder: of the engine, kernel, image and probe on which isolation was last seen to hold."""


def open_workspace(task: Path) -> Workspace:
    """The repository that the task folder is in."""
    if not task.is_dir():
        message = f"--task {task}: there is no such folder"
        raise UsageError(message)
    from runner.workspace import Workspace

    return Workspace(task)


def runs(state: Path) -> list[Path]:
    """The folders of all runs, the latest last."""
    found = [path.parent for path in state.glob(f"*/{JOURNAL}")]
    return sorted(found, key=lambda path: (path / JOURNAL).stat().st_mtime_ns)


def run_folder(state: Path, tag: str | None) -> Path:
    """The folder of the run `tag`, or of the latest.  Raises `UsageError` if there is none."""
    found = runs(state)
    if tag is None:
        if not found:
            message = "there is no run yet: `autoresearch run` starts one"
            raise UsageError(message)
        return found[-1]
    folder = state / checked_tag(tag)
    if folder not in found:
        names = ", ".join(path.name for path in found) or "none"
        message = f"there is no run {tag!r}; there are: {names}"
        raise UsageError(message)
    return folder


def checked_tag(tag: str) -> str:
    """`tag` if it can name a branch and a folder.  Raises `UsageError`."""
    if not check_tag(tag) or tag in ("data", "engine"):
        message = f"--tag {tag!r}: use letters, digits, dots, dashes and underscores, at most 64"
        raise UsageError(message)
    return tag


def new_tag(workspace: Workspace) -> str:
    """A tag from today's date that no run has, nor a branch of one whose records are gone."""
    day = f"{datetime.now(UTC):%b%d}".lower()
    taken = {path.name for path in runs(workspace.state)} | workspace.tags()
    return next(tag for tag in (day, *(f"{day}-{number}" for number in range(2, 10_000))) if tag not in taken)


def look(task: Path, tag: str | None) -> tuple[Workspace, Path, State]:
    """Workspace, folder and state of a run, for looking only."""
    workspace = open_workspace(task)
    folder = run_folder(workspace.state, tag)
    state = ledger.read(folder)
    _refuse_unstarted(folder, state.header)
    return workspace, folder, state


def glance(task: Path, tag: str | None) -> tuple[Path, Standing]:
    """Folder and standing of a run, for looking only; however many trials it has, this takes no longer."""
    from runner.report import standing

    folder = run_folder(find_state(task) or open_workspace(task).state, tag)
    found = standing.look(folder)
    _refuse_unstarted(folder, found.state.header)
    return folder, found


def _refuse_unstarted(folder: Path, header: Event | None) -> None:
    if header is None:
        message = f"run {folder.name!r} died while it was being started: `autoresearch run --tag {folder.name}` starts it again"
        raise UsageError(message)


def data_root(state: Path) -> Path:
    """Where prepared data lie: beside the runs unless AUTORESEARCH_DATA names a place that tasks share."""
    named = os.environ.get("AUTORESEARCH_DATA")
    return Path(named).expanduser().resolve() if named else state / "data"


def prepare_options(task: Task) -> PrepareOptions:
    """What the data of this task are made of.  Raises `UsageError` if it has none."""
    from runner.prepare import PrepareOptions

    data = task.data
    if data is None:
        message = "this task reports its own score: there are no data to prepare"
        raise UsageError(message)
    return PrepareOptions(
        dataset=data.dataset,
        vocab_size=data.vocab_size,
        sequence_length=data.sequence_length,
        val_rows=data.val_rows,
        train_shards=data.train_shards,
        revision=data.revision,
        files=data.source,
    )


def owner_labels(state: Path) -> dict[str, str]:
    """Labels of everything that this user makes for the tasks of this state folder."""
    return {
        "autoresearch": "1",
        "autoresearch.owner": str(os.getuid()),
        "autoresearch.state": hashlib.sha256(str(state.resolve()).encode()).hexdigest()[:12],
    }


def gate(task: Task, prepared: Prepared | None, *, card_gb: float | None = None, dry_run: DryRun | None = None) -> Gate:
    """What a proposal has to pass before a trial is spent on it.

    `prepared` has the text that it must not repeat, `card_gb` is the GPU's memory in GiB.
    """
    from runner import gates
    from runner.tried import OPEN, Gate

    if not task.editable.endswith(".py"):
        return OPEN  # the gates read Python
    given = task.gates
    limits = gates.GateLimits(source_bytes=given.source_bytes, growth_bytes=given.growth_bytes, text_bytes=given.text_bytes)
    held_out = None if prepared is None else gates.HeldOut.of(prepared)
    return Gate(
        fingerprint=gates.fingerprint,
        rules=gates.RULES,
        refuse=lambda source, champion, tried: gates.refuse(
            source, champion=champion, tried=tried, limits=limits, held_out=held_out, scored=not task.score.reported
        ),
        examine=lambda candidate: _examine(task, candidate, card_gb, dry_run),
    )


def _examine(task: Task, candidate: Candidate, card_gb: float | None, dry_run: DryRun | None) -> Barred | None:
    """The gates after the first, the cheap ones before the one that takes seconds."""
    from runner.agents.plateau import THE_TUNERS
    from runner.memory import too_large
    from runner.statics import static_errors
    from runner.tried import Barred

    reason = static_errors(candidate.source, candidate.champion)
    if reason is None and card_gb is not None and candidate.memory_gb is not None and task.data is not None:
        reason = too_large(
            candidate.source, candidate.champion, measured_gb=candidate.memory_gb, card_gb=card_gb,
            vocab_size=task.data.vocab_size, sequence_length=task.data.sequence_length,
        )  # fmt: skip
    if reason is not None:
        return Barred(reason=reason)
    if dry_run is None or candidate.agent in WITHOUT_DRY_RUN or candidate.suggestion in THE_TUNERS:
        return None
    return dry_run.examine(candidate)


def prepare_volume(
    task: Task, prepared: Prepared, folder: Path, labels: dict[str, str], phase: str
) -> PreparedVolume:
    """The read-only volume with the fixed side: the task's Python files but the editable one, and the tokenizer.

    One for each phase: which files of it the kernel has in memory tells nobody what another phase read.
    """
    from runner.sandbox.volumes import PreparedVolume
    from runner.trial import InputFile

    assert task.prepare is not None
    code = [path for path in sorted((folder / task.prepare).glob("*.py")) if path != folder / task.editable]
    data = sorted((prepared.path / "prepare").iterdir())
    files = tuple(InputFile(name=path.name, path=path) for path in (*code, *data))
    return PreparedVolume(
        name=f"autoresearch-prepare-{phase}-{_digest(files)}-{labels['autoresearch.state']}",
        files=files,
        gated=False,
        labels=tuple(labels.items()),
    )


@contextmanager
def data_volume(prepared: Prepared, labels: dict[str, str]) -> Iterator[PreparedVolume]:
    """A gated volume with the training rows that no other runner uses meanwhile.

    Each concurrent runner needs its own, because the gate is a property of the volume.
    """
    from runner.sandbox.volumes import PreparedVolume
    from runner.trial import InputFile

    for slot in range(MAX_SLOTS):
        path = prepared.path.with_name(f"{prepared.path.name}.slot{slot}.lock")
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield PreparedVolume(
                name=f"autoresearch-data-{prepared.digest[:12]}-{labels['autoresearch.state']}-slot{slot}",
                files=(InputFile(name="rows.bin", path=prepared.path / "train" / "rows.bin"),),
                gated=True,
                labels=tuple(labels.items()),
            )
            return
        finally:
            os.close(lock)
    message = f"{MAX_SLOTS} runners use {prepared.path} at once: wait for one to end"
    raise StateError(message)


def freeze(workspace: Workspace, checkout: Task, commit: str, folder: Path) -> Path:
    """Copy what a run is made of, as committed, into its folder; later edits do not change a run under way.

    A command may read any file of its task, so a task that reports its score is copied whole.
    """
    frozen = folder / "task"
    shutil.rmtree(frozen, ignore_errors=True)  # of a start that died, perhaps at another commit
    paths = [checkout.editable, checkout.prepare, checkout.brief, checkout.space, checkout.presets]
    for path in ["autoresearch.yaml", *(path for path in paths if path is not None)]:
        workspace.export(commit, path, frozen)
    if checkout.score.reported:
        from runner.measure_reported import MAX_BYTES, MAX_FILES

        workspace.export_all(commit, frozen, max_bytes=MAX_BYTES, max_files=MAX_FILES)
    return frozen


def load_frozen(folder: Path, checkout_root: Path, preset: str | None, overrides: dict[str, object]) -> Task:
    """The task of a run, from its own folder; what a person may edit on the way is read from the checkout."""
    from runner.task import load_task

    task = load_task(folder / "task", preset, overrides)
    if task.data is None:
        return task
    source = task.data.source
    if source is not None and source.is_relative_to(task.root):
        source = checkout_root / source.relative_to(task.root)
    return replace(task, data=replace(task.data, source=source))


def gpu_price(folder: Path, header: Mapping[str, Any]) -> float | None:
    """Dollars for an hour of the GPU of the run in `folder`; None: it has none, or nobody said."""
    if not header.get("gpu"):
        return None
    # Whatever the checkout is: the price does not depend on it.
    return load_frozen(folder, folder, header["preset"], header["overrides"]).cost.gpu_usd_per_hour


def _digest(files: tuple[object, ...]) -> str:
    from runner.durable import file_sha256
    from runner.trial import InputFile

    hashes = {file.name: file_sha256(file.path) for file in files if isinstance(file, InputFile)}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()[:12]


def reap_dead(sandbox: DockerSandbox, state: Path) -> int:
    """Remove what runs of this state folder left in the engine, but for those that a live runner holds.

    Also of runs whose folders are gone.
    """
    # Asked for first: whoever had something there then, and lives, is seen to be alive afterwards.
    there = sandbox.runs(owner_labels(state))
    living = set()
    for folder in runs(state):
        if ledger.is_held(folder):
            try:
                living.add((ledger.read(folder).header or {}).get("id"))
            except StateError:
                return 0  # nobody can say what is that run's
    removed = sum(sandbox.reap({"autoresearch.run": run}) for run in sorted(there - living))
    with ledger.one_at_a_time(state / VOLUMES_LOCK):  # who fills a volume holds that, so these are of the dead
        return removed + sandbox.reap({**owner_labels(state), "autoresearch.role": "keeper"})


def within(task: Task, client: Engine) -> Task:
    """The task with no more CPUs than the engine has: asking for more is refused by it."""
    there = float(client.info()["NCPU"])
    return replace(task, limits=replace(task.limits, cpus=min(task.limits.cpus, there)))


@contextmanager
def leased(sandbox: Sandbox, client: Engine, gpu: str | None, *, run: str) -> Iterator[Sandbox]:
    """The sandbox with the exclusive right to the GPU of this UUID, if there is one.

    Raises `GpuError` if another runner has it, or anything else computes on it or might, and `EngineError` if the engine's
    toolkit is known to let a container with a GPU out.
    """
    if gpu is None:
        yield sandbox
        return
    import structlog

    from runner import gpus, leases, toolkit
    from runner.sandbox.connect import is_local
    from runner.sandbox.leased import LeasedSandbox
    from runner.sandbox.tenants import is_gone, tenants

    known = toolkit.look(local=is_local(client))
    toolkit.refuse_flawed(known)
    if known.version is None:
        structlog.get_logger().warning("toolkit.unknown", reason=known.unknown)
    found = gpus.find(gpu)
    engine = str(client.info()["ID"])
    with leases.held(leases.folder(), gpu, run=run, engine=engine, gone=partial(is_gone, client)) as lease:
        busy = [f"container {name}" for name in tenants(client, found)] or gpus.foreign_processes(gpu)
        if busy:
            message = f"GPU {found.label} ({gpu}) was given to {', '.join(busy)}, so what is timed there would not be its own: end that, or name another with --gpus"
            raise GpuError(message)
        yield LeasedSandbox(sandbox, lease)


def try_isolation(
    sandbox: Sandbox,
    client: Engine,
    state: Path,
    image: str,
    gpu: str | None,
    labels: Mapping[str, str],
    *,
    cdi: frozenset[str] = frozenset(),
    runtime: str | None = None,
    device_file: str | None = None,
    again: bool,
) -> None:
    """Make sure that the engine isolates a trial: a probe finds out what one could do.

    Without `again` what held before on the same engine, kernel, image and runtime, with the same CDI names and by the same rules, is not
    tried once more.  `device_file` is the name of the card's.  Raises `EngineError` that names everything that does not hold, or
    if the engine does not have the `runtime`.
    """
    from runner.sandbox.probe import PROGRAM, RULES, has_apparmor, host_sockets, probe, refuse, unlimited

    info = client.info()
    refuse(unlimited(info))
    check_runtime(runtime, info)
    described = (info.get("Runtimes") or {}).get(runtime or info.get("DefaultRuntime")) or {}
    if runtime is not None:
        refuse(host_sockets(described))
    about = ("ID", "ServerVersion", "KernelVersion", "DefaultRuntime", "CgroupDriver", "CgroupVersion", "SecurityOptions")
    tried = {name: info.get(name) for name in about} | {"image": image, "gpu": gpu, "cdi": sorted(cdi), "runtime": [runtime, described]} | {
        "program": PROGRAM, "rules": RULES, "device_file": device_file,
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(tried, sort_keys=True).encode()).hexdigest()
    path = state / ISOLATION
    if not again and path.exists() and path.read_text() == digest:
        return
    path.unlink(missing_ok=True)
    host_kernel = None if runtime is None else str(info.get("KernelVersion"))
    apparmor = has_apparmor(info)
    refuse(probe(sandbox, image, gpu=gpu, labels=labels, apparmor=apparmor, host_kernel=host_kernel, device_file=device_file))
    write_durably(path, digest.encode())


def check_runtime(runtime: str | None, info: Mapping[str, Any]) -> None:
    """Raises `EngineError` if the engine that describes itself as `info` has no runtime of this name."""
    known = sorted(info.get("Runtimes") or ())
    if runtime is not None and runtime not in known:
        message = f"--runtime {runtime}: the engine has {', '.join(known)}; docs/security.md says how gVisor is added"
        raise EngineError(message)


def steady(sandbox: Sandbox, *, stopping: Callable[[], bool], tell: Callable[[str], None]) -> SteadySandbox:
    """The sandbox, made to outlive failures of the engine, of which it will `tell`.  Raises `UsageError` if the environment says no sensible patience."""
    from runner.sandbox.steady import WAIT_SECONDS, Patience, SteadySandbox
    from runner.setup.engine import State, discover, examine

    def absent() -> str | None:
        found = examine(discover(os.environ))
        return None if found.state is State.READY else found.message

    said = os.environ.get(WAIT, str(WAIT_SECONDS))
    try:
        seconds = float(said)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= MAX_WAIT_SECONDS:
        message = f"{WAIT}={said}: how many seconds an engine that failed is waited for, 0 to {MAX_WAIT_SECONDS:.0f}"
        raise UsageError(message)
    return SteadySandbox(sandbox, absent=absent, stopping=stopping, tell=tell, patience=Patience(seconds=seconds))


def same_engine(client: Engine, known: str) -> None:
    """Raise `EngineError` if another engine answers than the one that the run's images and volumes are on."""
    from runner.sandbox.translate import engine_errors

    with engine_errors():
        found = str(client.info()["ID"])
    if found != known:
        message = f"another engine answers now than before it failed (id {found}, not {known}): its images are not those of this run. Start the one from before and run the same command again"
        raise EngineError(message)


def connect() -> Engine:
    """The engine; imported late because docker takes 0.1 s."""
    from runner.sandbox.connect import connect as to_engine

    return to_engine()
