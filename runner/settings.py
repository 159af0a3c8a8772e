"""The sections of `autoresearch.yaml` as frozen values; the one list of its keys, types, ranges and defaults."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from runner.errors import UsageError
from runner.fields import check_section, key
from runner.yamlfile import as_mapping, show

DATASETS = ("kjv", "fineweb-edu", "climbmix", "files")
LEVELS = ("audited", "reported")
DIRECTIONS = ("minimise", "maximise")
METRIC = re.compile(r"[A-Za-z][A-Za-z0-9_./-]{0,63}")
COMMAND_LIMIT = 4096
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
    tokens: int | None = key(None, low=1)
    """With a budget in steps: training tokens that are handed out; None: all there are."""
    bpb_per_doubling: float = key(0.15, low=0)
    """What twice the computation is worth, bits per byte: computation beyond the baselines' is charged at this rate."""
    tolerance: float = key(0.01, low=0, high=1)
    """Part of the baselines' computation that is not charged, so that the noise of measuring it is not."""


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
class Guard:
    """A second metric that must stay within bounds, both inclusive; at least one of them is given."""

    name: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class _Bounds:
    """A guard as it is written under its name."""

    low: float | None = key(None)
    high: float | None = key(None)


def _metric(value: object, where: str, name: str) -> str:
    if not isinstance(value, str) or not METRIC.fullmatch(value):
        raise UsageError(
            f"{where}: {name}: {show(value)} is not a metric's name: a letter, then letters, digits or any of _ . / -, "
            "at most 64 in all"
        )
    return value


def _command(value: object, where: str, name: str) -> tuple[str, ...]:
    words = ["sh", "-c", value] if isinstance(value, str) else value
    if not isinstance(words, list) or not words:
        raise UsageError(f"{where}: {name}: must be a line for the shell or a list of words, not {show(value)}")
    for word in words:
        if not isinstance(word, str):
            raise UsageError(f"{where}: {name}: {show(word)} is not text: put it in quotes")
        if not word.strip() or "\0" in word or len(word) > COMMAND_LIMIT:
            raise UsageError(f"{where}: {name}: {show(word)} is empty, too long or holds a zero byte")
    return tuple(words)


def _guards(value: object, where: str, name: str) -> tuple[Guard, ...]:
    guards = []
    for metric, bounds in as_mapping(value, f"{where}: {name}").items():
        label = f"{name}.{metric}"
        checked = check_section(_Bounds, bounds, where, f"{label}.")
        guard = Guard(name=_metric(metric, where, label), **checked)
        if guard.low is None and guard.high is None:
            raise UsageError(f"{where}: {label}: give low, high or both")
        if guard.low is not None and guard.high is not None and guard.low > guard.high:
            raise UsageError(f"{where}: {label}: low ({guard.low:g}) is above high ({guard.high:g})")
        guards.append(guard)
    return tuple(guards)


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """Where the score comes from, and which way is better."""

    level: str = key("audited", choices=LEVELS)
    """`audited`: bits per byte, measured from outside; `reported`: a number that the task's own command prints."""
    batch_rows: int = key(16, low=1, high=65_536)
    """Audited: validation rows that the model is given at once."""
    audit_rounds: int = key(4, low=1, high=32)
    """Audited: how often every validation row is asked about before a score is believed."""
    confirm_rounds: int = key(4, low=1, high=32)
    """Audited: how often once more before a keep."""
    command: tuple[str, ...] | None = key(None, read=_command)
    """Reported: what is run in the container, in the task's folder."""
    metric: str | None = key(None, read=_metric)
    """Reported: the name on the line of standard output that holds the score."""
    direction: str | None = key(None, choices=DIRECTIONS)
    """Reported: which way is better."""
    guards: tuple[Guard, ...] = key((), read=_guards)
    """Reported: other metrics of the same output, and where they must lie for a keep."""

    @property
    def reported(self) -> bool:
        """True if the score is the command's own word."""
        return self.level == "reported"

    @property
    def maximise(self) -> bool:
        """True if a higher score is better."""
        return self.direction == "maximise"


@dataclass(frozen=True, kw_only=True)
class GateOptions:
    """What a proposal has to pass; `runner.gates.GateLimits` and `runner.dryrun` say why."""

    source_bytes: int = key(64 << 10, low=1 << 10, high=1 << 20)
    growth_bytes: int = key(4 << 10, low=0, high=1 << 20)
    text_bytes: int = key(4 << 10, low=0, high=1 << 20)
    dry_run: bool = key(default=True)
    """Audited: whether three steps of a file that somebody wrote are tried first."""


@dataclass(frozen=True, kw_only=True)
class CostOptions:
    """What the machine costs; it is told and counted, and changes no measurement."""

    gpu_usd_per_hour: float | None = key(None, above=0, high=10_000)
    """US dollars for an hour of the one GPU; None: nobody said."""


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """What is needed for a keep.  docs/verdict.md has the figures behind the defaults."""

    baselines: int = key(3, low=1, high=100)
    """How often the unmodified file is measured first."""
    sigma_prior: float = key(0.0007, low=0)
    """Standard deviation of a score over seeds, known beforehand."""
    sigma_prior_weight: int = key(2, low=0, high=1000)
    """Degrees of freedom that this counts for."""
    tau: float = key(0.0005, low=0)
    """The smallest gain worth keeping."""
    k: float = key(2.3, low=0)
    """Standard errors of the difference that a gain must exceed, were sigma known."""
    k_at_once: float = key(2.8, low=0)
    """The same as long as the candidate was measured only once."""
    near: float = key(0.4, low=0)
    """A gain of fewer standard errors is not measured again."""
    repeats: int = key(3, low=0, high=3)
    """How often a candidate near the line is measured again at most."""
    champion_measurements: int = key(8, low=1, high=100)
    """How often one champion is measured at most."""
    remeasure_champion_every: int = key(15, low=0)
    """Trials since the champion was last measured, after which it is measured again; 0: never for that reason."""
    quarantine: float | None = key(None, above=0)
    """A larger gain is not believed from one measurement; None: any is."""
    simpler_by: float = key(0.05, above=0, high=1)
    """Part of the champion's code that a simplification does without."""
    simpler_k: float = key(1.0, low=0)
    """By how many standard errors a simplification must be better than `tau` worse than the best so far."""
