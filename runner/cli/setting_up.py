"""`init`, `images`, `prepare`, `doctor` and `reap`."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from runner import ledger
from runner.cli import parts
from runner.cli.app import HERE, JsonOption, TaskOption, app
from runner.errors import AutoresearchError, EngineError, GpuError, UsageError

if TYPE_CHECKING:
    from runner.prepare import Prepared
    from runner.sandbox.docker import Engine
    from runner.task import Task

MIRROR = "AUTORESEARCH_MIRROR"
"""Environment variable with the address of a hub that serves the same data sets."""

GITIGNORE = "__pycache__/\n.autoresearch/\n"

images_app = typer.Typer(no_args_is_help=True, help="Build and pin what trials run in.")
app.add_typer(images_app, name="images")


class ImageKind(StrEnum):
    """What an image is for."""

    CPU = "cpu"
    CUDA = "cuda"
    PREPARE = "prepare"


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that does not exist or is empty.")],
    preset: Annotated[str | None, typer.Option("--preset", metavar="P", help="The preset that holds in the new task.")] = None,
    example: Annotated[str | None, typer.Option("--example", metavar="NAME", help="A shipped example in place of the trainer: packing.")] = None,
) -> None:
    """Make a new task, a git repository of its own, from the shipped trainer or from an example."""
    from runner import workspace
    from runner.resources import resource
    from runner.task import apply_preset, load_task

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        message = f"{folder} is there and not empty: name a new folder"
        raise UsageError(message)
    if example is not None:
        _copy_example(example, folder, preset)
        typer.echo(f"a new task in {folder}; next, there: autoresearch images build cpu; autoresearch run --cpu")
        return
    task = load_task(resource(), preset)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(resource("trainer"), folder / "trainer", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("program.md", "autoresearch.yaml"):
        shutil.copy(resource(name), folder / name)
    if preset is not None:
        path = folder / task.editable
        path.write_text(apply_preset(path.read_text(), task))
        path = folder / "autoresearch.yaml"
        path.write_text(re.sub(r"(?m)^# preset: \S+ ", f"preset: {preset} ", path.read_text()))
    (folder / ".gitignore").write_text(GITIGNORE)
    workspace.create(folder)
    typer.echo(f"a new task in {folder}; next, there: autoresearch images build cpu; autoresearch images build prepare; autoresearch run")


def _copy_example(name: str, folder: Path, preset: str | None) -> None:
    from runner import workspace
    from runner.resources import resource
    from runner.task import load_task

    known = sorted(path.name for path in resource("examples").iterdir() if path.is_dir())
    if name not in known:
        message = f"--example {name}: there are: {', '.join(known)}"
        raise UsageError(message)
    load_task(resource("examples", name), preset)  # which says what is wrong with the preset
    shutil.copytree(resource("examples", name), folder, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    (folder / ".gitignore").write_text(GITIGNORE)
    workspace.create(folder)


@images_app.command("build")
def images_build(
    kind: Annotated[ImageKind, typer.Argument(help="cpu, cuda or prepare.")],
    task: TaskOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Build an image, or find that it is there; trials run by the recorded id only."""
    from runner import images

    state = parts.open_workspace(task).state
    ledger.make_state(state)
    record = images.build(kind.value, state, _say(as_json=as_json))
    if as_json:
        typer.echo(json.dumps(asdict(record)))


@images_app.command("list")
def images_list(task: TaskOption = HERE, as_json: JsonOption = False) -> None:
    """What was built: kind, id, torch, size, date."""
    from runner import images

    records = images.list_images(parts.open_workspace(task).state)
    for record in records:
        if as_json:
            typer.echo(json.dumps(asdict(record)))
        else:
            size = record.size_bytes / 1e9
            typer.echo(f"{record.kind:8} {record.id[7:19]}  torch {record.torch or 'none'}  {size:.2f} GB  {record.built_at}")
    if not records and not as_json:
        typer.echo("nothing was built yet: `autoresearch images build cpu`")


