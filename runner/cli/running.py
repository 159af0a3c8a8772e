"""`run` and `trial`: start or continue a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from runner.cli.app import HERE, JsonOption, TagOption, TaskOption, app
from runner.cli.commanding import Commanded, CommandOption, PassOption, PathOption, SecondsOption, commanded
from runner.cli.modelling import OUTPUT_TOKENS, SHARE, AgentName, Asked, modelled, tuning
from runner.cli.session import Session, open_session
from runner.cli.starting import Wanted
from runner.cli.steering import CONTEXT_TOKENS, ContextOption
from runner.errors import UsageError
from runner.money import FREE

if TYPE_CHECKING:
    from runner.money import Purse
    from runner.protocols import Agent

MAX_SOURCE_BYTES = 1 << 20


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
    model: Annotated[str | None, typer.Option(metavar="NAME", help="For llm and hybrid: provider/name, as litellm names it; a local server's is openai/NAME.")] = None,
    api_base: Annotated[str | None, typer.Option("--api-base", metavar="URL", help="For llm and hybrid: where a server like OpenAI's answers.")] = None,
    price: Annotated[str | None, typer.Option(metavar="IN,OUT", help="For llm and hybrid: dollars per million tokens, where they are not known.")] = None,
    max_output: Annotated[int | None, typer.Option("--max-output", min=256, metavar="N", help=f"For llm and hybrid: tokens of an answer at most. [default: no limit; {OUTPUT_TOKENS} with --max-usd]")] = None,
    model_share: Annotated[float | None, typer.Option("--model-share", metavar="S", help=f"For hybrid: on this share of the tries the model sees the tuner's suggestion. [default: {SHARE}]")] = None,
    context: ContextOption = None,
    command: CommandOption = None,
    command_seconds: SecondsOption = None,
    pass_env: PassOption = None,
    agent_path: PathOption = None,
    max_usd: Annotated[float | None, typer.Option("--max-usd", min=0.0, metavar="D", help="Begin nothing that could exceed D dollars in all, the GPU's price included if the task has one.")] = None,
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
    asked = Asked(
        model=model, api_base=api_base, price=price, context=context, max_output=max_output, share=model_share, max_usd=max_usd
    )
    asked.check(agent)
    flags = Commanded(command=command, seconds=command_seconds, passed=pass_env or (), paths=agent_path or ())
    flags.check(wanted=agent is AgentName.COMMAND)
    wanted = Wanted(preset=preset, cpu=cpu, gpus=gpus, seed=seed, dataset=dataset, source=source, runtime=runtime)
    with open_session(task, tag, wanted, new=new, as_json=as_json) as session:
        purse, stops = session.purse(max_usd), Stops(trials=trials, hours=hours)
        with _agent(agent, proposals, session, asked, flags, purse) as proposer:
            session.tell(asked.described(agent), stops, asks=agent not in FREE, limit=max_usd)
            outcome = session.go(proposer, stops, purse)
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
        state = session.ledger.state
        if state.open is not None and state.open.proposed["token"] == agent.token:
            agent.skip()
        # Judged, and then its runner died: nobody was told, and tried again it would be a duplicate of itself.
        judged = None if state.unfinished is None else state.record(state.unfinished)
        untold = judged if judged is not None and judged.token == agent.token else None
        if untold is not None:
            agent.skip()
        session.go(agent, Stops(trials=1))
        if untold is not None:
            session.view.finished(untold, state.records)


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


@contextmanager
def _agent(
    name: AgentName, proposals: Path | None, session: Session, asked: Asked, flags: Commanded, purse: Purse
) -> Iterator[Agent]:
    if name is AgentName.LLM:
        with modelled(session, asked, purse, name) as model:
            yield model
    elif name is AgentName.HYBRID:
        from runner.agents.hybrid import HybridAgent

        tuner = tuning(session.folder, session.checkout, session.task, session.header["seed"])
        with modelled(session, asked, purse, name) as model:
            yield HybridAgent(tuner, model, share=asked.share or SHARE, seed=session.header["seed"])
    elif name is AgentName.COMMAND:
        yield commanded(flags, session, limit=asked.context or CONTEXT_TOKENS, purse=purse)
    elif name is AgentName.REPLAY:
        from runner.agents.replay import ReplayAgent

        assert proposals is not None
        yield ReplayAgent(proposals)
    else:
        yield tuning(session.folder, session.checkout, session.task, session.header["seed"])
