"""Proposals from a language model: one prompt, one answer, and what becomes of an answer that cannot be used.

The model sees what `runner.agents.prompt` builds and answers in the form of `runner.agents.answer`.  An answer that does not fit the
form or the file has one more turn, in which the model is told what is wrong; then it is refused and recorded.  A model that fails
at edits again and again is asked for whole files, and for edits again once that works.  The parent is never proposed in an answer's
place.  What was sent and what came back lies in the run's folder, one file for each proposal.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from pathlib import Path

from runner.agents import plateau, prompt
from runner.agents.answer import MalformedAnswerError, parse
from runner.agents.chat import Chat, ChatError, ErrorKind, Finish, Message, Reply, Role
from runner.agents.edits import RefusedEditError
from runner.agents.failures import refuse_useless
from runner.agents.grammar import GRAMMAR, GRAMMAR_WHOLE, Answer
from runner.agents.matching import apply
from runner.agents.plateau import THE_TUNERS
from runner.agents.prompt import Count, Facts
from runner.agents.shown import NOTES
from runner.durable import write_durably
from runner.errors import AgentError
from runner.money import Purse, TooDearError, together
from runner.trial import Ending, Proposal, Record, Refusal, Spent, Verdict

WHOLE_AFTER, EDITS_AFTER = 3, 3
"""Answers in a row that did not fit, after which whole files are asked for; answers in a row that did, after which edits are again."""
CALL_SECONDS = 900.0
"""For one call, everything that is tried again included."""
TRIMMED = 0.7
"""So much of the context is used after the model said that a prompt was too long."""
REPAIR = "repair of trial "
UNUSABLE = {
    Finish.LENGTH: "It was cut at the model's limit of tokens: be shorter.",
    Finish.FILTERED: "The provider's filter withheld it.",
    Finish.NOTHING: "There was nothing in it.",
}
TRANSCRIPTS = "llm"
NOTES_LIMIT = 8000
MENDED = (Ending.CRASHED, Ending.OUT_OF_MEMORY, Ending.TIMED_OUT, Ending.INVALID_OUTPUT)
"""Endings that a model can do something about."""
LOOK_BACK = (
    "Look back at the tries before anything is proposed: what is known by now, what was ruled out, and at most five directions that are worth a "
    "try and were not taken. Answer with plain text of at most 40 lines, for your own notes. No proposal yet."
)


@dataclass(frozen=True, kw_only=True)
class Context:
    """What the run shows a model, asked for anew before each proposal."""

    facts: Callable[[str, Sequence[Record]], Facts]
    """From the champion's file and the records as they are told."""
    source: Callable[[int], str | None]
    """The file that a trial proposed; None: there is nothing to mend."""
    folder: Path
    """Of the run."""


@dataclass
class _Turn:
    """One proposal while it is being made: everything that was sent and came back."""

    token: str
    sent: list[tuple[Message, ...]] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)

    @property
    def spent(self) -> Spent:
        """By all its calls."""
        return together([_spent(one) for one in self.replies])