@app.command()
def prepare(
    task: TaskOption = HERE,
    preset: Annotated[str | None, typer.Option("--preset", metavar="P", help="Whose data; by default the task's own.")] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", metavar="D", help="kjv, fineweb-edu, climbmix or files.")] = None,
    source: Annotated[Path | None, typer.Option("--source", metavar="DIR", help="Folder with your text, for --dataset files.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Text, split, tokenizer and packed rows, made in a container; nothing is done twice."""
    from runner.task import default_preset, load_task

    data: dict[str, object] = {"dataset": dataset} if dataset is not None else {}
    if source is not None:
        data |= {"source": str(source.resolve()), "dataset": dataset or "files"}
    loaded = load_task(task, preset or default_preset(task), {"data": data} if data else None)
    began = time.monotonic()
    state = parts.open_workspace(task).state
    ledger.make_state(state)
    prepared = prepared_for(loaded, state, None, quiet=as_json)
    if as_json:
        typer.echo(json.dumps({"path": str(prepared.path), **prepared.manifest}))
    else:
        typer.echo(
            f"prepare: {prepared.dataset}, {prepared.train_rows} training and {prepared.val_rows} validation rows of "
            f"{prepared.sequence_length} tokens, vocabulary {prepared.vocab_size}; {prepared.path} "
            f"({time.monotonic() - began:.1f} s)"
        )


@app.command()
def reap(task: TaskOption = HERE, as_json: JsonOption = False) -> None:
    """Remove containers and volumes that dead runs of this task left; a run that is alive is not touched."""
    from runner.sandbox import job
    from runner.sandbox.docker import DockerSandbox

    state = parts.open_workspace(task).state
    client = parts.connect()
    ledger.make_state(state)
    sandbox = DockerSandbox(client)
    removed = job.reap(client, parts.data_root(state)) + parts.reap_dead(sandbox, state)
    typer.echo(json.dumps({"removed": removed}) if as_json else f"{removed} containers and volumes removed")


@app.command()
def doctor(
    task: TaskOption = HERE,
    preset: Annotated[str | None, typer.Option("--preset", metavar="P", help="Whose data to look for.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Engine, images, isolation, data, GPU and its toolkit: what holds, what does not, what to do.  Ends with the first failure's code."""
    worst = 0
    for name, needed, check in _checks(task, preset):
        try:
            ok, said = True, check()
        except AutoresearchError as error:
            ok, said = False, str(error)
            worst = worst or (error.exit_code if needed else 0)
        if as_json:
            typer.echo(json.dumps({"check": name, "ok": ok, "needed": needed, "detail": said}))
        else:
            typer.echo(f"{'ok  ' if ok else 'no  ' if needed else 'none'} {name:9} {said}")
    raise typer.Exit(worst)


def _checks(task: Path, preset: str | None) -> list[tuple[str, bool, Callable[[], str]]]:
    def repository() -> str:
        workspace = parts.open_workspace(task)
        return f"{workspace.root} at {workspace.head()[:7]}"

    def engine() -> str:
        version = parts.connect().version()
        return f"{version['Version']}, API {version['ApiVersion']}"

    def images() -> str:
        from runner import images

        state = parts.open_workspace(task).state
        known = {found["Id"] for found in parts.connect().api.images(all=True)}
        gone = [
            record.kind
            for record in images.list_images(state)
            if not {record.id, record.claim_id, record.audit_id} - {None} <= known
        ]
        if gone:
            message = f"the engine no longer has: {', '.join(gone)}; `autoresearch images build {gone[0]}`"
            raise EngineError(message)
        ids = images.image_ids("cpu", state)
        return f"cpu {ids.train[7:19]}, for claims {ids.claim[7:19]}, for audits {ids.audit[7:19]}"

    def isolation() -> str:
        from runner import images
        from runner.sandbox.docker import DockerSandbox
        from runner.sandbox.probe import has_apparmor, probe, refuse, unlimited

        state = parts.open_workspace(task).state
        client = parts.connect()
        info = client.info()
        refuse(unlimited(info))
        apparmor = has_apparmor(info)
        image, labels = images.image_id("cpu", state), parts.owner_labels(state)
        refuse(probe(DockerSandbox(client), image, gpu=None, labels=labels, apparmor=apparmor))
        return f"a probe in a trial's place could not get past any limit; AppArmor: {'in force' if apparmor else 'not with this engine'}"

    def data() -> str:
        from runner.errors import DataError
        from runner.prepare import data_key, find
        from runner.task import choose_preset, load_task

        loaded = load_task(task, choose_preset(task, cpu=True, named=preset))
        if loaded.score.reported:
            return "none needed: the task's own command measures"
        options = parts.prepare_options(loaded)
        found = find(parts.data_root(parts.open_workspace(task).state), options)
        if found is None:
            flag = f" --preset {loaded.preset}" if loaded.preset else ""
            message = f"{data_key(options)} is not prepared: `autoresearch prepare{flag}`"
            raise DataError(message)
        found.verify()
        return f"{found.path.name}, every hash as in its manifest"

    def gpu() -> str:
        from runner import gpus

        there = gpus.usable(gpus.discover())
        return ", ".join(f"{found.label} {found.name} {found.memory_gb:.0f} GB" for found in there) or "none that a run could have"

    return [
        ("git", True, repository),
        ("engine", True, engine),
        ("images", True, images),
        ("isolation", True, isolation),
        ("data", True, data),
        ("gpu", False, gpu),
        ("toolkit", False, _toolkit),
    ]


def _toolkit() -> str:
    from runner import gpus, toolkit
    from runner.sandbox.connect import is_local

    if not toolkit.is_here():
        try:
            gpus.discover()
        except GpuError:
            return "none needed: no GPU answers here"
    found = toolkit.look(local=is_local(parts.connect()))
    toolkit.refuse_flawed(found)
    if found.version is None:
        message = f"unknown: {found.unknown}. Trials on a GPU want {toolkit.OLDEST} or later where the engine is"
        raise EngineError(message)
    return f"{found.version}, {toolkit.OLDEST} or later is wanted"


def prepared_for(task: Task, state: Path, client: Engine | None, *, quiet: bool) -> Prepared:
    """The task's prepared data; made now if they are missing and need no network.

    Raises `DataError` (exit 6) naming the command if they have to be downloaded first and this is a run.
    """
    from runner import images
    from runner.errors import DataError
    from runner.prepare import DATASETS, find
    from runner.prepare import prepare as prepare_data
    from runner.report.preparing import PrepareView
    from runner.resources import resource
    from runner.sandbox.job import Access, PrepareJob

    root, options = parts.data_root(state), parts.prepare_options(task)
    found = find(root, options)
    if found is not None:
        return found
    if client is not None and DATASETS[options.dataset].network:
        flag = f" --preset {task.preset}" if task.preset else ""
        message = f"{options.dataset} is not prepared yet: `autoresearch prepare{flag}` downloads it"
        raise DataError(message)
    job = PrepareJob(
        client or parts.connect(),
        images.image_id("prepare", state),
        resource("trainer", "corpus"),
        access=Access.of(os.environ),
    )
    stream = sys.stderr if quiet else sys.stdout
    with PrepareView(stream) as view:
        return prepare_data(
            options, root, job, mirror=os.environ.get(MIRROR), say=view.say, progress=view.progress
        )


def _say(*, as_json: bool) -> Callable[[str], None]:
    def say(text: str) -> None:
        typer.echo(text, err=as_json)

    return say


