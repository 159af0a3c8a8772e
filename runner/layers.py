"""Read the layers of a task (file, preset, flags), each checked by itself, and lay them over each other.

Every layer is checked before it is merged, so a message names the file that is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Any

from runner.constants import NAME
from runner.errors import UsageError
from runner.fields import check_section, key, names, require, unknown_key
from runner.literals import Value
from runner.settings import (
    LEVELS,
    Budget,
    CostOptions,
    DataOptions,
    GateOptions,
    JudgeOptions,
    ScoreOptions,
    TaskLimits,
)
from runner.yamlfile import as_mapping, read_mapping, show

FILE = "autoresearch.yaml"
FLAGS = "flags"


@dataclass(frozen=True, kw_only=True)
class Paths:
    """What only `autoresearch.yaml` can set; relative to it."""

    editable: str = key()
    prepare: str | None = key(None)
    brief: str = key("program.md")
    space: str | None = key(None)
    presets: str | None = key(None)
    preset: str | None = key(None)
    """No path: the name of the preset that holds unless a flag names another."""


@dataclass(frozen=True, kw_only=True)
class About:
    """What only a preset says."""

    description: str = key("")
    min_gpu_memory_gb: float | None = key(None, above=0)
    next_smaller: str | None = key(None)


@dataclass(frozen=True, kw_only=True)
class Data(DataOptions):
    """The section as it is written."""

    source: str | None = key(None)  # type: ignore[assignment]
    """Becomes a path when all layers are known."""


SECTIONS: dict[str, type] = {
    "data": Data,
    "budget": Budget,
    "limits": TaskLimits,
    "score": ScoreOptions,
    "gates": GateOptions,
    "judge": JudgeOptions,
    "cost": CostOptions,
}

AUDITED, REPORTED = LEVELS
_REPORTED_KEYS = ("score.command", "score.metric", "score.direction", "score.guards")
_SHARED_KEYS = ("score.level", "budget.seconds", "budget.startup_seconds")
_ONLY_WITH = {
    AUDITED: (
        "prepare",
        "data",
        *(
            name
            for name in (*names(ScoreOptions, "score."), *names(Budget, "budget."))
            if name not in (*_SHARED_KEYS, *_REPORTED_KEYS)
        ),
        "limits.checkpoint_mb",
        "limits.output_mb",
        "gates.dry_run",
    ),
    REPORTED: _REPORTED_KEYS,
}
"""Keys that mean something at one level of the score alone."""
_NEEDED = ("score.command", "score.metric", "score.direction", "judge.tau")
"""Where the score is reported: nobody else can know which way is better, nor what is worth keeping in that unit."""
BASELINES_WITHOUT_PRIOR = 3
"""Fewer measurements say next to nothing about the noise."""


@dataclass(kw_only=True)
class Layer:
    """One checked source of settings."""

    where: str
    plain: dict[str, Any] = field(default_factory=dict)
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    constants: dict[str, Value] = field(default_factory=dict)


def read_base(root: Path) -> Layer:
    """The task's own file.  Raises `UsageError`."""
    path = root / FILE
    if not path.is_file():
        raise UsageError(f"{root} is not a task: it has no {FILE} (`autoresearch init DIR` makes one)")
    base = check_layer(read_mapping(path, FILE), FILE, Paths)
    require(Paths, base.plain, FILE, "")
    return base


def read_preset(root: Path, presets: str | None, name: str) -> Layer:
    """One preset of the folder `presets`.  Raises `UsageError`, naming those there are."""
    known = sorted(path.stem for path in (root / presets).glob("*.yaml")) if presets else []
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(
            f"there is no preset {show(name)}; {hint}this task has: {', '.join(known) or 'none'}"
        )
    where = _relative(root, f"{presets}/{name}.yaml", FILE)
    return check_layer(read_mapping(root / where, where), where, About)


def check_layer(raw: Mapping[str, object], where: str, plain: type | None) -> Layer:
    """A mapping as a layer; `plain` has the keys that stand beside the sections.  Raises `UsageError`."""
    layer = Layer(where=where)
    own = {item.name for item in fields(plain)} if plain else set()
    for name, value in raw.items():
        if name in SECTIONS:
            layer.sections[name] = check_section(
                SECTIONS[name], {} if value is None else value, where, f"{name}."
            )
        elif name == "constants":
            layer.constants = _check_constants({} if value is None else value, where)
        elif plain and name in own:
            layer.plain |= check_section(plain, {name: value}, where)
        elif name in {item.name for item in fields(Paths)}:
            raise UsageError(f"{where}: {name}: only {FILE} can set it")
        else:
            raise unknown_key(where, "", name, [*SECTIONS, "constants", *own])
    budget = layer.sections.get("budget", {})
    if budget.get("seconds") is not None and budget.get("steps") is not None:
        raise UsageError(f"{where}: budget: give seconds or steps, not both")
    return layer


def _check_constants(raw: object, where: str) -> dict[str, Value]:
    constants: dict[str, Value] = {}
    for name, value in as_mapping(raw, f"{where}: constants").items():
        if not NAME.fullmatch(name):
            raise UsageError(f"{where}: constants.{name}: a constant's name is in upper case")
        items: list[Any] = list(value) if isinstance(value, list | tuple) else [value]
        if not all(isinstance(item, int | float | str | bool) for item in items):
            raise UsageError(
                f"{where}: constants.{name}: must be a number, text, true, false or a list of these"
            )
        constants[name] = tuple(items) if isinstance(value, list | tuple) else items[0]
    return constants


def merge(layers: Sequence[Layer]) -> dict[str, dict[str, Any]]:
    """The sections, later layers over earlier ones; seconds and steps replace each other."""
    merged: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    for layer in layers:
        for name, values in layer.sections.items():
            if name == "budget" and {"seconds", "steps"} & values.keys():
                merged[name] |= {"seconds": None, "steps": None}
            merged[name] |= values
    return merged


