"""One file from a person (or from an agent that drives the command line), proposed once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from runner.trial import Proposal, Record


class HandAgent:
    """Implements `runner.protocols.Agent` for `autoresearch trial`."""

    name = "hand"

    def __init__(self, source: str, message: str) -> None:
        """`source` is the whole editable file, `message` the idea in a line, then maybe the rationale."""
        self._source: str | None = source
        self.token = hashlib.sha256(source.encode()).hexdigest()[:16]
        """Stands for the file: a trial of it that an earlier invocation left under way is this one."""
        idea, _, why = message.strip().partition("\n")
        self._idea, self._why = idea.strip(), why.strip()

    def propose(self, champion: str, history: Sequence[Record]) -> Proposal | None:  # noqa: ARG002 - the seam
        """The file, the first time; then nothing."""
        source, self._source = self._source, None
        if source is None:
            return None
        return Proposal(agent=self.name, idea=self._idea, why=self._why, source=source, token=self.token)

    def skip(self) -> None:
        """Propose nothing: the file's trial is under way already."""
        self._source = None
