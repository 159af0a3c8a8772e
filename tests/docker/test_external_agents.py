"""Coding agents of other people, installed and run for real: proposals from their sandbox, by a scripted model on loopback, through real containers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from runner.constants import set_constants
from tests.agents.presets import AIDER, ALL, CLAUDE, MINI, Agent, Edits, mini_runs
from tests.codingmodel import BESIDE, message_says, message_uses
from tests.conftest import run_git
from tests.docker.test_end_to_end import BETTER, LOOK, at_step_ten
from tests.docker.test_llm_run import CANARY, HINT, Night, also
from tests.modelserver import Behaviour, ModelServer, answers, hangs, model_server

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(3000)]

SECONDS, SHORT = 120, 10
"""Of a proposal, on a busy machine too; and where its deadline is waited for."""
KEYS = {agent.key: CANARY for agent in ALL}


def edits(before: str, after: str) -> Edits:
    """The lines that differ between two files of as many lines."""
    pairs = zip(before.splitlines(keepends=True), after.splitlines(keepends=True), strict=True)
    return [(old, new) for old, new in pairs if old != new]


def changes(source: str, **constants: Any) -> Edits:
    return edits(source, set_constants(source, constants))


def idea(first: str, kind: str = "hyperparameter") -> str:
    return f"{first}\nto see what it does\nKIND: {kind}\n"


class Asked(Night):
    """A run that one of the agents makes proposals for."""

    patience = 2000.0

    def __init__(self, folder: Path, server: ModelServer, agent: Agent) -> None:
        super().__init__(folder, server)
        server.beside = BESIDE
        self.agent, self.url = agent, server.url.removesuffix("/v1")
        self.environment |= {**KEYS, **agent.variables(self.url)}
        preset = folder / "trainer" / "presets" / "tiny.yaml"
        few = preset.read_text().replace("\njudge:\n", "\njudge:\n  baselines: 2\n")
        preset.write_text(few)
        run_git(folder, "commit", "-qam", "Measure two baselines")
        self.base = set_constants((folder / "trainer" / "train.py").read_text(), constants_of(preset.read_text()))

    def run(self, trials: int, *script: Behaviour, seconds: int = SECONDS, then: Behaviour | None = None) -> None:
        """Proposals by what the model says."""
        self.server.script, self.server.always = [*script], then
        self.call("run", "--cpu", "--preset", "tiny", *self.agent.flags(self.url), "--command-seconds", str(seconds), "--trials", str(trials))
        assert self.server.script == [], [(one["idea"], one["reason"]) for one in self.rows()]

    def rows(self) -> list[dict[str, Any]]:
        return [one for one in self.log() if one["agent"] == "command"]

    def told(self, number: int, name: str = "prompt.md") -> str:
        (folder,) = (self.folder / ".autoresearch").glob(f"*/command/{number:04d}")
        return (folder / name).read_text()


def constants_of(preset: str) -> dict[str, Any]:
    listed = preset.partition("\nconstants:\n")[2].partition("\nbudget:\n")[0]
    return {name: float(value) if "." in value else int(value) for name, value in re.findall(r"^  (\w+): (\S+)$", listed, re.MULTILINE)}


# -- what each of them does when its model reaches for what is not its own -----------------------------

OUTSIDE = ("program.md", "/etc/hosts", "/usr/bin/python3", "{repository}/trainer/train.py")


def aider_reaches(places: Sequence[str]) -> list[Behaviour]:
    return [answers("\n".join(f"{place}\n```\n<<<<<<< SEARCH\n=======\nmine\n>>>>>>> REPLACE\n```\n" for place in places))]


def mini_reaches(places: Sequence[str]) -> list[Behaviour]:
    return mini_runs(*(f"echo mine >> {place}" for place in places))


def claude_reaches(places: Sequence[str]) -> list[Behaviour]:
    absolute = [place if place.startswith("/") else f"/task/{place}" for place in places]
    reads = [message_uses("Read", {"file_path": place}) for place in absolute]
    return [*reads, *(message_uses("Write", {"file_path": place, "content": "mine\n"}) for place in absolute), message_says("I tried.")]


REACHES = {AIDER.title: aider_reaches, MINI.title: mini_reaches, CLAUDE.title: claude_reaches}


# -- a night -------------------------------------------------------------------------------------------


@dataclass
class Slept:
    """A night and what was looked up while it went on."""

    night: Asked
    before: dict[str, bytes | None]
    prompt: str = ""


@pytest.fixture(scope="module", params=[AIDER, MINI, CLAUDE], ids=lambda agent: agent.title)
def slept(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slept]:
    agent: Agent = request.param
    with model_server() as server:
        night = Asked(tmp_path_factory.mktemp("night") / "task", server, agent)
        places = [place.format(repository=night.folder) for place in OUTSIDE]
        found = Slept(night, {place: read(night.folder, place) for place in places})
        better = set_constants(night.base, BETTER)
        worse = changes(better, UNEMBEDDING_LR=0.0001)
        greets, mended = at_step_ten("torch.say_hello()"), at_step_ten("print('hello')")
        text = f"    notes = {'text ' * 2000!r}\n"
        start = "    torch.manual_seed(SEED)\n    model = build_model(DEVICE)\n"

        def look() -> None:
            found.prompt = night.call("prompt", "--agent", "command", "--command-seconds", str(SECONDS))

        says = agent.says
        night.run(
            10,
            *says(edits(night.base, better), idea("rates that suit the length")),  # 0: kept
            *says(worse, idea("a far too low rate")),  # 1: discarded
            *says([(LOOK, greets + LOOK)], idea("say hello", "systems")),  # 2: crashes
            *says([(LOOK, mended + LOOK)], idea("say hello, mended", "systems")),  # 3: its repair
            *says([(LOOK, at_step_ten("torch.not_there()") + LOOK)], idea("a name that is not there", "init")),  # 4: crashes
            *says([(start, "    torch.not_there_either()\n" + start)], idea("still not there", "init")),  # 5: crashes at once, in its dry run; given up
            *says([], None),  # 6: nothing changed
            *says(worse, idea("the low rate once more")),  # 7: a duplicate
            *REACHES[agent.title](places),  # 8: files that are not its own
            *says([(start, text + start)], idea("bring a text")),  # 9: refused by the gates
        )
        night.run(1, then=hangs, seconds=SHORT)  # 10: the deadline
        night.call("hint", HINT)
        first, *rest = says(changes(better, MATRIX_LR=0.4), idea("a far too high rate"))
        night.run(1, also(look, first), *rest)  # 11: with the hint, and the plateau's wishes
        yield found


def read(folder: Path, place: str) -> bytes | None:
    path = folder / place
    return path.read_bytes() if path.exists() else None


def test_everything_that_can_happen_to_an_agents_proposal_is_in_the_log(slept: Slept) -> None:
    night = slept.night
    rows = night.rows()
    by_number = [(one["verdict"], one["ending"], one["idea"], one["reason"]) for one in rows]

    assert len(rows) == 12, by_number
    kept, worse, crash, mended, other, still, unchanged, twice, reached, refused, late, last = rows
    assert (kept["verdict"], kept["idea"], kept["why"], kept["kind"]) == ("keep", "rates that suit the length", "to see what it does", "hyperparameter"), by_number
    assert (worse["verdict"], worse["ending"]) == ("discard", "finished"), by_number
    assert (crash["verdict"], crash["ending"], crash["kind"]) == ("crash", "crashed", "systems"), by_number
    assert (mended["idea"], mended["ending"]) == ("say hello, mended", "finished"), by_number
    assert [(one["verdict"], one["ending"]) for one in (other, still)] == [("crash", "crashed"), ("invalid", "crashed")], by_number
    assert (unchanged["verdict"], "train.py is unchanged" in unchanged["reason"]) == ("invalid", True), by_number
    assert (twice["verdict"], f"trial {worse['trial']}" in twice["reason"]) == ("invalid", True), by_number
    assert (reached["verdict"], "train.py is unchanged" in reached["reason"]) == ("invalid", True), by_number
    assert (refused["verdict"], refused["commit"]) == ("invalid", None), by_number
    assert (late["verdict"], f"still running after {SHORT} s" in late["reason"]) == ("invalid", True), by_number
    assert (last["idea"], last["ending"]) == ("a far too high rate", "finished"), by_number


def test_every_one_is_in_what_a_person_reads(slept: Slept) -> None:
    lines = slept.night.call("log").splitlines()
    for row in slept.night.rows():
        shown = slept.night.call("show", str(row["trial"]))
        assert f"trial {row['trial']} of" in shown
        assert row["idea"] in shown
        assert f"{row['verdict']}, {row['reason']}" in shown
        assert any(row["verdict"] in line and re.match(rf"\W*{row['trial']}\b", line) for line in lines), (row, lines)


def test_what_the_agent_was_told(slept: Slept) -> None:
    night = slept.night
    pages = [night.told(number) for number in range(12)]

    assert "None yet: yours is the first." in pages[0]
    assert "rates that suit the length" in pages[1]
    assert "> AttributeError: module 'torch' has no attribute 'say_hello'" in pages[3]
    assert "+            torch.say_hello()" in pages[3]
    assert "> AttributeError: module 'torch' has no attribute 'not_there_either'" in pages[6]
    assert not any(HINT in page for page in pages[:11])
    assert HINT in pages[11]
    # Three tries without a keep: another kind is asked for.
    assert "this time" not in pages[3]
    assert "Not kind systems this time" in pages[4]
    assert "Not kind init this time" in pages[5]
    assert pages[11] == slept.prompt


def test_nothing_but_its_one_file_came_back(slept: Slept) -> None:
    night = slept.night
    assert {place: read(night.folder, place) for place in slept.before} == slept.before
    asked = "".join(str(request.body) for request in night.server.requests)
    said = night.told(8, "stdout.txt") + night.told(8, "stderr.txt")
    assert re.search("read-only file system|EROFS|EBUSY", said + asked, re.IGNORECASE), said
    assert not list((night.folder / ".autoresearch").glob("*/command/scratch"))


def test_the_key_went_to_the_model_alone(slept: Slept) -> None:
    night = slept.night
    assert any(CANARY in request.headers.values() or request.key == CANARY for request in night.server.requests)
    for path in night.folder.rglob("*"):
        if path.is_file():
            assert CANARY.encode() not in path.read_bytes(), path


# -- every agent --------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    """A run with its baselines."""
    with model_server() as server:
        night = Asked(tmp_path_factory.mktemp("all") / "task", server, AIDER)
        night.call("run", "--cpu", "--preset", "tiny", "--trials", "0")
        yield night


@pytest.mark.parametrize("agent", ALL, ids=lambda agent: agent.title)
def test_each_agent_makes_a_proposal_that_is_measured(measured: Asked, agent: Agent) -> None:
    measured.agent = agent
    measured.environment |= agent.variables(measured.url)
    # So much worse that nothing is measured twice.
    rate = round(0.4 + 0.01 * ALL.index(agent), 2)
    measured.run(1, *agent.says(changes(measured.call("champion"), MATRIX_LR=rate), idea(f"a rate by {agent.title}")))

    row = measured.rows()[-1]
    assert (row["ending"], row["idea"], row["kind"]) == ("finished", f"a rate by {agent.title}", "hyperparameter"), row["reason"]
    assert f"+MATRIX_LR = {rate}" in measured.call("show", str(row["trial"]))
    assert (row["cost_usd"] is not None) is (agent is CLAUDE)