def check_level(layers: Sequence[Layer]) -> str:
    """The level of the task's score, which its own file alone says.

    Raises `UsageError` naming the layer and the key that belongs to the other level.
    """
    base, *above = layers
    for layer in above:
        if "level" in layer.sections.get("score", {}):
            raise UsageError(f"{layer.where}: score.level: only {base.where} can set it")
    level = str(base.sections.get("score", {}).get("level", AUDITED))
    other = REPORTED if level == AUDITED else AUDITED
    for layer in layers:
        for name in _ONLY_WITH[other]:
            if _given(name, {**layer.plain, **layer.sections}):
                raise UsageError(f"{layer.where}: {name}: goes with score.level {other} only, and this task's is {level}")
    if level == AUDITED and not _given("prepare", base.plain):
        raise UsageError(f"{base.where}: prepare is missing")
    return level


def _given(name: str, sections: Mapping[str, Any]) -> bool:
    section, _, inside = name.partition(".")
    value = sections.get(section)
    return value is not None and (not inside or value.get(inside) is not None)


def check_combinations(merged: Mapping[str, dict[str, Any]], where: str, level: str) -> None:
    """Raise `UsageError` for what is missing or impossible now that everything is known.

    Where a reported score has no prior of its noise, the weight of the prior in `merged` becomes 0.
    """
    for name, kind in SECTIONS.items():
        if name != "data" or level == AUDITED:
            require(kind, merged[name], where, f"{name}.")
    for name in _NEEDED if level == REPORTED else ():
        if not _given(name, merged):
            raise UsageError(f"{where}: {name} is missing: a task with score.level {level} needs it")
    if merged["budget"].get("seconds") is None and merged["budget"].get("steps") is None:
        steps = " or steps" if level == AUDITED else ""
        raise UsageError(f"{where}: budget: give seconds{steps}")
    if level == AUDITED:
        _check_sizes(TaskLimits(**merged["limits"]), merged["data"], where)
    else:
        _own_noise(merged["judge"], where)
    judge = JudgeOptions(**merged["judge"])
    if judge.baselines == 1 and judge.sigma_prior_weight == 0:
        raise UsageError(
            f"{where}: judge: one baseline and sigma_prior_weight 0 leave no estimate of the noise"
        )


def _own_noise(judge: dict[str, Any], where: str) -> None:
    """The shipped prior is in bits per byte; without one in the metric's own unit the baselines alone count."""
    if "sigma_prior" in judge:
        return
    if judge.get("sigma_prior_weight"):
        raise UsageError(f"{where}: judge.sigma_prior_weight: goes with judge.sigma_prior, in the unit of the metric")
    judge["sigma_prior_weight"] = 0
    baselines = JudgeOptions(**judge).baselines
    if baselines < BASELINES_WITHOUT_PRIOR:
        raise UsageError(
            f"{where}: judge.baselines: without judge.sigma_prior at least {BASELINES_WITHOUT_PRIOR} are needed, not {baselines}"
        )


def _check_sizes(limits: TaskLimits, data: Mapping[str, Any], where: str) -> None:
    output = limits.output_mb
    if limits.checkpoint_mb > output:
        raise UsageError(
            f"{where}: limits.checkpoint_mb ({limits.checkpoint_mb}) is above limits.output_mb ({output})"
        )
    if output >= limits.memory_gb * 1024:
        raise UsageError(
            f"{where}: limits.output_mb ({output}) does not fit into limits.memory_gb ({limits.memory_gb:g})"
        )
    scores = (data.get("val_rows") or 0) * data["sequence_length"] * 4
    if scores > output << 20:
        raise UsageError(
            f"{where}: data.val_rows: the scores of these rows take {scores >> 20} MB, above limits.output_mb ({output})"
        )


def source_folder(root: Path, layers: Sequence[Layer], data: Mapping[str, Any]) -> Path | None:
    """The user's folder of text: inside the task if a file names it, anywhere if a flag does."""
    naming = [layer for layer in layers if layer.sections.get("data", {}).get("source") is not None]
    wants = data["dataset"] == "files"
    if not naming:
        if wants:
            raise UsageError("data.dataset: `files` needs data.source, the folder with your text")
        return None
    if not wants:
        raise UsageError(
            f"{naming[-1].where}: data.source: goes with data.dataset `files` only, not with {data['dataset']}"
        )
    written = str(data["source"])
    if naming[-1].where == FLAGS:
        return Path(written).expanduser().resolve()
    return root / _relative(root, written, f"{naming[-1].where}: data.source")


def task_path(root: Path, base: Layer, name: str) -> str | None:
    """The path that `autoresearch.yaml` has under `name`.  Raises `UsageError` if it is outside the task or not there."""
    written = base.plain.get(name, Paths.__dataclass_fields__[name].default)
    if written is None:
        return None
    path = _relative(root, written, f"{FILE}: {name}")
    if not (root / path).exists():
        raise UsageError(f"{FILE}: {name}: there is no {path}")
    return path


def _relative(root: Path, written: str, label: str) -> str:
    path = PurePosixPath(written)
    if not written or re.search(r"[\x00-\x1f\\]", written):
        raise UsageError(f"{label}: {show(written)} is not a path")
    inside = not path.is_absolute() and ".." not in path.parts and not written.startswith("~")
    if not inside or not (root / path).resolve().is_relative_to(root):
        raise UsageError(f"{label}: {written} leaves the task's folder")
    if {".git", ".autoresearch"} & set(path.parts):
        raise UsageError(f"{label}: {written} is not part of the task")
    return str(path)
