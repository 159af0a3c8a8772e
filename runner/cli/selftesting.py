"""`selftest`: the shipped attacks against the installed stack."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from runner import ledger
from runner.cli import parts
from runner.cli.app import HERE, JsonOption, TaskOption, app
from runner.cli.session import open_session
from runner.cli.starting import Wanted
from runner.errors import DataError

if TYPE_CHECKING:
    from runner.cli.session import Session
    from runner.prepare import Prepared
    from runner.selftest.catalogue import Attack
    from runner.selftest.view import SelftestView

FOLDER = ".selftest"
"""The throwaway task's place in the state folder: always the same, so that what a killed selftest left is found."""
EXIT_SUCCEEDED = 1
KEEP_K = 3.0
"""The run's `k`: with six degrees of freedom its verdicts turn at about the five standard errors of `outcome`."""
STARTUP_SECONDS = 20.0
"""Cap on the time before the gate: an attack that never asks for it shall not take a minute."""


@dataclass(frozen=True, kw_only=True)
class _Wanted(Wanted):
    """A run of many honest scores in which no keep is luck, and nothing is measured twice to find that out."""

    def overrides(self) -> dict[str, object]:
        once = {"k": KEEP_K, "k_at_once": KEEP_K, "near": 2 * KEEP_K}
        return {
            "judge": {**once, "repeats": 0, "remeasure_champion_every": 0},
            "budget": {"startup_seconds": STARTUP_SECONDS},
            # What an attack does in its trial is what is tried.
            "gates": {"dry_run": False},
        }


@app.command()
def selftest(
    task: TaskOption = HERE,
    preset: Annotated[str, typer.Option("--preset", metavar="P", help="What the attacks are tried at.")] = "tiny",
    attack: Annotated[list[str] | None, typer.Option("--attack", metavar="NAME", help="This one only; may be repeated.")] = None,
    area: Annotated[list[str] | None, typer.Option("--area", metavar="A", help="Those of this area; may be repeated.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A representative third.")] = False,
    show_list: Annotated[bool, typer.Option("--list", help="Say what there is, and run nothing.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the runs with their logs; else they stay only if an attack succeeds.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Try the shipped attacks on images, data and engine as installed.  Ends with 1 if one succeeds.

    Each hostile train.py is one trial against the unmodified baseline, in a task made for it.  It succeeds if it is
    kept, gets a score that honest work does not explain, or leaves its container.
    """
    from runner.selftest import catalogue
    from runner.selftest.view import SelftestView

    attacks = catalogue.choose(catalogue.load(), names=attack or (), areas=area or (), quick=quick)
    if show_list:
        _list(attacks, as_json=as_json)
        return
    state = parts.open_workspace(task).state
    view = SelftestView(as_json=as_json)
    with _throwaway(state, keep=lambda: keep or any(outcome.succeeded for outcome in view.outcomes)) as folder:
        _try_all(folder, preset, attacks, view)
        view.summary()
        succeeded = any(outcome.succeeded for outcome in view.outcomes)
        if (keep or succeeded) and not as_json:
            typer.echo(f"logs in {folder / '.autoresearch'}")
    raise typer.Exit(EXIT_SUCCEEDED if succeeded else 0)


def _list(attacks: tuple[Attack, ...], *, as_json: bool) -> None:
    for one in attacks:
        if as_json:
            typer.echo(json.dumps({"attack": one.name, "area": one.area, "tries": one.tries, "honest": one.honest, "quick": one.quick}))
        else:
            typer.echo(f"{one.area + ': ' + one.name:<50} {'quick' if one.quick else '     '}  {one.tries}")


def _try_all(folder: Path, preset: str, attacks: tuple[Attack, ...], view: SelftestView) -> None:
    """Every attack in turn; after one that was kept the others go on in a new run, against a baseline again."""
    from runner.loop import Stops
    from runner.sandbox.docker import DockerSandbox
    from runner.selftest.agent import AttackAgent
    from runner.selftest.traces import Traces

    wanted = _Wanted(preset=preset, cpu=True, gpus=None, seed=None, dataset=None, source=None)
    left, number = list(attacks), 0
    while left:
        number += 1
        with open_session(folder, f"selftest-{number}", wanted, new=False, as_json=True, only_token="") as session:
            session.view = view
            header = session.ledger.state.header or {}
            sandbox = DockerSandbox(parts.connect())
            reap = partial(sandbox.reap, {"autoresearch.run": str(header["id"])})
            traces = Traces(session.folder, reap, elsewhere=(Path("/"), Path("/tmp"), Path.home(), Path.cwd()))
            agent = AttackAgent(left, partial(_prepared, session), traces.gather, view.tell)
            outcome = session.go(agent, Stops())
            agent.settle(session.ledger.state.records)
            view.close()
            if len(agent.left) == len(left):
                raise DataError(f"no attack could be tried: {outcome.reason}")
            left = agent.left


def _prepared(session: Session) -> Prepared:
    """The data that the run works on; the loop has made sure that they are there."""
    from runner.prepare import find

    found = find(parts.data_root(session.workspace.state), parts.prepare_options(session.task))
    assert found is not None
    return found


@contextmanager
def _throwaway(state: Path, *, keep: object) -> Iterator[Path]:
    """A task of its own with the images and the data of `state`, gone at the end whatever happens."""
    from runner.cli.setting_up import init

    assert callable(keep)
    ledger.make_state(state)
    with ledger.one_at_a_time(state / f"{FOLDER}.lock"):
        folder = state / FOLDER
        _remove(folder)
        before = os.environ.get("AUTORESEARCH_DATA")
        os.environ["AUTORESEARCH_DATA"] = str(parts.data_root(state))
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                init(folder)
            own = parts.open_workspace(folder).state
            ledger.make_state(own)
            shutil.copy(state / "images.json", own / "images.json")
            yield folder
        finally:
            if before is None:
                del os.environ["AUTORESEARCH_DATA"]
            else:
                os.environ["AUTORESEARCH_DATA"] = before
            _remove(folder, files=not keep())


def _remove(folder: Path, *, files: bool = True) -> None:
    """What the throwaway task has in the engine, and its files."""
    from runner.sandbox.build import Builder

    if not folder.exists():
        return
    labels = parts.owner_labels(folder / ".autoresearch")
    with Builder.connect() as engine:
        engine.remove_containers(labels)
        engine.remove_volumes(labels)
    if files:
        shutil.rmtree(folder)
