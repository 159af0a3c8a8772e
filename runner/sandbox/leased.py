"""A sandbox whose containers use a leased GPU: the lease says which one may run, and until when."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from runner.errors import StuckContainerError
from runner.leases import Lease
from runner.protocols import Sandbox
from runner.sandbox.container import ORPHAN_GRACE_SECONDS
from runner.trial import Progress, Result, TrialSpec


class LeasedSandbox:
    """Implements `runner.protocols.Sandbox` around another."""

    def __init__(self, inner: Sandbox, lease: Lease) -> None:
        self._inner, self._lease = inner, lease

    def run(
        self,
        spec: TrialSpec,
        destination: Path,
        *,
        created: Callable[[str], None],
        progress: Callable[[Progress], None],
    ) -> Result:
        """See `Sandbox.run`."""
        # The container ends by itself then, if nobody is left to end it.
        seconds = spec.limits.startup_seconds + spec.limits.seconds + ORPHAN_GRACE_SECONDS

        def noted(identifier: str) -> None:
            self._lease.cover(identifier, seconds)
            created(identifier)

        try:
            result = self._inner.run(spec, destination, created=noted, progress=progress)
        except StuckContainerError:
            self._lease.stuck()
            raise
        # Not after an error: then the container may be there still.
        self._lease.uncover()
        return result

    def reap(self, labels: dict[str, str]) -> int:
        """See `Sandbox.reap`."""
        return self._inner.reap(labels)
