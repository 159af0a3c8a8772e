"""The server for agents through the SDK's own client, over standard input and output of a child process; no engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters, stdio_client
from mcp_types import CallToolResult, TextContent

from tests.conftest import run_git
from tests.faked_driver import SECRET

ROOT = Path(__file__).resolve().parents[1]
COMMAND = Path(sys.executable).with_name("autoresearch")
NAMES = ["trial", "history", "champion", "diff", "brief"]
MEBIBYTE = 1 << 20

Talk = Callable[[Client], Awaitable[Any]]


@asynccontextmanager
async def client_of(command: list[str], environment: dict[str, str], mode: str) -> AsyncIterator[Client]:
    parameters = StdioServerParameters(command=command[0], args=command[1:], env=environment, cwd=ROOT)
    with open(os.devnull, "w") as nothing:  # noqa: ASYNC230, PTH123 - where the server's standard error goes
        async with Client(stdio_client(parameters, errlog=nothing), mode=mode) as client:
            yield client


def talk(command: list[str], what: Talk, *, environment: dict[str, str] | None = None, mode: str = "auto") -> Any:
    async def main() -> Any:
        async with client_of(command, environment or {}, mode) as client:
            return await what(client)

    return anyio.run(main)


def faked(folder: Path) -> list[str]:
    return [sys.executable, "-m", "tests.faked_driver", str(folder)]


def text(result: CallToolResult) -> str:
    (content,) = result.content
    assert isinstance(content, TextContent)
    said: str = content.text
    return said


def error(result: CallToolResult) -> tuple[str, int]:
    assert result.is_error is True
    assert result.structured_content["error"] == text(result)
    return text(result), result.structured_content["exit_code"]


@pytest.mark.parametrize("mode", ["legacy", "auto"])
def test_the_tools_and_their_results(tmp_path: Path, mode: str) -> None:
    async def what(client: Client) -> None:
        tools = (await client.list_tools()).tools
        assert [tool.name for tool in tools] == NAMES
        assert all(tool.description and tool.input_schema["additionalProperties"] is False for tool in tools)
        assert [tool.name for tool in tools if tool.annotations and tool.annotations.read_only_hint] == NAMES[1:]

        found = await client.call_tool("trial", {"source": "RATE = 2\n", "message": "twice"})
        assert found.is_error is False
        assert found.structured_content == {"trial": 4, "verdict": "discard", "idea": "twice", "characters": 9}
        assert json.loads(text(found)) == found.structured_content
        assert [row["trial"] for row in (await client.call_tool("history", {})).structured_content["trials"]] == [*range(80, 100)]
        assert (await client.call_tool("history", {"limit": 2})).structured_content == {"trials": [{"trial": 98}, {"trial": 99}]}
        assert (await client.call_tool("champion", {})).structured_content == {"source": "RATE = 1\n", "val_bpb": 1.5}
        assert (await client.call_tool("diff", {"trial": 3})).structured_content == {"trial": 3, "diff": "-a\n+b\n"}
        assert text(await client.call_tool("brief", {})) == "find something better\n"

    talk(faked(tmp_path), what, mode=mode)


def test_inputs_have_limits(tmp_path: Path) -> None:
    def sources(size: int) -> dict[str, Any]:
        return {"source": "x" * size, "message": "m"}

    async def what(client: Client) -> None:
        assert (await client.call_tool("trial", sources(MEBIBYTE))).structured_content["characters"] == MEBIBYTE
        for name, arguments, said in [
            ("trial", sources(MEBIBYTE + 1), "trial: source: more than 1 MiB"),
            ("trial", {"source": "ä" * (MEBIBYTE // 2 + 1), "message": "m"}, "trial: source: more than 1 MiB"),
            ("trial", {"source": " \n", "message": "m"}, "trial: source is the whole file, as text"),
            ("trial", {"source": 3, "message": "m"}, "trial: source is the whole file, as text"),
            ("trial", {"message": "m"}, "trial: source is the whole file, as text"),
            ("trial", {"source": "x", "message": "m" * 2001}, "trial: message: more than 2000 characters"),
            ("trial", {"source": "x", "message": ""}, "trial: message is the idea, in a line"),
            ("trial", {"source": "x"}, "trial: message is the idea, in a line"),
            ("trial", {"source": "x", "message": "m", "gpus": "0"}, "trial: there is no argument 'gpus'"),
            ("history", {"limit": 0}, "limit is a whole number from 1 to 1000"),
            ("history", {"limit": 1001}, "limit is a whole number from 1 to 1000"),
            ("history", {"limit": True}, "limit is a whole number from 1 to 1000"),
            ("history", {"limit": "2"}, "limit is a whole number from 1 to 1000"),
            ("diff", {}, "trial is a whole number from 0 to 1000000000"),
            ("diff", {"trial": -1}, "trial is a whole number from 0 to 1000000000"),
            ("shell", {}, "there is no tool 'shell'; there are: trial, history, champion, diff, brief"),
        ]:
            assert error(await client.call_tool(name, arguments)) == (said, 2)

    talk(faked(tmp_path), what)


def test_errors_are_results_with_a_sentence(tmp_path: Path) -> None:
    async def what(client: Client) -> None:
        held = await client.call_tool("trial", {"source": "x", "message": "held"})
        assert error(held) == ("run 'x' is held by another runner", 7)
        defect = await client.call_tool("trial", {"source": "x", "message": "defect"})
        assert error(defect) == ("a defect of ours; please report it", 70)
        assert SECRET not in defect.model_dump_json()
        assert (await client.call_tool("trial", {"source": "x", "message": "fine"})).is_error is False

    talk(faked(tmp_path), what)


def test_one_trial_at_a_time_and_everything_else_meanwhile(tmp_path: Path) -> None:
    beats: list[float] = []

    async def progress(progress: float, total: float | None, message: str | None) -> None:
        assert message is not None
        assert message.startswith("the trial is under way since ")
        assert total is None
        beats.append(progress)

    async def what(client: Client) -> None:
        async with anyio.create_task_group() as group:

            async def slow() -> None:
                await client.call_tool("trial", {"source": "x", "message": "slow"}, progress_callback=progress)

            group.start_soon(slow)
            await seen(tmp_path / "started")
            said, code = error(await client.call_tool("trial", {"source": "y", "message": "at once"}))
            assert said.startswith("a trial is under way, and there is one at a time")
            assert code == 2
            assert (await client.call_tool("history", {"limit": 1})).structured_content == {"trials": [{"trial": 99}]}
            while not beats:  # noqa: ASYNC110 - the other side is another process
                await anyio.sleep(0.1)
            group.cancel_scope.cancel()
        # The client takes its request back: the trial is ended, and the place is free.
        await seen(tmp_path / "stopped")
        while (found := await client.call_tool("trial", {"source": "z", "message": "next"})).is_error:  # noqa: ASYNC110
            await anyio.sleep(0.1)
        assert found.structured_content["idea"] == "next"

    talk(faked(tmp_path), what)


async def seen(path: Path) -> None:
    with anyio.fail_after(30):
        while not path.exists():  # noqa: ASYNC110, ASYNC240
            await anyio.sleep(0.05)


class Raw:
    """The protocol by hand, so that every byte of standard output is seen."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.number = 0

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        self.send(method, **params)
        return self.answer()

    def send(self, method: str, **params: Any) -> None:
        self.number += 1
        self._write({"id": self.number, "method": method, "params": params})

    def _write(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        assert (found["jsonrpc"], found["id"]) == ("2.0", self.number)
        result: dict[str, Any] = found["result"]
        return result

    def greet(self) -> None:
        found = self.ask("initialize", protocolVersion="2025-06-18", capabilities={}, clientInfo={"name": "test", "version": "1"})
        assert found["serverInfo"]["name"] == "autoresearch"
        self._write({"method": "notifications/initialized"})


@contextmanager
def raw(command: list[str]) -> Iterator[Raw]:
    pipe = subprocess.PIPE
    environment = {**os.environ, "DOCKER_HOST": "unix:///nowhere/docker.sock"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            found = Raw(process)
            found.greet()
            yield found
        finally:
            process.kill()


def test_nothing_but_the_protocol_is_on_standard_output(tmp_path: Path) -> None:
    with raw(faked(tmp_path)) as server:
        found = server.ask("tools/call", name="trial", arguments={"source": "x", "message": "noisy"})
        assert found["structuredContent"]["idea"] == "noisy"
        assert len(server.ask("tools/list")["tools"]) == len(NAMES)
        out, err = server.process.communicate(timeout=30)

    assert out == ""
    assert server.process.returncode == 0
    assert sorted(err.split()) == ["echoed", "printed", "written"]


def test_input_that_ends_ends_the_trial_and_the_server(tmp_path: Path) -> None:
    with raw(faked(tmp_path)) as server:
        server.send("tools/call", name="trial", arguments={"source": "x", "message": "slow"})
        anyio.run(seen, tmp_path / "started")
        out, err = server.process.communicate(timeout=30)

    assert (tmp_path / "stopped").exists()
    assert (err, server.process.returncode) == ("", 0)
    assert [json.loads(line)["id"] for line in out.splitlines()] == [server.number]  # an answer at last: the connection is closed


@pytest.mark.parametrize(("number", "code", "said"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")])
def test_a_signal_ends_it_although_the_client_is_still_there(task: Path, number: int, code: int, said: str) -> None:
    with raw([str(COMMAND), "mcp", "--task", str(task)]) as server:
        server.process.send_signal(number)
        assert server.process.wait(30) == code
        assert server.process.stderr is not None
        assert server.process.stderr.read() == f"autoresearch: {said}; what was measured is kept, the same command goes on\n"


def test_the_real_command_on_a_run(run_of: Path) -> None:
    environment = {"DOCKER_HOST": "unix:///nowhere/docker.sock", "SOME_API_KEY": SECRET}
    train = (run_of / "trainer" / "train.py").read_text()

    async def what(client: Client) -> None:
        found = [
            await client.call_tool("champion", {}),
            await client.call_tool("history", {"limit": 2}),
            await client.call_tool("diff", {"trial": 1}),
            await client.call_tool("brief", {}),
            await client.call_tool("diff", {"trial": 9}),
            await client.call_tool("trial", {"source": train + "A = 1\n", "message": "--help"}),
        ]
        assert SECRET not in "".join(one.model_dump_json() for one in found)
        champion, history, diff, brief, absent, trial = found
        assert champion.structured_content["source"] == train
        assert (champion.structured_content["trial"], champion.structured_content["val_bpb"]) == (1, 1.6)
        assert [row["verdict"] for row in history.structured_content["trials"]] == ["keep", "crash"]
        assert diff.structured_content == {"trial": 1, "commit": run_git(run_of, "rev-parse", "HEAD"), "parent": run_git(run_of, "rev-parse", "HEAD"), "verdict": "keep", "diff": ""}
        assert text(brief) == (run_of / "program.md").read_text()
        assert error(absent) == ("there is no finished trial 9; the last is 2", 2)
        # All the way to where an engine would be needed.
        said, code = error(trial)
        assert code == 3, said
        assert "engine" in said

    talk([str(COMMAND), "mcp", "--task", str(run_of)], what, environment=environment)


def test_it_stays_with_its_run(run_of: Path) -> None:
    def start(tag: str) -> None:
        folder = run_of / ".autoresearch" / tag
        folder.mkdir()
        journal = (run_of / ".autoresearch" / "old" / "journal.jsonl").read_text()
        (folder / "journal.jsonl").write_text(journal)
        os.utime(folder / "journal.jsonl", (time.time() + 60, time.time() + 60))
        (folder / "task").symlink_to(run_of / ".autoresearch" / "old" / "task")
        run_git(run_of, "branch", f"autoresearch/{tag}", "HEAD")

    async def what(client: Client) -> None:
        assert (await client.call_tool("champion", {})).structured_content["tag"] == "old"
        start("newer")
        assert (await client.call_tool("champion", {})).structured_content["tag"] == "old"

    talk([str(COMMAND), "mcp", "--task", str(run_of)], what)
    talk([str(COMMAND), "mcp", "--task", str(run_of), "--tag", "newer"], its("newer"))


def its(tag: str) -> Talk:
    async def what(client: Client) -> None:
        assert (await client.call_tool("champion", {})).structured_content["tag"] == tag

    return what


def test_a_folder_with_modules_of_our_names_is_not_run(task: Path, tmp_path: Path) -> None:
    """The current folder may be one that an agent writes to."""
    (tmp_path / "runner").mkdir()
    (tmp_path / "runner" / "__init__.py").write_text("raise SystemExit('taken over')\n")
    (tmp_path / "json.py").write_text("raise SystemExit('taken over')\n")

    async def main() -> None:
        parameters = StdioServerParameters(command=str(COMMAND), args=["mcp", "--task", str(task)], cwd=tmp_path)
        async with Client(stdio_client(parameters)) as client:
            said, code = error(await client.call_tool("history", {}))
            assert (said, code) == ("there is no run yet: `autoresearch run` starts one", 2)

    anyio.run(main)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--task", "/nowhere"], 2, "--task /nowhere: there is no such folder"),
        (["--tag", "../x"], 2, "--tag '../x'"),
        (["--cpu", "--gpus", "0"], 2, "--cpu and --gpus exclude each other"),
    ],
)
def test_mistakes_are_said_before_anything_is_served(task: Path, arguments: list[str], code: int, said: str) -> None:
    done = subprocess.run([COMMAND, "mcp", *arguments], cwd=task, input="", capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(f"autoresearch: {said}")


def test_without_the_sdk_it_says_what_to_install(task: Path, tmp_path: Path) -> None:
    (tmp_path / "mcp.py").write_text("raise ModuleNotFoundError(\"No module named 'mcp'\", name='mcp')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([COMMAND, "mcp"], cwd=task, env=environment, input="", capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr == "autoresearch: `autoresearch mcp` needs the SDK of the protocol: pip install 'autoresearch[mcp]'\n"
