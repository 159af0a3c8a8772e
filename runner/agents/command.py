"""Proposals from a coding agent of somebody else's: a command that edits a copy of the file in a sandbox of its own.

For each proposal there is a fresh folder with the champion's file, and beside it, read-only, what the run tells an agent.  The
command runs there in bubblewrap, with a deadline.  Afterwards the file is read back, and `idea.md`; nothing else of the folder is.
What cannot be used is refused and recorded.  What the command was told and what it said lies in the run's folder.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path, PurePosixPath

from runner.agents import confined, handback, plateau, prompt
from runner.agents.bubblewrap import WORKDIR, Confinement, environment, words
from runner.agents.confined import Ended
from runner.agents.failures import refuse_useless
from runner.agents.handback import NotHandedBackError
from runner.agents.prompt import Count, Facts
from runner.durable import write_durably
from runner.errors import AgentError, UsageError
from runner.money import Purse
from runner.report.text import block, plain
from runner.trial import Kind, Proposal, Record, Refusal, Spent

FOLDER, SCRATCH = "command", "scratch"
PROMPT, BRIEF, HISTORY, IDEA = "prompt.md", "program.md", "history.md", "idea.md"
SOURCE_BYTES, IDEA_BYTES = 1 << 20, 64 << 10
SCRATCH_BYTES, SCRATCH_FILES = 512 << 20, 20_000
IDEA_LIMIT, WHY_LIMIT, REASON_LIMIT = 200, 4000, 200
SECRET_LENGTH = 8
"""A shorter value of a variable is no key, and stands in innocent text."""
MOST_USD, MOST_TOKENS = 10_000.0, 10**12
"""More than that is no honest word about one proposal."""
INPUTS, OUTPUT = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"), "output_tokens"
NO_IDEA = "(no proposal)"
KIND_LINE = re.compile(r"^[^\w\n]*kind[^\w\n]*:[^\w\n]*(\w+)[^\w\n]*$", re.IGNORECASE | re.MULTILINE)
ASK = "Make your one change now, in the file in this folder, and write idea.md."


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a person says about the command."""

    command: str
    seconds: int = 600
    passed: Mapping[str, str] = field(default_factory=dict)
    """Variables that it has, the key of its model among them."""
    agent_paths: tuple[Path, ...] = ()
    """Folders that it is installed in."""


class CommandAgent:
    """Implements `runner.protocols.Agent`."""

    name = "command"

    def __init__(
        self, options: Options, facts: Callable[[str, Sequence[Record]], Facts], folder: Path, *, limit: int, count: Count, purse: Purse | None = None
    ) -> None:
        """`facts`: what is told, from champion and records; `folder`: the run's; `limit`: tokens of the prompt as `count` counts;
        `purse`: what may be spent; if that is limited, an unknown cost ends the run.  Raises `UsageError` if the command is none.
        """
        self._options, self._facts, self._folder = options, facts, folder / FOLDER
        self._limit, self._count, self._purse = limit, count, purse or Purse()
        self._words = words(options.command, prompt_file=f"{WORKDIR}/{PROMPT}", seconds=options.seconds)
        self._earlier: int | None = None

    def propose(self, champion: str, history: Sequence[Record]) -> Proposal | Refusal | None:
        """See `Agent`.  Raises `AgentError` if there is no sandbox, or if too many proposals in a row were of no use."""
        self._earlier = len(history) if self._earlier is None else self._earlier
        refuse_useless(history[self._earlier :], agent=self.name, asked=self._words[0])
        self._purse.check(None)
        number = max((int(one.token) for one in history if one.agent == self.name and one.token.isdecimal()), default=-1) + 1
        facts = self._facts(champion, history)
        told, scratch = self._folder / f"{number:04d}", self._folder / SCRATCH
        given = self._tell(told, facts, history)
        # What an interrupted invocation left.
        handback.remove(scratch)
        try:
            self._folder.chmod(0o700)
            scratch.mkdir(mode=0o700)
            (scratch / _name(facts)).write_bytes(champion.encode())
            ended = confined.run(
                Confinement(scratch=scratch, given=given, agent_paths=self._options.agent_paths),
                self._words,
                environment(self._options.passed, self._options.agent_paths),
                seconds=self._options.seconds,
                look=partial(handback.too_much, scratch, most_bytes=SCRATCH_BYTES, most_files=SCRATCH_FILES),
            )
            for name, text in (("stdout.txt", ended.stdout), ("stderr.txt", ended.stderr)):
                write_durably(told / name, self._redacted(text).encode())
            return self._result(str(number), facts, ended, scratch)
        finally:
            handback.remove(scratch)

    # -- what it is told -----------------------------------------------------------------------------

    def _tell(self, told: Path, facts: Facts, history: Sequence[Record]) -> tuple[Path, ...]:
        """Write down what it is given.  Raises `AgentError` if that is too long."""
        page = told_page(facts, history, seconds=self._options.seconds, limit=self._limit, count=self._count)
        texts = {PROMPT: page, BRIEF: facts.brief, HISTORY: prompt.history(facts)}
        if _name(facts) in (*texts, IDEA):
            message = f"{facts.editable}: --agent command gives the agent a file of that name; the editable file needs another"
            raise UsageError(message)
        for name, text in texts.items():
            write_durably(told / name, text.encode(errors="replace"))
        return tuple(told / name for name in texts)

    # -- what becomes of it --------------------------------------------------------------------------

    def _result(self, token: str, facts: Facts, ended: Ended, scratch: Path) -> Proposal | Refusal:
        spent = cost(ended.stdout)
        self._purse.pay(self.name, spent)
        if self._purse.limited and spent.cost_usd is None:
            message = (
                f"--max-usd cannot be held to: what {self._words[0]} cost is not known. The last line that it prints would have to be JSON "
                "with total_cost_usd"
            )
            raise AgentError(message)
        idea, why, kind = _idea(scratch)
        try:
            source = self._handed_back(token, facts, ended, scratch)
        except NotHandedBackError as error:
            return Refusal(agent=self.name, idea=self._redacted(idea or NO_IDEA), reason=self._redacted(str(error)), token=token, spent=spent)
        idea = self._redacted(idea or changed(facts.champion, source))
        return Proposal(agent=self.name, idea=idea, why=self._redacted(why), kind=kind, source=source, token=token, spent=spent)

    def _handed_back(self, token: str, facts: Facts, ended: Ended, scratch: Path) -> str:
        """The changed file.  Raises `NotHandedBackError` with why it is none."""
        where = f"what it said is in {FOLDER}/{int(token):04d} of the run's folder"
        if ended.stopped:
            raise NotHandedBackError(f"the command was stopped: {ended.stopped}; {where}")
        if ended.exit_code:
            # A change may be half made then, and nobody meant half of one.
            last = plain(self._redacted(ended.stderr).strip().rpartition("\n")[2], REASON_LIMIT)
            raise NotHandedBackError(f"the command ended with exit code {ended.exit_code}{f' ({last})' if last else ''}; {where}")
        source = handback.read_text(scratch, _name(facts), SOURCE_BYTES)
        if source == facts.champion:
            raise NotHandedBackError(f"{_name(facts)} is unchanged; {where}")
        for name, value in self._secrets():
            if value in source:
                raise NotHandedBackError(f"{_name(facts)} has the value of the variable {name} in it, which goes into no commit and no trial")
        return source

    def _secrets(self) -> list[tuple[str, str]]:
        """The longest first: one may be a part of another."""
        return sorted(((name, value) for name, value in self._options.passed.items() if len(value) >= SECRET_LENGTH), key=lambda one: -len(one[1]))

    def _redacted(self, text: str) -> str:
        """`text` without the values of variables: keys are quoted in messages about keys."""
        for name, value in self._secrets():
            text = text.replace(value, f"[{name}]")
        return text


