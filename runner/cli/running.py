"""`run` and `trial`: start or continue a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from runner.cli.app import HERE, JsonOption, TagOption, TaskOption, app
from runner.cli.commanding import Commanded, CommandOption, PassOption, PathOption, SecondsOption, commanded
from runner.cli.session import Session, open_session
from runner.cli.starting import Wanted
from runner.cli.steering import CONTEXT_TOKENS, ContextOption, count, shown_by
from runner.errors import UsageError

if TYPE_CHECKING:
    from runner.protocols import Agent

MAX_SOURCE_BYTES = 1 << 20


class AgentName(StrEnum):
    """Who proposes."""

    TUNER = "tuner"
    REPLAY = "replay"
    LLM = "llm"
    COMMAND = "command"


PresetOption = Annotated[str | None, typer.Option("--preset", metavar="P", help="Constants, budget, limits and data for one kind of hardware.")]
RuntimeOption = Annotated[
    str | None, typer.Option("--runtime", metavar="R", help="The engine's runtime with a kernel of its own for trials: runsc (gVisor).")
]
GpusOption = Annotated[str | None, typer.Option("--gpus", metavar="N", help="The GPU to use: index, part (0:1) or UUID.")]
CpuOption = Annotated[bool, typer.Option("--cpu", help="Use the CPU image; without --preset: smoke.")]
SeedOption = Annotated[int | None, typer.Option("--seed", min=0, max=20_000, help="Seed of a new run; by default 1.")]
NewOption = Annotated[bool, typer.Option("--new", help="Start a new run instead of continuing the latest.")]
DatasetOption = Annotated[str | None, typer.Option("--dataset", metavar="D", help="kjv, fineweb-edu, climbmix or files.")]
SourceOption = Annotated[Path | None, typer.Option("--source", metavar="DIR", help="Folder with your text, for --dataset files.")]


@app.command()
def run(
    task: TaskOption = HERE,
    tag: TagOption = None,
    preset: PresetOption = None,
    gpus: GpusOption = None,
    cpu: CpuOption = False,
    agent: Annotated[AgentName, typer.Option(help="Who proposes.")] = AgentName.TUNER,
    proposals: Annotated[Path | None, typer.Option(metavar="PATH", help="For replay: a JSONL file, a folder of patches, or the folder of a run.")] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="For llm: provider/name, as litellm names it; a local server's is openai/NAME.")] = None,
    api_base: Annotated[str | None, typer.Option("--api-base", metavar="URL", help="For llm: where a server like OpenAI's answers.")] = None,
    price: Annotated[str | None, typer.Option(metavar="IN,OUT", help="For llm: dollars per million tokens, where they are not known.")] = None,
    context: ContextOption = None,
    command: CommandOption = None,
    command_seconds: SecondsOption = None,
    pass_env: PassOption = None,
    agent_path: PathOption = None,
    max_usd: Annotated[float | None, typer.Option("--max-usd", min=0.0, metavar="D", help="Ask for no proposal that could exceed D dollars in all.")] = None,
    trials: Annotated[int | None, typer.Option(min=0, metavar="N", help="End after N new trials (baselines not counted).")] = None,
    hours: Annotated[float | None, typer.Option(min=0.0, metavar="H", help="Start no new trial after H hours.")] = None,
    seed: SeedOption = None,
    dataset: DatasetOption = None,
    source: SourceOption = None,
    runtime: RuntimeOption = None,
    new: NewOption = False,
    as_json: JsonOption = False,
) -> None:
    """Start or continue a run: propose, train, score, keep or not; until a limit or Ctrl-C."""
    from runner.loop import Stops

    if (proposals is None) is (agent is AgentName.REPLAY):
        message = "--proposals goes with --agent replay, and only with it"
        raise UsageError(message)
    asked = _Asked(model=model, api_base=api_base, price=price, context=context, priced=max_usd is not None)
    asked.check(agent)
    flags = Commanded(command=command, seconds=command_seconds, passed=pass_env or (), paths=agent_path or ())
    flags.check(wanted=agent is AgentName.COMMAND)
    wanted = Wanted(preset=preset, cpu=cpu, gpus=gpus, seed=seed, dataset=dataset, source=source, runtime=runtime)
    with open_session(task, tag, wanted, new=new, as_json=as_json) as session:
        with _agent(agent, proposals, session, asked, flags) as proposer:
            outcome = session.go(proposer, Stops(trials=trials, hours=hours, usd=max_usd))
        session.summary(outcome)


@app.command()
def trial(
    candidate: Annotated[Path, typer.Option("--candidate", metavar="FILE", help="The whole editable file to try.")],
    message: Annotated[str, typer.Option("--message", "-m", metavar="M", help="The idea, in a line.")] = "",
    task: TaskOption = HERE,
    tag: TagOption = None,
    preset: PresetOption = None,
    gpus: GpusOption = None,
    cpu: CpuOption = False,
    seed: SeedOption = None,
    dataset: DatasetOption = None,
    source: SourceOption = None,
    runtime: RuntimeOption = None,
    new: NewOption = False,
    as_json: JsonOption = False,
) -> None:
    """One trial of this very file against the run's champion; starts a run where there is none."""
    from runner.agents.hand import HandAgent
    from runner.loop import Stops

    text = _read_source(candidate)
    wanted = Wanted(preset=preset, cpu=cpu, gpus=gpus, seed=seed, dataset=dataset, source=source, runtime=runtime)
    agent = HandAgent(text, message or f"{candidate.name} by hand")
    with open_session(task, tag, wanted, new=new, as_json=as_json, only_token=agent.token) as session:
        under_way = session.ledger.state.open
        if under_way is not None and under_way.proposed["token"] == agent.token:
            agent.skip()
        session.go(agent, Stops(trials=1))


