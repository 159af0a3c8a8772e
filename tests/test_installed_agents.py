"""Agents of other people, installed and in the real sandbox, by a scripted model on loopback: one proposal each, and errors of the model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.agents.command import CommandAgent
from runner.cli.commanding import Commanded
from runner.trial import Kind, Proposal, Refusal
from tests.agents.presets import AIDER, ALL, CLAUDE, CODEX, Agent
from tests.codingmodel import BESIDE
from tests.modelserver import ModelServer, model_server, slow_down, wrong_key
from tests.test_command import CHAMPION, DEEPER, facts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

KEY = "sk-canary-0123456789abcdef"
CHANGES = [("DEPTH = 2\n", "DEPTH = 3\n")]
IDEA = "a deeper model\nsince deeper is better\nKIND: architecture\n"


@pytest.fixture(params=ALL, ids=lambda agent: agent.title)
def agent(request: pytest.FixtureRequest) -> Agent:
    found: Agent = request.param
    return found


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with model_server() as started:
        started.beside = BESIDE
        yield started


def propose(agent: Agent, server: ModelServer, folder: Path, monkeypatch: pytest.MonkeyPatch, *, seconds: int = 100) -> Proposal | Refusal:
    """One proposal, by what the flags of a run mean."""
    url = server.url.removesuffix("/v1")
    for name, value in {agent.key: KEY, **agent.variables(url)}.items():
        monkeypatch.setenv(name, value)
    flags = Commanded(command=agent.command(url), seconds=seconds, passed=[agent.key, *agent.variables(url)], paths=agent.paths())
    options = flags.options(closed=[folder])
    found = CommandAgent(options, facts, folder, limit=100_000, count=len).propose(CHAMPION, [])
    assert found is not None
    print(found, *((folder / "command" / "0000" / name).read_text()[-2000:] for name in ("stdout.txt", "stderr.txt")), sep="\n")
    return found


def test_it_makes_a_proposal(agent: Agent, server: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.script = agent.says(CHANGES, IDEA)
    found = propose(agent, server, tmp_path, monkeypatch)

    assert isinstance(found, Proposal)
    assert (found.idea, found.why, found.kind, found.source) == ("a deeper model", "since deeper is better", Kind.ARCHITECTURE, DEEPER)
    assert server.script == []
    assert KEY in str(server.requests[0].headers)
    assert (found.spent.cost_usd is not None) is (agent is CLAUDE)
    assert (found.spent.prompt_tokens is not None) is (agent in (CLAUDE, CODEX))


def test_a_rate_limit_is_waited_for(agent: Agent, server: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.script = [slow_down(1), *agent.says(CHANGES, IDEA)]
    found = propose(agent, server, tmp_path, monkeypatch)

    assert isinstance(found, Proposal)
    assert found.source == DEEPER


def test_a_wrong_key_is_a_refused_proposal_without_the_key(agent: Agent, server: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.always = wrong_key
    found = propose(agent, server, tmp_path, monkeypatch, seconds=25)

    assert isinstance(found, Refusal)
    # aider ends with 0 all the same, and Claude Code asks again for minutes.
    why = {AIDER: "train.py is unchanged", CLAUDE: "the command was stopped: it was still running after 25 s"}
    assert found.reason.startswith(why.get(agent, "the command ended with exit code"))
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY in path.read_text()]
