"""Pure: a task and its machine in words for a model."""

from __future__ import annotations

from runner.task import Task


def budget(task: Task) -> str:
    """What a training may spend."""
    found = task.budget
    if found.steps is not None:
        tokens = "" if found.tokens is None else f", {found.tokens:,} training tokens"
        return (
            f"{found.steps:,} optimiser steps{tokens}. Computation beyond the unmodified file's is charged in bits per byte "
            f"({found.bpb_per_doubling:g} for twice as much)"
        )
    return f"{found.seconds:g} s of wall time for training, and {found.startup_seconds:g} s before it for compilation and the like, without data"


def limits(task: Task) -> str:
    """What a container may use."""
    found = task.limits
    return f"{found.memory_gb:g} GB of memory, {found.cpus:g} processors, {found.checkpoint_mb} MB for the saved weights"


def metric(task: Task) -> str:
    """What is measured, and which way is better."""
    name = task.score.metric
    if name is None:
        return "The score is val_bpb, bits per byte on text that no trial sees; lower is better."
    return f"The score is {name}, which the task's own command prints; {'higher' if task.score.maximise else 'lower'} is better."