class LlmAgent:
    """Implements `runner.protocols.Agent`."""

    def __init__(self, chat: Chat, context: Context, *, limit: int, count: Count, purse: Purse | None = None, name: str = "llm") -> None:
        """`limit`: tokens of the model's context that a prompt may take, as `count` counts; `purse`: what may be spent; if that is
        limited, an answer of unknown cost ends the run.  `name`: whose proposals these are.
        """
        self._chat, self._context, self._limit, self._count = chat, context, limit, count
        self._purse, self.name = purse or Purse(), name
        self._whole, self._misfits, self._fits = False, 0, 0
        self._earlier: int | None = None

    def mends(self, history: Sequence[Record]) -> bool:
        """Whether the next proposal is the one attempt to mend the last."""
        return self._to_mend([record for record in history if record.agent == self.name]) is not None

    def propose(self, champion: str, history: Sequence[Record], suggestion: str = "") -> Proposal | Refusal:
        """See `Agent`.  `suggestion` is shown unless the last proposal is mended.

        Raises `AgentError` if the model cannot be asked, or if too many answers in a row were of no use.
        """
        self._earlier = len(history) if self._earlier is None else self._earlier
        refuse_useless(history[self._earlier :], agent=self.name, asked=self._chat.name)
        own = [record for record in history if record.agent == self.name]
        number = number_after(own)
        failed = self._to_mend(own)
        turn = _Turn(str(number) if failed is None else f"{number} {REPAIR}{failed.trial}")
        idea = "(no proposal)" if failed is None else f"repair: {failed.idea}"
        try:
            after = plateau.advise(history).look_back if failed is None else None
            if after is not None:
                self._look_back(turn, after, self._facts(champion, history, None))
            answer, source = self._answered(turn, self._facts(champion, history, failed, suggestion))
        except (MalformedAnswerError, RefusedEditError) as error:
            return self._refusal(turn, idea, str(error))
        except TooDearError as error:
            if not turn.replies:
                raise
            return self._refusal(turn, idea, f"it was not mended: {error}")
        except ChatError as error:
            if error.kind is not ErrorKind.EXHAUSTED:
                raise
            return self._refusal(turn, idea, str(error))
        except prompt.TooLongError as error:
            raise AgentError(f"{self._chat.name}: {error}; name a model with a larger context") from error
        finally:
            self._write_down(turn)
        return Proposal(
            agent=self.name, idea=answer.idea, why=answer.why, risk=answer.risk, kind=answer.kind, source=source,
            token=turn.token, spent=turn.spent,
        )  # fmt: skip

    # -- what is asked -----------------------------------------------------------------------------

    def preview(self, champion: str, history: Sequence[Record], suggestion: str = "") -> tuple[str, str]:
        """System message and request of the next proposal, to the letter.  Raises `AgentError`."""
        failed = self._to_mend([record for record in history if record.agent == self.name])
        try:
            return self._prompt(self._facts(champion, history, failed, suggestion))
        except prompt.TooLongError as error:
            raise AgentError(str(error)) from error

    def _facts(self, champion: str, history: Sequence[Record], failed: Record | None, suggestion: str = "") -> Facts:
        facts = self._context.facts(champion, history)
        if failed is None:
            return replace(facts, wishes=plateau.advise(history).wishes, suggestion=suggestion)
        crashed = next(one for one in facts.tries if one.record.trial == failed.trial)
        return prompt.repair(facts, crashed, self._context.source(failed.trial) or "")

    def _to_mend(self, own: Sequence[Record]) -> Record | None:
        """The last proposal, if its trial ended without a score, or a gate refused what can be mended, and it was no repair itself:
        each idea of a model has one second chance.
        """
        if not own or REPAIR in own[-1].token or own[-1].suggestion in THE_TUNERS:
            return None
        last = own[-1]
        mended = last.ending in MENDED if last.verdict is Verdict.CRASH else last.verdict is Verdict.INVALID
        return last if mended and self._context.source(last.trial) is not None else None

    def _prompt(self, facts: Facts) -> tuple[str, str]:
        grammar = GRAMMAR_WHOLE if self._whole else GRAMMAR
        return prompt.build(facts, grammar=grammar, limit=self._limit, count=self._count)

    def _answered(self, turn: _Turn, facts: Facts) -> tuple[Answer, str]:
        """A usable answer and the file that it makes, after a second turn if need be."""
        try:
            asked = self._messages(facts)
            reply = self._ask(turn, asked)
        except ChatError as error:
            if error.kind is not ErrorKind.TOO_LONG:
                raise
            # Our own count is an estimate for most models.
            self._limit = int(self._limit * TRIMMED)
            asked = self._messages(facts)
            reply = self._ask(turn, asked)
        try:
            found = _usable(reply, facts.champion)
        except (MalformedAnswerError, RefusedEditError) as error:
            self._learn(fits=False)
            again = (
                f"That answer cannot be used, and nothing of it was applied. {error}\n\n"
                "Give the whole answer once more, mended, in the same form."
            )
            reply = self._ask(turn, (*asked, Message(Role.ASSISTANT, reply.text), Message(Role.USER, again)))
            return _usable(reply, facts.champion)
        self._learn(fits=True)
        return found

    def _messages(self, facts: Facts) -> tuple[Message, ...]:
        system, request = self._prompt(facts)
        return Message(Role.SYSTEM, system), Message(Role.USER, request)

    def _look_back(self, turn: _Turn, trial: int, facts: Facts) -> None:
        """Have the model write down, once after this trial, what is known; the person can read and edit it."""
        path, title = self._context.folder / NOTES, f"## After trial {trial}\n"
        before = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        if title in before:
            return
        system, request = self._prompt(facts)
        reply = self._ask(turn, (Message(Role.SYSTEM, system), Message(Role.USER, f"{request}\n\n{LOOK_BACK}")))
        write_durably(path, f"{before}{title}\n{reply.text.strip()[:NOTES_LIMIT]}\n\n".encode())

    def _ask(self, turn: _Turn, messages: tuple[Message, ...]) -> Reply:
        self._purse.check(self._chat.most_usd(sum(self._count(message.text) for message in messages)))
        turn.sent.append(messages)
        reply = self._chat.complete(messages, seconds=CALL_SECONDS)
        turn.replies.append(reply)
        self._purse.pay(self.name, _spent(reply))
        if self._purse.limited and reply.cost_usd is None:
            message = f"--max-usd cannot be held to: what {reply.model} costs is not known. Say it with --price IN,OUT (dollars per million tokens)"
            raise AgentError(message)
        return reply

    def _learn(self, *, fits: bool) -> None:
        """Whole files after answers that did not fit, edits again after whole files that did."""
        self._fits, self._misfits = (self._fits + 1, 0) if fits else (0, self._misfits + 1)
        if not self._whole and self._misfits >= WHOLE_AFTER:
            self._whole, self._misfits = True, 0
        elif self._whole and self._fits >= EDITS_AFTER:
            self._whole, self._fits = False, 0

    # -- what becomes of it ------------------------------------------------------------------------

    def _refusal(self, turn: _Turn, idea: str, reason: str) -> Refusal:
        return Refusal(agent=self.name, idea=idea, reason=reason, token=turn.token, spent=turn.spent)

    def _write_down(self, turn: _Turn) -> None:
        """Everything that was said, whatever came of it; after what an attempt that came to nothing had said under the same number."""
        if not turn.sent:
            return
        path = self._context.folder / TRANSCRIPTS / f"{_number(turn.token):04d}.json"
        before: list[object] = []
        with suppress(OSError, ValueError, KeyError):  # it is not there, or somebody edited it
            before = list(json.loads(path.read_bytes())["calls"])
        calls = [
            {"sent": [asdict(one) for one in sent], "reply": None if reply is None else asdict(reply)}
            for sent, reply in zip_longest(turn.sent, turn.replies)
        ]
        write_durably(path, json.dumps({"token": turn.token, "calls": [*before, *calls]}, indent=1).encode())


def _usable(reply: Reply, champion: str) -> tuple[Answer, str]:
    if reply.finish in UNUSABLE:
        raise MalformedAnswerError(UNUSABLE[reply.finish])
    answer = parse(reply.text)
    return answer, apply(answer, champion)


def _spent(reply: Reply) -> Spent:
    usage = reply.usage
    return Spent(
        cost_usd=reply.cost_usd,
        prompt_tokens=None if usage is None else usage.prompt,
        completion_tokens=None if usage is None else usage.completion,
    )


def number_after(own: Sequence[Record]) -> int:
    """Of the next proposal after an agent's `own`."""
    return max((_number(record.token) for record in own), default=-1) + 1


def _number(token: str) -> int:
    return int(token.partition(" ")[0])
