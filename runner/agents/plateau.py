"""Pure: what a search that gets nowhere is asked to do differently, by how many tries in a row were not kept.

A model left to itself goes on turning the knob it turned last.  Every published loop levels off after 10 to 14 tries, and what
helped were rules that break the pattern: other kinds, larger steps, a look back, combinations.  The ladder is from
the settings that several such harnesses came to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runner.report.summary import NO_IDEAS
from runner.report.text import plain
from runner.trial import Kind, Record, Suggested, Verdict

OTHER_KINDS, LARGER, REFLECT, COMBINE = 3, 5, 8, 12
"""Tries in a row without a keep, from which on each is asked for."""
REFLECT_EVERY = 10
"""A look back is asked for again after so many more."""
NEAR_MISSES = 3
NEAR = 0.25
"""A near miss is no worse than this part of the gain that was needed."""
IDEA_WIDTH = 120
THE_TUNERS = (Suggested.UNSEEN, Suggested.TAKEN, Suggested.FALLBACK)
"""Proposals that are the tuner's own, in a hybrid."""
ALONE = (Suggested.UNSEEN, Suggested.FALLBACK)
NO_TRIES = (*NO_IDEAS, Verdict.INVALID, Verdict.ABANDONED)
"""Nothing was tried: measurements of what is known, proposals that came to no trial, and trials that came to no verdict."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What the next proposal is asked for."""

    without_keep: int
    """Tries in a row that were not kept."""
    wishes: tuple[str, ...] = ()
    look_back: int | None = None
    """After this trial: look back first, and write down what is known and what could be tried."""


def advise(records: Sequence[Record]) -> Advice:
    """For the next proposal after `records`, oldest first."""
    tries = [record for record in records if record.verdict not in NO_TRIES and _asked_for(record)]
    kept = [at for at, record in enumerate(tries) if record.verdict is Verdict.KEEP]
    since = tries[kept[-1] + 1 if kept else 0 :]
    number = len(since)
    wishes: list[str] = []
    if number >= OTHER_KINDS:
        wishes.append(_other_kinds(tries, since))
    if number >= LARGER:
        wishes.append(
            f"The last {number} tries were not kept. Do not change another number a little: change how something works, such as the network, "
            "the optimiser or what is computed in a step."
        )
    if number >= COMBINE and (pair := near_misses(records)):
        wishes.append(f"Or put near misses together: {'; '.join(f'try {one.trial} ({plain(one.idea, IDEA_WIDTH)})' for one in pair)}.")
    due = number >= REFLECT and (number - REFLECT) % REFLECT_EVERY == 0
    return Advice(without_keep=number, wishes=tuple(wishes), look_back=since[-1].trial if due else None)


def _asked_for(record: Record) -> bool:
    """In a hybrid what the tuner tried alone follows no wish, and is no sign that those were of no use; a keep is one for everybody."""
    return record.verdict is Verdict.KEEP or record.suggestion not in ALONE


def _other_kinds(tries: Sequence[Record], since: Sequence[Record]) -> str:
    seen = {record.kind for record in tries}
    untried = [str(kind) for kind in Kind if kind is not Kind.OTHER and kind not in seen]
    last = since[-1].kind
    return f"Not kind {last} this time" + (f"; nobody tried {', '.join(untried)} yet." if untried else ".")


def near_misses(records: Sequence[Record]) -> tuple[Record, ...]:
    """At least two of the best tries since the last keep that are not clearly worse than the champion, the best first.

    None before `COMBINE` tries in a row were not kept, whoever proposed them.
    """
    since = since_keep(records)
    if len(since) < COMBINE:
        return ()
    found = [one for one in since if one.gain is not None and one.threshold is not None and one.gain > -NEAR * one.threshold]
    best = sorted(found, key=lambda one: -(one.gain or 0.0))[:NEAR_MISSES]
    return tuple(best) if len(best) > 1 else ()


def since_keep(records: Sequence[Record]) -> list[Record]:
    """The tries since the last keep: all were made from the champion as it stands."""
    tries = [record for record in records if record.verdict not in NO_TRIES]
    kept = [at for at, record in enumerate(tries) if record.verdict is Verdict.KEEP]
    return tries[kept[-1] + 1 if kept else 0 :]
