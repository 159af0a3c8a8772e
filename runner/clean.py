"""`make clean`: remove from the engine what belongs to one state folder, and nothing else."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from runner.errors import AutoresearchError, EngineError
from runner.setup.steps import Stopwatch, say


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m runner.clean", description=__doc__)
    parser.add_argument("--state", type=Path, default=Path(".autoresearch"))
    state = parser.parse_args(arguments).state.resolve()
    watch = Stopwatch()
    if not state.is_dir():
        say("clean: nothing was made here")
        return 0
    try:
        removed = clean(state)
    except EngineError as error:
        say(f"clean: the engine does not answer, so nothing was removed from it: {error}")
        return 0
    except AutoresearchError as error:
        say(f"clean: {error}")
        return error.exit_code
    say(f"clean: removed {removed} from the engine ({watch})")
    return 0


def clean(state: Path, *, shared: bool = True) -> str:
    """Remove this state folder's containers and volumes, and the images that were built for it.

    `shared`: also what this user's other checkouts may use and would make again: bases without an image on
    them, and the cache of downloads.
    """
    from runner.cli.parts import owner_labels
    from runner.images import BASE_REPOSITORY, copies, copying_labels, list_images
    from runner.sandbox.build import Builder
    from runner.sandbox.job import cache_volume, job_labels

    with Builder.connect() as engine:
        containers = volumes = 0
        for labels in (owner_labels(state), job_labels(state / "data"), copying_labels(state)):
            containers += engine.remove_containers(labels)
            volumes += engine.remove_volumes(labels)
        images = 0
        for record in list_images(state):
            ours = [copy.id for copy in copies(engine, record)] if record.copied_here else []
            images += sum(map(engine.remove, [*ours, record.id] if record.built_here else ours))
        if shared:
            volumes += engine.remove_volume(cache_volume())
            images += sum(engine.remove(base) for base in engine.tagged(BASE_REPOSITORY))
            engine.remove_old_halves()
    return f"{containers} containers, {volumes} volumes, {images} images"


if __name__ == "__main__":
    sys.exit(main())
