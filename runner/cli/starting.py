"""Which run a command works on: found, or started with everything that stays fixed in it."""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runner import ledger
from runner.cli import parts
from runner.clock import Now, utc_now
from runner.durable import drop_partial
from runner.errors import StateError, UsageError
from runner.ledger import Event, Ledger

if TYPE_CHECKING:
    from runner.task import Task
    from runner.workspace import Workspace


GPU_NAME = re.compile(r"(0|[1-9][0-9]{0,3})(:(0|[1-9][0-9]{0,3}))?|(GPU|MIG)-[0-9A-Za-z/-]{1,120}")
"""An index, a card and a part of it, or a UUID; drivers before R470 have slashes in a part's."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The flags that a new run is made by; a run under way keeps its own."""

    preset: str | None
    cpu: bool
    gpus: str | None
    seed: int | None
    dataset: str | None
    source: Path | None
    runtime: str | None = None

    def overrides(self) -> dict[str, object]:
        """What the flags lay over the task's file."""
        data: dict[str, object] = {}
        if self.dataset is not None:
            data["dataset"] = self.dataset
        if self.source is not None:
            data |= {"source": str(self.source.resolve()), "dataset": self.dataset or "files"}
        return {"data": data} if data else {}


def which_run(workspace: Workspace, tag: str | None, *, new: bool) -> Path:
    """The folder of the run that the flags mean; it need not exist yet.  Raises `UsageError`."""
    state = workspace.state
    found = parts.runs(state)
    if tag is not None:
        folder = state / parts.checked_tag(tag)
        if new and folder in found:
            message = f"--new: there is a run {tag!r} already: name another --tag"
            raise UsageError(message)
        return folder
    return state / parts.new_tag(workspace) if new or not found else found[-1]


@contextmanager
def held(
    workspace: Workspace, checkout: Task, folder: Path, wanted: Wanted, *, now: Now = utc_now
) -> Iterator[Ledger]:
    """The run's ledger; a run that does not exist yet is started, and leaves nothing if it cannot be."""
    fresh = not (folder / ledger.JOURNAL).exists()
    if fresh and folder.name in workspace.tags():
        message = (
            f"there are branches or references of a run {folder.name!r}, but its records are not in {folder.parent}: "
            "name another --tag"
        )
        raise StateError(message)
    with ledger.writing(folder) as run:
        drop_partial(folder)
        (folder / "stop").unlink(missing_ok=True)  # of an earlier runner
        if run.state.header is None:
            try:
                header = _start(workspace, checkout, folder, wanted, now())
            except BaseException:
                if fresh:
                    shutil.rmtree(folder, ignore_errors=True)
                raise
            run.write("run", **header)
        header = run.state.header or {}
        if not run.state.records:
            workspace.start_branch(folder.name, header["base"])
        yield run


def _start(workspace: Workspace, checkout: Task, folder: Path, wanted: Wanted, created: str) -> Event:
    """Everything about a new run that is fixed when it starts."""
    from runner import gpus, images
    from runner.task import apply_preset, choose_preset
    from runner.workspace import CommitText

    if wanted.cpu and wanted.gpus is not None:
        message = "--cpu and --gpus exclude each other"
        raise UsageError(message)
    head = workspace.head()
    overrides = wanted.overrides()
    frozen = parts.freeze(workspace, checkout, head, folder)
    if wanted.preset is not None:
        # A name that does not exist is refused before anything is said about the machine.
        parts.load_frozen(folder, checkout.root, wanted.preset, overrides)
    if wanted.runtime is not None:
        parts.check_runtime(wanted.runtime, parts.connect().info())
    gpu = None if wanted.cpu else gpus.pick(_gpu_name(wanted.gpus))
    preset = choose_preset(
        frozen, cpu=wanted.cpu, gpu_memory_gb=gpu.memory_gb if gpu else None, named=wanted.preset
    )
    task = parts.load_frozen(folder, checkout.root, preset, overrides)
    refuse_other_level(checkout, task, f"the commit {head[:7]}", "commit it first")
    if task.score.reported:
        from runner.measure_reported import check_fits

        check_fits(frozen, task)
    original = workspace.read(head, task.editable).decode()
    source = apply_preset(original, task)
    text = CommitText(
        subject=f"Baseline of run {folder.name}",
        body=f"{task.editable} with the constants of preset {preset}." if preset else "",
        trailers=(("Autoresearch-Run", folder.name),),
        date=created,
    )
    used = images.image_ids("cuda" if gpu else "cpu", workspace.state)
    return {
        # A version that does not know the key would go on by another runtime.
        "format": ledger.FORMAT if wanted.runtime is None else ledger.FORMAT_WITH_RUNTIME,
        "id": uuid.uuid4().hex,
        "tag": folder.name,
        "created": created,
        "head": head,
        "base": workspace.candidate(head, task.editable, source.encode(), text),
        "preset": preset,
        "overrides": overrides,
        "seed": 1 if wanted.seed is None else wanted.seed,
        "image": used.train,
        "images": asdict(used),
        "gpu": gpu.uuid if gpu else None,
        "runtime": wanted.runtime,
    }


def _gpu_name(text: str | None) -> str:
    """What `--gpus` calls a GPU, whether there is such a one or not.  Raises `UsageError`."""
    if text is None:
        return "0"
    if "," in text:
        message = f"--gpus {text}: name one GPU by its index; several at once are not there yet"
        raise UsageError(message)
    if not GPU_NAME.fullmatch(text):
        message = f"--gpus {text}: name one GPU by its index (0), one part of a GPU that is divided (0:1), or by UUID (GPU-... or MIG-...)"
        raise UsageError(message)
    return text


def refuse_other_level(checkout: Task, task: Task, what: str, advice: str) -> None:
    """Numbers that were audited and numbers that were reported never share a branch.  Raises `UsageError`."""
    if checkout.score.level != task.score.level:
        message = (
            f"autoresearch.yaml asks for score.level {checkout.score.level}, and {what} has {task.score.level}: {advice}"
        )
        raise UsageError(message)


def refuse_other_wishes(header: Event, wanted: Wanted) -> None:
    """A run goes on as it was started; flags that say otherwise are a mistake.  Raises `UsageError`."""
    from runner import gpus

    where = f"GPU {header['gpu']}" if header["gpu"] else "the CPU"
    clashes = [
        f"{flag} {asked} (it has {'the default' if has is None else has})"
        for flag, asked, has in (
            ("--preset", wanted.preset, header["preset"]),
            ("--seed", wanted.seed, header["seed"]),
            ("--runtime", wanted.runtime, header.get("runtime")),
        )
        if asked is not None and asked != has
    ]
    if wanted.cpu and header["gpu"]:
        clashes.append(f"--cpu (it runs on {where})")
    if wanted.gpus is not None and not (header["gpu"] and gpus.pick(_gpu_name(wanted.gpus)).uuid == header["gpu"]):
        clashes.append(f"--gpus {wanted.gpus} (it runs on {where})")
    if wanted.overrides() and wanted.overrides() != header["overrides"]:
        clashes.append("--dataset or --source (it has others)")
    if clashes:
        message = f"run {header['tag']!r} was started otherwise than {', '.join(clashes)}: leave that out, or use --new"
        raise UsageError(message)
