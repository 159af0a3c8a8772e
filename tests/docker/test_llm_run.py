"""A night in small: a run with a scripted model behind a loopback server, through real litellm, real containers and the command line."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.docker.conftest import STATE, charge_little
from tests.docker.test_end_to_end import BETTER, COMMAND
from tests.modelserver import (
    Behaviour,
    Handler,
    ModelServer,
    Request,
    answers,
    answers_with,
    model_server,
    status,
)

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

CANARY = "sk-canary-0123456789abcdef"
HINT = "please look at the warm-down"
SEED_LINE = "    torch.manual_seed(SEED)\n    model = build_model(DEVICE)\n"


def proposal(idea: str, *edits: str, kind: str = "hyperparameter") -> str:
    listed = "\n".join(edits)
    return f"IDEA: {idea}\nWHY: to see what it does\nRISK: none\nKIND: {kind}\nEDITS:\n{listed}\nEND\n"


def block(search: str, replace: str) -> str:
    return f"<<<<<<< SEARCH\n{search}=======\n{replace}>>>>>>> REPLACE"


def sets(**constants: Any) -> list[str]:
    return [f"SET {name} = {value!r}" for name, value in constants.items()]


class Night:
    """The task, the server and what the run recorded."""

    patience = 500.0
    """Seconds that a command may take."""

    def __init__(self, folder: Path, server: ModelServer) -> None:
        self.folder, self.server = folder, server
        self.looked_up: dict[str, Any] = {}
        """What `prompt` printed while the model was asked for the last proposal."""
        subprocess.run([COMMAND, "init", str(folder)], check=True, capture_output=True)
        (folder / ".autoresearch").mkdir(mode=0o700, exist_ok=True)
        (folder / ".autoresearch" / "images.json").write_text((STATE / "images.json").read_text())
        charge_little(folder)
        self.environment = {**os.environ, "AUTORESEARCH_DATA": str(STATE / "data"), "OPENAI_API_KEY": CANARY}

    def call(self, *arguments: str, code: int = 0) -> str:
        done = subprocess.run([COMMAND, *arguments], cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False, timeout=self.patience)
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr  # a prompt quotes those of trials
        assert CANARY not in done.stdout + done.stderr
        return done.stdout if code == 0 else done.stderr

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.call("log", "--json").splitlines()]


def also(do: Callable[[], object], then: Behaviour) -> Behaviour:
    """Something that a person does while the model is asked."""

    def behaviour(handler: Handler) -> None:
        do()
        then(handler)

    return behaviour


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with model_server() as server:
        made = Night(tmp_path_factory.mktemp("night") / "task", server)
        worse = proposal("a far too low rate", *sets(UNEMBEDDING_LR=0.0003))
        crash = proposal("say hello", block(SEED_LINE, f"    torch.say_hello()\n{SEED_LINE}"), kind="systems")
        mended = proposal("say hello, mended", block("    torch.say_hello()\n", "    print('hello')\n"), kind="systems")
        other = proposal("a name that is not there", block(SEED_LINE, f"    not_there()\n{SEED_LINE}"), kind="init")
        still = proposal("still not there", block("    not_there()\n", "    not_there_either()\n"), kind="init")
        malformed = proposal("cut", *sets(WARMDOWN=0.6)).removesuffix("END\n")
        whole = proposal("a longer warm-down", *sets(WARMDOWN=0.6), kind="schedule")
        lines = (made.folder / "trainer" / "train.py").read_text().splitlines(keepends=True)
        twice = next(line for line in lines if lines.count(line) > 1 and len(line) > 16)
        ambiguous = proposal("every one of them", block(twice, f"{twice}{twice}"))
        notes = f"    notes = {'text ' * 2000!r}\n"
        forbidden = proposal("bring a text", block(SEED_LINE, f"{notes}{SEED_LINE}"))
        without = proposal("a higher momentum", block(notes, ""), *sets(MOMENTUM=0.92))

        def hint() -> None:
            made.call("hint", HINT)

        def look() -> None:
            made.looked_up = json.loads(made.call("prompt", "--json"))

        server.script = [
            answers(proposal("rates that suit the length", *sets(**BETTER))),  # 3: kept
            answers(worse),  # 4: discarded
            answers(crash),  # 5: crashes in its dry run
            answers(mended),  # 6: its repair
            answers(other),  # 7: has an undefined name
            answers(still),  # 8: its repair, which has one too, and that is it
            answers(malformed), answers(whole),  # 9: mended in the second turn
            answers(ambiguous), answers(ambiguous),  # 10: invalid
            answers(worse),  # 11: a duplicate
            answers(forbidden),  # 12: refused by the gates
            status(429, "slow down", Retry_After="1"), also(hint, answers(without)),  # 13: its repair, and a hint meanwhile
            also(look, answers(proposal("a shorter warm-down", *sets(WARMDOWN=0.4), kind="schedule"))),  # 14: with it
        ]  # fmt: skip
        model = ("--agent", "llm", "--model", "openai/scripted", "--api-base", server.url, "--price", "1,2", "--max-usd", "1")
        made.call("run", "--cpu", "--preset", "tiny", *model, "--trials", "12")
        yield made


def test_everything_that_can_happen_to_a_proposal_is_in_the_log(night: Night) -> None:
    found = {one["trial"]: one for one in night.log() if one["agent"] == "llm"}

    verdicts = {trial: (one["verdict"], one["ending"]) for trial, one in sorted(found.items())}
    assert len(found) == 12, verdicts
    three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen, fourteen = (found[trial] for trial in sorted(found))
    assert three["verdict"] == "keep", three
    assert four["verdict"] == "discard"
    assert (five["verdict"], five["ending"]) == ("invalid", "crashed")
    assert five["reason"].startswith("dry run: AttributeError at line ")
    assert (six["idea"], six["ending"]) == ("say hello, mended", "finished")
    assert (seven["verdict"], seven["ending"], eight["verdict"], eight["ending"]) == ("invalid", None) * 2
    assert "undefined name `not_there_either` (F821)" in eight["reason"]
    assert (nine["idea"], nine["ending"]) == ("a longer warm-down", "finished")
    assert (ten["verdict"], ten["commit"]) == ("invalid", None)
    assert "times" in ten["reason"], ten["reason"]
    assert (eleven["verdict"], str(four["trial"]) in eleven["reason"]) == ("invalid", True)
    assert twelve["verdict"] == "invalid"
    assert thirteen["ending"] == "finished"
    assert fourteen["ending"] == "finished"
    assert night.server.script == []


def test_what_it_cost_is_on_record(night: Night) -> None:
    found = [one for one in night.log() if one["agent"] == "llm"]

    assert all(one["cost_usd"] == pytest.approx((one["prompt_tokens"] * 1 + one["completion_tokens"] * 2) / 1e6) for one in found)
    assert all(one["prompt_tokens"] > 0 for one in found)


def test_what_the_model_was_told(night: Night) -> None:
    requests = [request.texts for request in night.server.requests]
    by_idea = {json.loads(path.read_text())["token"]: json.loads(path.read_text()) for path in sorted((night.folder / ".autoresearch").glob("*/llm/*.json"))}

    assert len(by_idea) == 12
    assert "None yet: yours is the first." in requests[0][1]
    assert "rates that suit the length" in requests[1][1]
    repair = requests[3][1]
    assert "was refused before a trial" in repair
    assert "> AttributeError: module 'torch' has no attribute 'say_hello'" in repair
    assert "    torch.say_hello()\n" in repair
    assert not any(HINT in texts[1] for texts in requests[:-1])
    assert HINT in requests[-1][1]
    assert requests[-1] == [night.looked_up["system"], night.looked_up["user"]]
    # Three tries without a keep: another kind is asked for.
    assert any("this time" in texts[1] for texts in requests)
    assert "Not kind" not in requests[1][1]


def test_show_and_prompt_tell_the_rest(night: Night) -> None:
    shown = night.call("show", "5")
    assert "say hello" in shown
    assert "+    torch.say_hello()" in shown
    assert "dry run: AttributeError" in shown
    told = night.call("prompt")
    assert HINT in told
    assert "a shorter warm-down" in told
    page = night.call("prompt", "--agent", "command", "--command-seconds", "77")
    assert HINT in page
    assert "You have 77 seconds" in page
    assert json.loads(night.call("prompt", "--agent", "command", "--command-seconds", "77", "--json"))["prompt"] == page


@pytest.mark.slow
def test_a_night_is_reproduced_without_the_model(night: Night) -> None:
    (folder,) = [path.parent for path in (night.folder / ".autoresearch").glob("*/llm")]
    before = [one for one in night.log() if one["agent"] == "llm"][:2]

    out = night.call("run", "--new", "--tag", "again", "--cpu", "--preset", "tiny", "--agent", "replay", "--proposals", str(folder), "--trials", "2", "--json")

    after = [one for one in map(json.loads, out.splitlines()) if one["agent"] == "replay"]
    assert [(one["idea"], one["verdict"]) for one in after] == [(one["idea"], one["verdict"]) for one in before]
    assert [one["val_bpb"] for one in after[:1]] == [pytest.approx(before[0]["val_bpb"], abs=0.05)]


def test_the_key_is_nowhere(night: Night) -> None:
    assert night.server.requests[0].key == CANARY
    for path in night.folder.rglob("*"):
        if path.is_file():
            assert CANARY.encode() not in path.read_bytes(), path
    done = subprocess.run(["git", "log", "--all", "--format=%B%N"], cwd=night.folder, capture_output=True, text=True, check=True)
    assert CANARY not in done.stdout


def test_without_the_extra_a_sentence_says_what_to_do(night: Night, tmp_path: Path) -> None:
    (tmp_path / "litellm.py").write_text("raise ImportError('no')\n")
    environment = night.environment | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [COMMAND, "run", "--agent", "llm", "--model", "openai/x", "--trials", "1"],
        cwd=night.folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 5, done.stderr
    assert "llm" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_hybrid_takes_and_overrides_what_the_tuner_suggests_and_goes_on_without_its_model(tmp_path: Path) -> None:
    """Then a provider that is down; and the keyless tuner as a reference."""
    asked: list[str] = []

    def write(request: Request) -> str:
        asked.append(request.texts[1])
        suggested = request.texts[1].partition("# What the tuner suggests")[2].partition("# Your turn")[0]
        lines = [line for line in suggested.splitlines() if line.startswith("SET ")]
        if len(asked) == 1:
            return proposal("as the tuner says", *lines)
        name = lines[0].split(" ")[1]
        return proposal(f"my own instead of {name}", block(SEED_LINE, f"    print('hello')\n{SEED_LINE}"), kind="systems")

    with model_server(always=answers_with(write)) as server:
        night = Night(tmp_path / "task", server)
        model = ("--agent", "hybrid", "--model", "openai/scripted", "--api-base", server.url, "--price", "1,2", "--max-usd", "1", "--model-share", "1")
        out = night.call("run", "--cpu", "--preset", "tiny", "--tag", "both", *model, "--trials", "2")
        server.always = status(500, "down")
        night.call("run", "--tag", "both", *model, "--trials", "1")
    rows = [one for one in night.log() if one["agent"] == "hybrid"]

    assert "agent hybrid: the tuner suggests, openai/scripted sees it on 100 % of the tries" in out
    assert [one["suggestion"] for one in rows] == ["taken", "overridden", "fallback"]
    assert server.requests[0].body["max_tokens"] == 16_384
    assert rows[2]["cost_usd"] is None
    assert "The model was to be asked, and " in rows[2]["why"]
    cost = json.loads(night.call("status", "--json"))["cost"]
    assert (cost["proposals"], cost["unknown_proposals"]) == (3, 1)
    assert cost["model_usd"] == pytest.approx(sum(one["cost_usd"] for one in rows[:2]))
    assert "fallback: the tuner's" in night.call("show", str(rows[2]["trial"]))
    assert "# What the tuner suggests" in night.call("prompt", "--agent=hybrid")

    night.call("run", "--cpu", "--preset", "tiny", "--new", "--tag", "keyless", "--trials", "1")
    report = json.loads(night.call("report", "--tag", "both", "--reference", "keyless", "--json"))
    assert (report["reference"]["tag"], report["reference"]["trials"]) == ("keyless", 1)
    again = night.call("run", "--new", "--tag", "again", "--cpu", "--preset", "tiny", "--agent", "replay", "--proposals", str(night.folder / ".autoresearch" / "both"), "--trials", "2", "--json")
    assert [one["idea"] for one in map(json.loads, again.splitlines()) if one["agent"] == "replay"] == [one["idea"] for one in rows[:2]]
