"""Whole fakes of the seams, type-checked against the protocols."""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from runner.loop import Measures
from runner.measure import Caps, Measurement
from runner.notes import Notes
from runner.prepare import FORMAT
from runner.protocols import Agent, Sandbox, View
from runner.trial import (
    AuditFacts,
    Compute,
    Ending,
    Progress,
    Proposal,
    Record,
    Refusal,
    Result,
    Seconds,
    TrialSpec,
)

VOCAB, LENGTH, ROWS = 300, 8, 6


def prepared_folder(path: Path) -> Path:
    """A tiny folder of prepared data: one byte a token, so that val_bpb is nll / ln 2; the first row has none."""
    contents = {
        "prepare/data.json": json.dumps({"vocab_size": VOCAB, "sequence_length": LENGTH}).encode(),
        "prepare/tokenizer.json": b"{}",
        "train/rows.bin": np.ones((4, LENGTH + 1), "<u2").tobytes(),
        "val/rows.bin": np.arange(1, ROWS * (LENGTH + 1) + 1, dtype="<u2").tobytes(),
        "test/rows.bin": np.ones((1, LENGTH + 1), "<u2").tobytes(),
    }
    for name, data in contents.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    lengths = np.ones(VOCAB, np.uint16)
    lengths[: LENGTH + 2] = 0  # the tokens of the first validation row
    np.save(path / "prepare" / "token_bytes.npy", lengths)
    names = [*contents, "prepare/token_bytes.npy"]
    files = {
        name: {
            "bytes": (path / name).stat().st_size,
            "sha256": hashlib.sha256((path / name).read_bytes()).hexdigest(),
        }
        for name in names
    }
    manifest = {
        "format": FORMAT,
        "dataset": "kjv",
        "license": "none",
        "options": {"vocab_size": VOCAB, "sequence_length": LENGTH},
        "files": files,
        "counts": {"documents": {}, "rows": {"train": 4, "val": ROWS, "test": 1}, "tokens": {}},
        "val_bytes": (ROWS - 1) * LENGTH,
        "created": "2026-11-21T00:00:00+00:00",
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def safetensors(elements: int) -> bytes:
    """A file with one tensor."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [elements], "data_offsets": [0, 4 * elements]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(4 * elements)


@dataclass
class FakeSandbox:
    """Scores a candidate by its `SCORE = x` line (bits per byte); `CRASH` in the file crashes its training."""

    raises: list[BaseException | None] = field(default_factory=list)
    """Raised by the next calls, in turn; None lets one pass."""
    specs: list[TrialSpec] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    budgets: list[dict[str, float]] = field(default_factory=list)
    """What each training was told it may spend."""

    def run(
        self,
        spec: TrialSpec,
        destination: Path,
        *,
        created: Callable[[str], None],
        progress: Callable[[Progress], None],
    ) -> Result:
        self.specs.append(spec)
        created(f"container-{len(self.specs)}")
        error = self.raises.pop(0) if self.raises else None
        if error is not None:
            raise error
        progress(Progress(phase=spec.phase, step=1, loss=2.0, seconds=0.5))
        files = {file.name: file.path for file in (*spec.files, *spec.gated_files)}
        source = files["train.py"].read_text()
        if spec.phase == "train":
            told = json.loads(files["trial.json"].read_text())
            self.seeds.append(told["seed"])
            self.budgets.append(told["budget"])
            return self._train(source, destination)
        return self._claim(source, files["rows.bin"], destination)

    def reap(self, labels: dict[str, str]) -> int:
        return 0

    def _train(self, source: str, destination: Path) -> Result:
        if "CRASH" in source:
            return Result(ending=Ending.CRASHED, reason="exit code 1", exit_code=1, seconds=1.0, total_seconds=1.5)
        if "MEMORY" in source:
            return Result(ending=Ending.OUT_OF_MEMORY, reason="the kernel ended a process", seconds=1.0)
        (destination / "checkpoint.safetensors").write_bytes(safetensors(7))
        (destination / "summary.json").write_text('{"num_steps": 20, "total_tokens_M": 0.5, "odd": "text", "big": 1e400, "\\ud800": 1, "a b": 2}')
        (destination / "progress.json").write_text('{"step": 20, "losses": [[1, 3.5], [2, "x"], [20, 2.5]]}')
        names = ("checkpoint.safetensors", "summary.json", "progress.json")
        return self._finished(tuple((name, destination / name) for name in names), seconds=2.0)

    def _claim(self, source: str, rows: Path, destination: Path) -> Result:
        found = re.search(r"SCORE = ([\d.]+)", source)
        assert found is not None
        handed = np.fromfile(rows, "<u2").reshape(ROWS, LENGTH + 1)
        nll = np.full((ROWS, LENGTH), float(found[1]) * math.log(2), "<f4")
        # The row without bytes counts nowhere: the score is right only if the rows' order is undone.
        nll[handed[:, 0] == 1] += 50
        nll.tofile(destination / "nll.bin")
        return self._finished((("nll.bin", destination / "nll.bin"),), seconds=1.0)

    def _finished(self, outputs: tuple[tuple[str, Path], ...], *, seconds: float) -> Result:
        return Result(
            ending=Ending.FINISHED,
            reason="exit code 0",
            exit_code=0,
            startup_seconds=0.5,
            seconds=seconds,
            total_seconds=seconds + 1,
            outputs=outputs,
            peak_memory_bytes=1 << 29,
        )


@dataclass
class FakeMeasurer:
    """Scores a candidate by what its file says.

    `SCORE = x` is its val_bpb; `NOISE = a, b, c` is added in its first, second and third measurement (by the seed's rest);
    `CONFIRMED = x` is what a confirmation gives instead; `CHARGE = x` is its charge.  `CRASH` ends it, `CRASH 2` only its
    second measurement; `MEMORY` ends it out of memory; `LIES` is found out when it is confirmed.
    """

    raises: list[BaseException | None] = field(default_factory=list)
    """Raised by the next calls, in turn; None lets one pass."""
    calls: list[tuple[str, int, int]] = field(default_factory=list)
    """What was asked, of which trial, with which seed."""
    references: list[list[Path]] = field(default_factory=list)
    disturbed: int = 0
    """So many of the next trainings are disturbed."""
    level: str = "audited"
    standard_error: float = 0.0
    detectable: float = 0.0

    def measure(
        self,
        trial: int,
        folder: Path,
        *,
        seed: int,
        caps: Caps,
        references: Sequence[Path],
        notes: Notes,
        progress: Callable[[Progress], None],
    ) -> Measurement:
        self.references.append(list(references))
        self._begin("measure", trial, seed, notes, progress)
        source = (folder / "train.py").read_text()
        seconds = Seconds(startup=0.5, train=2.0, claim=1.0, audit=0.5, total=5.0)
        number = seed % 4 + 1
        if self.disturbed:
            self.disturbed -= 1
            return Measurement(ending=Ending.INVALID_ENVIRONMENT, reason="train: process 7 computed on its GPU too", seconds=seconds)
        crash = re.search(r"CRASH ?(\d?)", source)
        if crash and crash[1] in ("", str(number)):
            return Measurement(ending=Ending.CRASHED, reason="train: exit code 1", seconds=seconds)
        if "MEMORY" in source:
            return Measurement(ending=Ending.OUT_OF_MEMORY, reason="train: the kernel ended a process", seconds=seconds)
        (folder / "checkpoint.safetensors").write_bytes(safetensors(7))
        noise = [float(part) for part in _said(source, "NOISE", "0").split(",")]
        score = float(_said(source, "SCORE", "nan")) + noise[min(number, len(noise)) - 1]
        return self._scored(source, score, seed=seed, seconds=seconds)

    def confirm(
        self,
        trial: int,
        folder: Path,
        measured: Measurement,
        *,
        caps: Caps,
        references: Sequence[Path],
        notes: Notes,
        progress: Callable[[Progress], None],
    ) -> Measurement:
        assert measured.seed is not None
        self._begin("confirm", trial, measured.seed, notes, progress)
        source = (folder / "train.py").read_text()
        if "LIES" in source:
            return replace(measured, ending=Ending.TAMPERED, reason="audit: it answers otherwise", val_bpb=None, score_level=None)
        return replace(measured, val_bpb=float(_said(source, "CONFIRMED", str(measured.val_bpb))))

    def _begin(
        self,
        what: str,
        trial: int,
        seed: int,
        notes: Notes,
        progress: Callable[[Progress], None],
    ) -> None:
        self.calls.append((what, trial, seed))
        notes.write("created", phase=what, container=f"container-{len(self.calls)}")
        error = self.raises.pop(0) if self.raises else None
        if error is not None:
            raise error
        progress(Progress(phase=what, step=1, loss=2.0, seconds=0.5))

    def _scored(self, source: str, score: float, *, seed: int, seconds: Seconds) -> Measurement:
        return Measurement(
            ending=Ending.FINISHED,
            reason="scored",
            seed=seed,
            val_bpb=score,
            score_level=self.level,
            charge=float(_said(source, "CHARGE", "0")) or None,
            slack=0.001,
            compute_seconds=Compute(train=2.0, claim=0.5, audit=1.0, startup=1.5),
            audit=AuditFacts(
                rounds=4,
                k=20,
                correction=0.0001,
                standard_error=self.standard_error,
                detectable_blind=self.detectable,
                detectable_informed=10 * self.detectable,
                worst=0.001,
            ),
            memory_gb=0.5,
            params=7,
            steps=20,
            tokens=500_000,
            seconds=seconds,
            summary=(("num_steps", "20"),),
            losses=((1, 3.5), (20, 2.5)),
            guards_broken="loss 3 is above 2" if "GUARD" in source else None,
        )


def _said(source: str, name: str, otherwise: str) -> str:
    found = re.search(rf"{name} = (.+)", source)
    return otherwise if found is None else found[1]


@dataclass
class ScriptedAgent:
    """Proposes the given files, or refusals, in turn."""

    sources: list[str | Refusal]
    name: str = "scripted"
    histories: list[Sequence[Record]] = field(default_factory=list)

    def propose(self, champion: str, history: Sequence[Record]) -> Proposal | Refusal | None:
        self.histories.append(history)
        done = sum(record.agent == self.name for record in history)
        if done >= len(self.sources):
            return None
        source = self.sources[done]
        if isinstance(source, Refusal):
            return source
        return Proposal(agent=self.name, idea=f"idea {done}", why="because", source=source, token=str(done))


@dataclass
class RecordingView:
    """Remembers what it was shown."""

    seen: list[str] = field(default_factory=list)

    def started(self, trial: int, idea: str) -> None:
        self.seen.append(f"started {trial}")

    def progress(self, trial: int, progress: Progress) -> None:
        self.seen.append(f"{trial} {progress.phase}")

    def finished(self, record: Record, records: Sequence[Record]) -> None:
        self.seen.append(f"{record.trial} {record.verdict}")


_sandbox: Sandbox = FakeSandbox()
_measurer: Measures = FakeMeasurer()
_agent: Agent = ScriptedAgent([])
_view: View = RecordingView()
