"""An agent's client, the real server, real containers: one run at preset tiny, started and driven through the protocol alone."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from mcp import Client, StdioServerParameters, stdio_client
from mcp_types import CallToolResult

from runner.constants import set_constants
from tests.conftest import run_git
from tests.docker.conftest import STATE, charge_little, ours, without_dry_run
from tests.docker.test_end_to_end import BETTER, CANDIDATES, COMMAND, KEYS, LOOK, at_step_ten

if TYPE_CHECKING:
    from docker import DockerClient

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(1800)]

TAG = "driven"


def value(result: CallToolResult) -> dict[str, Any]:
    assert result.is_error is False, result
    found: dict[str, Any] = result.structured_content
    return found


async def night_in_small(client: Client, better: str) -> list[dict[str, Any]]:
    """Everything that can happen to what a driver hands in, after `better` was kept."""

    async def tried(source: str, message: str) -> dict[str, Any]:
        return value(await client.call_tool("trial", {"source": source, "message": message}))

    low = set_constants(better, {"UNEMBEDDING_LR": 0.0001})
    worse = await tried(low, "a far too low rate")
    crash = await tried(better.replace(LOOK, f"{at_step_ten('torch.say_hello()')}{LOOK}"), "say hello")
    mended = await tried(better.replace(LOOK, f"{at_step_ten('print(at)')}{LOOK}"), "say hello, mended")
    lost = [await tried(better.replace(LOOK, f"{at_step_ten(f'torch.{name}()')}{LOOK}"), name) for name in ("not_there", "not_there_either")]
    twice = await tried(low, "the low rate once more")
    broken = await tried(better.replace(LOOK, "        if at ==\n"), "does not parse")
    forbidden = await tried(better.replace(LOOK, f"        notes = {'text ' * 2000!r}\n{LOOK}"), "bring a text")
    night = [worse, crash, mended, *lost, twice, broken, forbidden]
    told = [(row["verdict"], row["ending"], row["reason"]) for row in night]
    assert (worse["verdict"], worse["ending"]) == ("discard", "finished"), told
    assert (crash["verdict"], crash["ending"], mended["ending"]) == ("crash", "crashed", "finished"), told
    assert [row["ending"] for row in lost] == ["crashed", "crashed"], told
    assert (twice["verdict"], f"trial {worse['trial']}" in twice["reason"]) == ("invalid", True), told
    assert [(row["verdict"], row["commit"]) for row in (broken, forbidden)] == [("invalid", None)] * 2, told
    return night


def check_visible(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """A person sees them too."""
    logged = subprocess.run([COMMAND, "log", "--task", str(folder)], check=True, capture_output=True, text=True).stdout
    for row in rows:
        assert row["idea"] in logged
        shown = subprocess.run([COMMAND, "show", str(row["trial"]), "--task", str(folder)], check=True, capture_output=True, text=True).stdout
        assert f"{row['verdict']}, {row['reason']}" in shown


def prepared(folder: Path) -> StdioServerParameters:
    """A task, and how a client starts its server."""
    subprocess.run([COMMAND, "init", str(folder), "--preset", "tiny"], check=True, capture_output=True)
    (folder / ".autoresearch").mkdir(mode=0o700, exist_ok=True)
    (folder / ".autoresearch" / "images.json").write_text((STATE / "images.json").read_text())
    charge_little(folder)
    without_dry_run(folder)
    # What a client's configuration would have to name: it hands on little of its own environment.
    named = {name: os.environ[name] for name in ("DOCKER_HOST",) if name in os.environ}
    return StdioServerParameters(
        command=str(COMMAND),
        args=["mcp", "--task", str(folder), "--tag", TAG, "--cpu", "--preset", "tiny"],
        env={**named, "AUTORESEARCH_DATA": str(STATE / "data")},
    )


def test_an_agent_drives_a_run(tmp_path: Path, engine: DockerClient) -> None:
    folder = tmp_path / "task"
    parameters = prepared(folder)
    beats: list[float] = []
    seen: list[dict[str, Any]] = []

    async def progress(progress: float, total: float | None, message: str | None) -> None:
        beats.append(progress)

    async def main() -> None:
        async with Client(stdio_client(parameters)) as client:
            better = set_constants((folder / "trainer" / "train.py").read_text(), BETTER)
            kept = value(await client.call_tool("trial", {"source": better, "message": "better rates\nas measured before"}, progress_callback=progress))
            assert set(kept) >= KEYS
            assert (kept["ending"], kept["verdict"], kept["idea"], kept["why"]) == ("finished", "keep", "better rates", "as measured before"), kept
            assert kept["score_level"] == "audited"

            again = value(await client.call_tool("trial", {"source": better, "message": "the same once more"}))
            assert again["verdict"] == "invalid"

            night = await night_in_small(client, better)
            seen.extend(night)

            champion = value(await client.call_tool("champion", {}))
            assert champion["source"] == better
            assert (champion["trial"], champion["commit"]) == (kept["trial"], kept["commit"])
            rows = value(await client.call_tool("history", {"limit": 50}))["trials"]
            assert [row["verdict"] for row in rows][:3] == ["baseline"] * 3
            assert [row for row in rows if row["agent"] == "hand"] == [kept, again, *night]
            diff = value(await client.call_tool("diff", {"trial": kept["trial"]}))
            assert f"+EMBEDDING_LR = {BETTER['EMBEDDING_LR']}" in diff["diff"]

    async def leave() -> None:
        async with Client(stdio_client(parameters)) as client, anyio.create_task_group() as group:
            source = (CANDIDATES / "sleeps.py").read_text()
            group.start_soon(client.call_tool, "trial", {"source": source, "message": "nobody waits for it"})
            with anyio.fail_after(60):
                while not ours(engine, f"autoresearch.tag={TAG}"):  # noqa: ASYNC110 - the other side is another process
                    await anyio.sleep(0.2)
            group.cancel_scope.cancel()

    anyio.run(main)
    check_visible(folder, seen)
    assert beats == sorted(beats)
    assert len(beats) > 2

    # A client that goes while a trial is under way: it ends as by Ctrl-C, and nothing is left.
    anyio.run(leave)
    deadline = time.monotonic() + 60
    while ours(engine, f"autoresearch.tag={TAG}") and time.monotonic() < deadline:
        time.sleep(0.5)
    assert ours(engine, f"autoresearch.tag={TAG}") == []
    status = subprocess.run([COMMAND, "status", "--json", "--task", str(folder)], check=True, capture_output=True)
    assert json.loads(status.stdout)["open_trial"] is not None
    assert run_git(folder, "status", "--porcelain") == ""