def _read_source(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SOURCE_BYTES + 1)
        if len(data) > MAX_SOURCE_BYTES:
            message = f"--candidate {path}: more than {MAX_SOURCE_BYTES >> 20} MiB"
            raise UsageError(message)
        return data.decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        message = f"--candidate {path}: {reason}"
        raise UsageError(message) from error


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """The flags about a model."""

    model: str | None
    api_base: str | None
    price: str | None
    context: int | None
    priced: bool

    def check(self, agent: AgentName) -> None:
        """Raises `UsageError` if they do not go with the agent."""
        given = [flag for flag, value in (("--model", self.model), ("--api-base", self.api_base), ("--price", self.price)) if value]
        if agent is AgentName.LLM and self.model is None:
            message = "--agent llm wants --model provider/name, for example anthropic/NAME, or openai/NAME with --api-base for a local server"
            raise UsageError(message)
        if agent is not AgentName.LLM and given:
            message = f"{given[0]} goes with --agent llm, and only with it"
            raise UsageError(message)
        if agent not in (AgentName.LLM, AgentName.COMMAND) and self.context:
            message = "--context goes with --agent llm or command, and only with them"
            raise UsageError(message)
        self.prices()

    def prices(self) -> tuple[float, float] | None:
        """Dollars per token, in and out."""
        if self.price is None:
            return None
        try:
            found = [float(word) / 1e6 for word in self.price.split(",")]
        except ValueError:
            found = []
        if len(found) != 2 or not all(0 <= one < 1 for one in found):
            message = f"--price {self.price}: two numbers, dollars per million tokens in and out: --price 3,15"
            raise UsageError(message)
        return found[0], found[1]


@contextmanager
def _agent(name: AgentName, proposals: Path | None, session: Session, asked: _Asked, flags: Commanded) -> Iterator[Agent]:
    if name is AgentName.LLM:
        with _model(session, asked) as agent:
            yield agent
    elif name is AgentName.COMMAND:
        yield commanded(flags, session, limit=asked.context or CONTEXT_TOKENS, priced=asked.priced)
    else:
        yield _keyless(name, proposals, session)


@contextmanager
def _model(session: Session, asked: _Asked) -> Iterator[Agent]:
    from runner.agents.litellm_chat import LitellmChat, ModelOptions, Prices
    from runner.agents.llm import LlmAgent

    header = session.ledger.state.header
    assert header is not None
    assert asked.model is not None
    prices = asked.prices()
    options = ModelOptions(
        model=asked.model, api_base=asked.api_base, prices=Prices(prompt=prices[0], completion=prices[1]) if prices else None
    )
    with LitellmChat(options) as chat:
        shown = shown_by(session.folder, session.checkout.root, session.task, header)
        yield LlmAgent(chat, shown, limit=asked.context or CONTEXT_TOKENS, count=count, priced=asked.priced)


def _keyless(name: AgentName, proposals: Path | None, session: Session) -> Agent:
    if name is AgentName.REPLAY:
        from runner.agents.replay import ReplayAgent

        assert proposals is not None
        return ReplayAgent(proposals)
    from runner.agents.shown import proposed
    from runner.agents.space import load_space
    from runner.agents.tuner import TunerAgent

    header = session.ledger.state.header
    assert header is not None
    # From the checkout: a person may change the ranges while the run goes on.
    space = session.checkout.space
    return TunerAgent(
        space=load_space(session.checkout.root / space, session.task.preset) if space else None,
        source=partial(proposed, session.folder),
        seed=header["seed"],
        sequence_length=session.task.data.sequence_length if session.task.data else 1,
        maximise=session.task.score.maximise,
    )
