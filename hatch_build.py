"""Hatch's force-include, for real wheels only: an editable install finds these beside `runner`.

As plain configuration it would copy them into the environment of an editable install too, and go stale there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

TRAVELS = ("trainer", "images", "examples", "program.md", "autoresearch.yaml")
"""Read through `runner.resources`."""


class TravellingData(BuildHookInterface):  # type: ignore[type-arg]
    """Adds what travels with the package."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it builds; `version` is the kind of wheel."""
        if version == "editable":
            return
        for name in TRAVELS:
            build_data["force_include"][str(Path(self.root) / name)] = f"runner/_data/{name}"