def told_page(facts: Facts, history: Sequence[Record], *, seconds: int, limit: int, count: Count) -> str:
    """Pure: the page that a command is given for the proposal after `history`.  Raises `AgentError` if it is too long."""
    asked = replace(facts, wishes=plateau.advise(history).wishes)
    try:
        system, request = prompt.build(asked, grammar=_form(facts, seconds), limit=limit, count=count, ask=ASK)
    except prompt.TooLongError as error:
        raise AgentError(f"{error}; say more with --context if the agent's model takes it") from error
    return f"{system}\n\n{request}\n"


def cost(stdout: str) -> Spent:
    """Pure: what a proposal cost, by the command's own word: the last line, if that is JSON as Claude Code prints it."""
    try:
        found = json.loads(stdout.strip().rpartition("\n")[2])
    except (ValueError, RecursionError):
        return Spent()
    if not isinstance(found, dict):
        return Spent()
    usage = found.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    inputs = [_tokens(usage.get(name)) for name in INPUTS]
    return Spent(
        cost_usd=_dollars(found.get("total_cost_usd")),
        prompt_tokens=None if inputs[0] is None else sum(one or 0 for one in inputs),
        completion_tokens=_tokens(usage.get(OUTPUT)),
    )


def changed(before: str, after: str) -> str:
    """Pure: a change in a line, for one that nobody explained."""
    old, new = before.splitlines(), after.splitlines()
    number = max((Counter(old) - Counter(new)).total(), (Counter(new) - Counter(old)).total())
    first = next((now if now is not None else was for was, now in zip_longest(old, new) if was != now), "")
    lines = f"{number} line{'' if number == 1 else 's'}"
    return plain(f"changed {lines}: {(first or '').strip()}" if number else "changed order or spaces alone", IDEA_LIMIT)


def _idea(scratch: Path) -> tuple[str, str, Kind]:
    """First line, the rest, and the kind that a line of it names, of what the agent wrote down, if it did."""
    try:
        text = block(handback.read_text(scratch, IDEA, IDEA_BYTES)).strip()
    except NotHandedBackError:
        return "", "", Kind.OTHER
    named = KIND_LINE.search(text)
    kind = named[1].lower() if named is not None else ""
    first, _, rest = KIND_LINE.sub("", text).strip().partition("\n")
    return plain(first.lstrip("#-* "), IDEA_LIMIT), rest.strip()[:WHY_LIMIT], Kind(kind) if kind in set(Kind) else Kind.OTHER


def _dollars(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST_USD:
        return None
    return float(value)


def _tokens(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS else None


def _name(facts: Facts) -> str:
    return PurePosixPath(facts.editable).name


def _form(facts: Facts, seconds: int) -> str:
    name = _name(facts)
    return (
        f"You work in the folder {WORKDIR}, which was made for this one proposal. In it lies {name}: that is {facts.editable} as it stands.\n\n"
        f"- Edit {name} in place: one change, no other file. It is all that is taken back; whatever else you write is thrown away.\n"
        f"- Write into {IDEA}: the idea in its first line, below it why it should help, and a line KIND: with one of {', '.join(Kind)}.\n"
        f"- {BRIEF} is the brief, {HISTORY} has all tries so far; like this page ({PROMPT}) they cannot be changed.\n"
        f"- Nothing is trained or scored here: there are no data, no GPU, and maybe not the libraries that {name} imports. Do not try to run it.\n"
        f"- You have {seconds} seconds; what is not done by then is thrown away. End with exit code 0: after any other nothing is taken."
    )
