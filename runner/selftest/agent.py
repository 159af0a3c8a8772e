"""Proposes the attacks, one after the other, each against the unmodified baseline."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from runner.prepare import Prepared
from runner.selftest.catalogue import Attack
from runner.selftest.outcome import Evidence, Outcome, weigh
from runner.trial import Proposal, Record, Verdict

NAME = "selftest"

Gather = Callable[[Sequence[Record]], Evidence]
"""What the trials of an attack left outside their containers."""


class AttackAgent:
    """Implements `runner.protocols.Agent`.

    An attack that was kept is the run's champion from then on, so nothing more is proposed: the rest needs a new run.
    """

    name = NAME

    def __init__(
        self,
        attacks: Sequence[Attack],
        prepared: Callable[[], Prepared],
        gather: Gather,
        tell: Callable[[Outcome], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`tell` gets the outcome of each attack as soon as it is known."""
        self.left = list(attacks)
        """What was not proposed yet."""
        self._prepared, self._gather, self._tell, self._clock = prepared, gather, tell, clock
        self._under_way: Attack | None = None
        self._before, self._began = 0, 0.0

    def propose(self, champion: str, history: Sequence[Record]) -> Proposal | None:
        """The next attack, made from the champion's source, after the one before was weighed."""
        self.settle(history)
        if not self.left or any(record.verdict is Verdict.KEEP for record in history):
            return None
        self._under_way, self._before, self._began = self.left.pop(0), len(history), self._clock()
        attack = self._under_way
        source = attack.candidate(champion, self._prepared())
        return Proposal(agent=self.name, idea=f"{attack.area}: {attack.name}", source=source, token=attack.name)

    def settle(self, history: Sequence[Record]) -> None:
        """Weigh the attack that is under way, if its trial was judged."""
        attack = self._under_way
        own = [record for record in history[self._before :] if attack is not None and record.token == attack.name]
        if attack is None or not own:
            return
        commits = {record.commit for record in own if record.commit is not None}
        records = [record for record in history[self._before :] if record in own or record.commit in commits]
        baselines = [record for record in history if record.verdict is Verdict.BASELINE]
        outcome = weigh(attack, records, baselines, self._gather(records), self._clock() - self._began)
        self._under_way = None
        self._tell(outcome)
