"""The command lines of docs/agents.md, to the letter, and what a scripted model says to each agent so that it makes an edit."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.agents import installed
from tests.codingmodel import (
    chat_use,
    content_says,
    content_uses,
    message_says,
    message_uses,
    response_says,
    response_uses,
)
from tests.modelserver import Behaviour, answers

DOCS = Path(__file__).parents[2] / "docs" / "agents.md"
SETTINGS = Path(__file__).parent / "gemini"
TASK = "/task"
Edits = Sequence[tuple[str, str]]
"""Whole lines of train.py, and what they become."""


def documented(title: str) -> str:
    """The command of the agent that docs/agents.md calls so."""
    _, _, rest = DOCS.read_text().partition(f"\n**{title}**")
    line = rest.partition("```sh\n")[2].partition("```")[0].replace("\\\n", " ")
    words = shlex.split(line)
    return words[words.index("--command") + 1]


@dataclass(frozen=True)
class Agent:
    """One of them, to be asked by way of a loopback server."""

    title: str
    parts: tuple[str, ...]
    """Folders that it is installed in."""
    variables: Callable[[str], Mapping[str, str]]
    """From the server's address: where its model is."""
    key: str
    says: Callable[[Edits, str | None], list[Behaviour]]
    """What its model answers, request by request, to make these edits and leave this idea.md."""
    adapted: Callable[[str, str], str] = lambda command, url: command
    """The documented command for a model at this address."""
    shown: tuple[Path, ...] = ()
    """Further folders that it has to see."""

    def command(self, url: str) -> str:
        """For `--command`."""
        return self.adapted(documented(self.title), url).replace("NAME", "scripted")

    def paths(self) -> list[Path]:
        """For `--agent-path`."""
        return [*installed.paths(*self.parts), *self.shown]

    def flags(self, url: str) -> list[str]:
        """Of `run`."""
        shown = [word for path in self.paths() for word in ("--agent-path", str(path))]
        passed = [word for name in (self.key, *self.variables(url)) for word in ("--pass-env", name)]
        return ["--agent", "command", "--command", self.command(url), *shown, *passed]


# -- aider: blocks in a text -------------------------------------------------------------------------


def aider_says(edits: Edits, idea: str | None) -> list[Behaviour]:
    blocks = [f"train.py\n```python\n<<<<<<< SEARCH\n{old}=======\n{new}>>>>>>> REPLACE\n```\n" for old, new in edits]
    if idea is not None:
        blocks.append(f"idea.md\n```\n<<<<<<< SEARCH\n=======\n{idea}>>>>>>> REPLACE\n```\n")
    return [answers("\n".join(blocks) or "I would not change anything.")]


# -- a shell -----------------------------------------------------------------------------------------


def script(edits: Edits, idea: str | None) -> str:
    """A command that makes the edits."""
    program = (
        "import json, pathlib\n"
        f"edits, idea = json.loads({json.dumps([list(map(list, edits)), idea])!r})\n"
        "path = pathlib.Path('train.py'); text = path.read_text()\n"
        "for old, new in edits:\n    assert text.count(old) == 1, old\n    text = text.replace(old, new)\n"
        "path.write_text(text) if edits else None\n"
        "pathlib.Path('idea.md').write_text(idea) if idea else None\n"
    )
    return f"python3 -c {shlex.quote(program)}"


def mini_runs(*commands: str) -> list[Behaviour]:
    """The commands, one a request, and the end."""
    return [chat_use("bash", {"command": one}) for one in (*commands, "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT")]


def codex_says(edits: Edits, idea: str | None) -> list[Behaviour]:
    return [response_uses("exec_command", {"cmd": script(edits, idea)}), response_says("done")]


def codex_at(command: str, url: str) -> str:
    own = {"name": "own", "base_url": f"{url}/v1", "env_key": "CODEX_API_KEY", "wire_api": "responses"}
    options = " ".join(f"-c model_providers.own.{name}={value}" for name, value in own.items())
    return command.replace("codex exec ", f"codex exec -m scripted -c model_provider=own {options} ")


# -- tools that edit ---------------------------------------------------------------------------------


def claude_says(edits: Edits, idea: str | None) -> list[Behaviour]:
    path = f"{TASK}/train.py"
    said = [message_uses("Read", {"file_path": path})]
    said += [message_uses("Edit", {"file_path": path, "old_string": old, "new_string": new}) for old, new in edits]
    said += [message_uses("Write", {"file_path": f"{TASK}/idea.md", "content": idea})] if idea is not None else []
    return [*said, message_says("done")]


def gemini_says(edits: Edits, idea: str | None) -> list[Behaviour]:
    path = f"{TASK}/train.py"
    said = [content_uses("replace", {"file_path": path, "instruction": "as proposed", "old_string": old, "new_string": new}) for old, new in edits]
    said += [content_uses("write_file", {"file_path": f"{TASK}/idea.md", "content": idea})] if idea is not None else []
    return [*said, content_says("done")]


def gemini_variables(url: str) -> Mapping[str, str]:
    # A server of one's own is taken for another kind of login, unless settings name one.
    return {"GOOGLE_GEMINI_BASE_URL": url, "GEMINI_CLI_SYSTEM_SETTINGS_PATH": str(SETTINGS / "settings.json")}


def _openai(url: str) -> Mapping[str, str]:
    return {"OPENAI_API_BASE": f"{url}/v1"}


AIDER = Agent("aider", ("aider",), _openai, "OPENAI_API_KEY", aider_says)
MINI = Agent("mini-swe-agent", ("mini",), _openai, "OPENAI_API_KEY", lambda edits, idea: mini_runs(script(edits, idea)))
CLAUDE = Agent("Claude Code", ("npm",), lambda url: {"ANTHROPIC_BASE_URL": url}, "ANTHROPIC_API_KEY", claude_says)
CODEX = Agent("Codex CLI", ("node", "npm"), lambda _: {}, "CODEX_API_KEY", codex_says, codex_at)
GEMINI = Agent("Gemini CLI", ("node", "npm"), gemini_variables, "GEMINI_API_KEY", gemini_says, lambda command, _: f"{command} -m gemini-2.5-pro", (SETTINGS,))
ALL = (AIDER, MINI, CLAUDE, CODEX, GEMINI)
