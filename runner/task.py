"""A task: `autoresearch.yaml`, one preset and the flags, checked and laid over each other into a frozen value.

Every layer is checked by itself, so a message names the file that is wrong.  A task is repository content
that somebody else may have written: it names no mounts, hosts, environment, images or networks, and no
path outside its folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.constants import set_constants
from runner.errors import UsageError
from runner.layers import (
    AUDITED,
    FILE,
    FLAGS,
    SECTIONS,
    check_combinations,
    check_layer,
    check_level,
    merge,
    read_base,
    read_preset,
    source_folder,
    task_path,
)
from runner.literals import Value
from runner.settings import (
    Budget,
    CostOptions,
    DataOptions,
    GateOptions,
    JudgeOptions,
    ScoreOptions,
    TaskLimits,
)

CPU_PRESET = "smoke"


@dataclass(frozen=True, kw_only=True)
class PresetInfo:
    """What a preset says about itself."""

    name: str
    description: str = ""
    min_gpu_memory_gb: float | None = None
    """None: not meant to be chosen for a GPU."""
    next_smaller: str | None = None


@dataclass(frozen=True, kw_only=True)
class Task:
    """Everything a run needs to know about its task.  Paths are relative to `root` and stay inside it."""

    root: Path
    editable: str
    prepare: str | None
    """Folder with the fixed side that trials import; None where the score is reported."""
    brief: str
    space: str | None
    presets: str | None
    data: DataOptions | None
    """None where the score is reported."""
    budget: Budget
    limits: TaskLimits
    score: ScoreOptions
    gates: GateOptions
    judge: JudgeOptions
    cost: CostOptions = field(default_factory=CostOptions)
    constants: Mapping[str, Value]
    """What the baseline's editable file has set in it (`apply_preset`)."""
    preset: str | None = None
    description: str = ""
    min_gpu_memory_gb: float | None = None
    next_smaller: str | None = None


_PATHS = ("editable", "prepare", "brief", "space", "presets")


def load_task(folder: Path, preset: str | None = None, overrides: Mapping[str, object] | None = None) -> Task:
    """The task in `folder`, with a preset and flags laid over it.

    `overrides` has the sections of the file (`{"budget": {"steps": 5}}`).  Later layers win key by key; a
    budget in seconds replaces one in steps and the other way round.  Raises `UsageError` naming file and key.
    """
    root = folder.resolve()
    base = read_base(root)
    paths: dict[str, Any] = {name: task_path(root, base, name) for name in _PATHS}
    layers, about = [base], {}
    if preset is not None:
        layers.append(read_preset(root, paths["presets"], preset))
        about = {"preset": preset, **layers[-1].plain}
    if overrides:
        layers.append(check_layer(overrides, FLAGS, None))
    level = check_level(layers)
    merged = merge(layers)
    check_combinations(merged, " + ".join(layer.where for layer in layers), level)
    sections: dict[str, Any] = {
        name: kind(**merged[name]) for name, kind in SECTIONS.items() if name != "data"
    }
    data = None
    if level == AUDITED:
        data = DataOptions(**{**merged["data"], "source": source_folder(root, layers, merged["data"])})
    constants = {name: value for layer in layers for name, value in layer.constants.items()}
    return Task(root=root, data=data, constants=constants, **paths, **sections, **about)


def list_presets(folder: Path) -> tuple[PresetInfo, ...]:
    """The presets of the task in `folder`, by name.  Raises `UsageError` if one of them is wrong."""
    root = folder.resolve()
    presets = task_path(root, read_base(root), "presets")
    if presets is None:
        return ()
    names = sorted(path.stem for path in (root / presets).glob("*.yaml"))
    return tuple(PresetInfo(name=name, **read_preset(root, presets, name).plain) for name in names)


def default_preset(folder: Path) -> str | None:
    """The preset that the task's own file names, if any."""
    name = read_base(folder.resolve()).plain.get("preset")
    return None if name is None else str(name)


def choose_preset(
    folder: Path, *, cpu: bool, gpu_memory_gb: float | None = None, named: str | None = None
) -> str | None:
    """Which preset a run takes: the one that was named, by a flag or else by the task's file, then `smoke` on the CPU
    or the largest that fits the card.

    None: the task has no presets, its own values hold.  Raises `UsageError` if no preset fits.
    """
    named = named or default_preset(folder)
    if named is not None:
        return named
    presets = list_presets(folder)
    if cpu:
        return CPU_PRESET if any(preset.name == CPU_PRESET for preset in presets) else None
    sized = [
        (preset.min_gpu_memory_gb, preset.name) for preset in presets if preset.min_gpu_memory_gb is not None
    ]
    if not sized or gpu_memory_gb is None:
        return None
    fitting = [pair for pair in sized if pair[0] <= gpu_memory_gb]
    if not fitting:
        need, name = min(sized)
        raise UsageError(
            f"no preset fits a GPU with {gpu_memory_gb:.1f} GB: the smallest, {name}, wants {need:g} GB; "
            f"name it with --preset {name} to try all the same, or use --cpu"
        )
    return max(fitting)[1]


def apply_preset(source: str, task: Task) -> str:
    """`source` with the task's constants set.  Raises `UsageError` naming preset, constant and file."""
    if not task.constants:
        return source  # which need not be Python
    origin = f"preset {task.preset}" if task.preset else FILE
    try:
        return set_constants(source, task.constants)
    except UsageError as error:
        raise UsageError(f"{origin} does not fit {task.editable}: {error}") from None


def warnings_for(task: Task, *, cpu: bool) -> tuple[str, ...]:
    """What a person should know before the first trial, a sentence each."""
    if task.score.reported:
        return (f"{task.score.metric} is the command's own word: no score of this run is verified",)
    if cpu and task.budget.seconds is not None:
        message = (
            "a budget in seconds on the CPU measures what else the machine does: use steps (--preset smoke)"
        )
        return (message,)
    return ()
