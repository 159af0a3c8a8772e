"""The sections of `autoresearch.yaml` as frozen values; the one list of its keys, types, ranges and defaults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runner.fields import key

DATASETS = ("kjv", "fineweb-edu", "climbmix", "files")
_DAY = 86_400.0


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which text, and how it is cut into tokens and rows."""

    dataset: str = key(choices=DATASETS)
    vocab_size: int = key(low=257, high=1 << 16)
    """At most 65536: a token is stored in two bytes."""
    sequence_length: int = key(low=2, high=1 << 20)
    val_rows: int | None = key(None, low=1)
    """Validation rows that are scored; None: all there are."""
    train_shards: int = key(10, low=1)
    """Files to train on, for the data sets that come in shards."""
    revision: str = key("main")
    source: Path | None = None
    """Folder with the user's text; for `files` only."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a trial may spend on training: seconds or optimiser steps, exactly one of them."""

    seconds: float | None = key(None, above=0, high=7 * _DAY)
    steps: int | None = key(None, low=1)
    startup_seconds: float = key(300.0, above=0, high=_DAY)
    """Cap on the time before training, where there is nothing to learn from."""


@dataclass(frozen=True, kw_only=True)
class TaskLimits:
    """What one container may use."""

    memory_gb: float = key(16.0, above=0, high=4096)
    cpus: float = key(4.0, above=0, high=1024)
    pids: int = key(512, low=16, high=65_536)
    checkpoint_mb: int = key(1024, low=1)
    scratch_mb: int = key(2048, low=16)
    output_mb: int = key(1280, low=1)
    log_mb: int = key(8, low=1, high=1024)


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """How validation rows are handed to the model."""

    batch_rows: int = key(16, low=1, high=65_536)


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """What is needed for a keep."""

    baselines: int = key(3, low=1, high=100)
    sigma_prior: float = key(0.0007, low=0)
    sigma_prior_weight: int = key(6, low=0, high=1000)
    tau: float = key(0.0005, low=0)
    k: float = key(2.0, low=0)
