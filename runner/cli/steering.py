"""`hint` and `prompt`: a hand on the wheel, and a look at what a model is told."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runner.cli import parts
from runner.cli.app import HERE, JsonOption, TagOption, TaskOption, app
from runner.cli.commanding import SECONDS, SecondsOption
from runner.clock import utc_now

if TYPE_CHECKING:
    from runner.agents.hybrid import HybridAgent
    from runner.agents.llm import Context, LlmAgent
    from runner.task import Task

CONTEXT_TOKENS = 100_000
"""Of a prompt, unless the model's own limit is known to be lower or is named."""
CHARACTERS_PER_TOKEN = 3.0
"""Of code and English most tokenizers need fewer tokens; a model that finds a prompt too long is asked again with less."""

ContextOption = Annotated[int | None, typer.Option("--context", min=1000, metavar="N", help="Tokens that a prompt may have. [default: 100000]")]


class Asked(StrEnum):
    """Who has a prompt."""

    LLM = "llm"
    HYBRID = "hybrid"
    """With the tuner's suggestion."""
    COMMAND = "command"


AskedOption = Annotated[Asked, typer.Option("--agent", help="Whose prompt.")]


@app.command()
def hint(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What the next proposals should take up.")],
    task: TaskOption = HERE,
    tag: TagOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell a model what you would like to see tried; it counts from the next proposal on."""
    from runner.agents.shown import add_hint, hints

    _, folder, _ = parts.look(task, tag)
    add_hint(folder, text, utc_now())
    number = len(hints(folder))
    if as_json:
        typer.echo(json.dumps({"tag": folder.name, "hints": number}))
    else:
        typer.echo(f"hint {number} of run {folder.name}: the next proposal takes it up")


@app.command()
def prompt(
    task: TaskOption = HERE,
    tag: TagOption = None,
    agent: AskedOption = Asked.LLM,
    seconds: SecondsOption = None,
    context: ContextOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print exactly what a model would be sent, or a command be given, for the next proposal.

    A model: as a run sends it when it begins, without the look back that it may ask for first on a plateau, and in the form for edits.
    A command: its prompt.md.
    """
    from runner.agents.command import told_page
    from runner.agents.llm import LlmAgent
    from runner.coarse import told
    from runner.verdicts import champion_of

    workspace, folder, state = parts.look(task, tag)
    header: dict[str, Any] = dict(state.header or {})
    frozen = parts.load_frozen(folder, workspace.root, header["preset"], header["overrides"])
    shown, limit, history = shown_by(folder, task, frozen, header), context or CONTEXT_TOKENS, told(state.records)
    champion = champion_of(state.records, header["base"])
    source = workspace.read(champion, frozen.editable).decode(errors="replace")
    if agent is Asked.COMMAND:
        page = told_page(shown.facts(source, history), history, seconds=seconds or SECONDS, limit=limit, count=count)
        typer.echo(json.dumps({"tag": folder.name, "prompt": page, "tokens": count(page)}) if as_json else page, nl=as_json)
        return
    model = LlmAgent(_Nobody(), shown, limit=limit, count=count, name=agent)
    asked = _with_tuner(model, task, folder, frozen, header) if agent is Asked.HYBRID else model
    system, request = asked.preview(source, history)
    if as_json:
        typer.echo(json.dumps({"tag": folder.name, "system": system, "user": request, "tokens": count(system) + count(request)}))
    else:
        typer.echo(f"--- system\n{system}\n\n--- user\n{request}")


def _with_tuner(model: LlmAgent, checkout: Path, folder: Path, task: Task, header: dict[str, Any]) -> HybridAgent:
    from runner.agents.hybrid import HybridAgent
    from runner.cli.modelling import tuning
    from runner.task import load_task

    return HybridAgent(tuning(folder, load_task(checkout), task, header["seed"]), model, share=1.0, seed=header["seed"])


def shown_by(folder: Path, checkout: Path, task: Task, header: dict[str, Any]) -> Context:
    """What the run in `folder` shows a model; brief and ideas are read from the `checkout`, where a person edits them."""
    from runner.agents import inwords
    from runner.agents.llm import Context
    from runner.agents.shown import IDEAS, Place

    place = Place(
        run=folder,
        brief=checkout / task.brief,
        ideas=checkout / IDEAS,
        editable=task.editable,
        hardware=f"{_machine(header)}; {inwords.limits(task)}",
        budget=inwords.budget(task),
        metric=inwords.metric(task),
    )
    return Context(facts=place.facts, source=place.source, folder=folder)


def count(text: str) -> int:
    """Tokens of a text, estimated without the model's own tokenizer and rather too many."""
    return int(len(text) / CHARACTERS_PER_TOKEN) + 1


def _machine(header: dict[str, Any]) -> str:
    if not header.get("gpu"):
        return "CPU"
    from runner import gpus
    from runner.errors import GpuError

    try:
        found = gpus.find(header["gpu"])
    except GpuError:
        return f"GPU {header['gpu']}"
    return f"{found.name}, {found.memory_gb:.0f} GB"


class _Nobody:
    """In a model's place where none is asked."""

    name = "nobody"

    def complete(self, messages: Any, *, seconds: float) -> Any:
        """Is never called."""
        raise NotImplementedError

    def most_usd(self, prompt_tokens: int) -> float | None:
        """Is never called."""
        raise NotImplementedError
