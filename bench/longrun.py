"""A run with as many trials as asked for, as a search over weeks would leave it, made in seconds and without a container.

The journal has every event of every trial, with texts, measurements and loss curves of the length that real runs have;
candidates, their references and their notes are in a real repository, and each trial has its file on the disk.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from runner import gates, ledger
from runner.cli import parts
from runner.ledger import trial_folder
from runner.measure import Measurement
from runner.records import brief, measurement_to_json
from runner.run import SEEDS_PER_RUN, SEEDS_PER_TRIAL
from runner.task import Task, load_task
from runner.trial import AuditFacts, Compute, Ending, Kind, Measured, Record, Seconds, Verdict
from runner.tried import FINGERPRINTS
from runner.workspace import NOTES_REF, CommitText, Workspace

TAG, PRESET = "long", "smoke"
BASELINES, LOSSES, CONTAINERS = 3, 160, 3
CREATED = "2026-01-01T00:00:00+00:00"
CRASHED, REFUSED, REPEATED, KEPT = 0.08, 0.03, 0.1, 8.0
"""Parts of the trials; of kept ones, so many times the logarithm of their number."""
WORDS = (
    "attention", "optimiser", "schedule", "residual", "width", "depth", "momentum", "decay", "warmup",
    "embedding", "rotary", "norm", "gate", "value", "batch", "gradient", "clip", "window",
    "head", "projection", "init", "scale", "learning", "rate", "cosine", "linear", "muon",
    "loss", "token",
)


@dataclass(frozen=True, kw_only=True)
class LongRun:
    """Where it is."""

    task: Path
    folder: Path
    champion: int
    """The trial that was kept last."""


def make(root: Path, trials: int, *, seed: int = 1) -> LongRun:
    """A task in `root`/task with a run of `trials` judged trials, baselines included."""
    task = root / "task"
    subprocess.run([sys.executable, "-m", "runner.cli", "init", str(task)], check=True, stdout=subprocess.DEVNULL)
    workspace, checkout = Workspace(task), load_task(task)
    folder = workspace.state / TAG
    ledger.make_private(folder)
    header = _header(workspace, checkout, folder)
    frozen = parts.load_frozen(folder, checkout.root, PRESET, {})
    base = workspace.read(header["base"], frozen.editable).decode()
    story = list(_story(trials, folder, random.Random(seed)))
    commits = _commits(task, frozen.editable, header, base, story)
    records = [replace(one, commit=commit, parent=parent) for one, (commit, parent) in zip(story, commits, strict=True)]
    with (folder / ledger.JOURNAL).open("w") as journal:
        for event in _events(header, records):
            journal.write(json.dumps(event, separators=(",", ":")) + "\n")
    for record in records:
        path = trial_folder(folder, record.trial)
        path.mkdir(parents=True)
        if record.verdict is not Verdict.INVALID:
            (path / "train.py").write_text(_source(base, record.trial))
        if record.log_path is not None:
            Path(record.log_path).write_text("Traceback (most recent call last):\n" * 20)
    remember(folder, records)
    kept = [record for record in records if record.verdict is Verdict.KEEP]
    workspace.start_branch(TAG, str(kept[-1].commit if kept else header["base"]))
    return LongRun(task=task, folder=folder, champion=kept[-1].trial if kept else 0)


def remember(folder: Path, records: list[Record]) -> None:
    """Write down fingerprints, as a running loop does after each trial."""
    lines = [{"rules": gates.RULES, "commit": one.commit, "fingerprint": hashlib.sha256(str(one.commit).encode()).hexdigest()} for one in records]
    (folder / FINGERPRINTS).write_text("".join(f"\n{json.dumps(line)}\n" for line in lines))


def _header(workspace: Workspace, checkout: Task, folder: Path) -> dict[str, Any]:
    head = workspace.head()
    parts.freeze(workspace, checkout, head, folder)
    text = CommitText(subject="Baseline", body="", trailers=(("Autoresearch-Run", TAG),), date=CREATED)
    image = "sha256:" + "0" * 64
    return {
        "event": "run", "format": ledger.FORMAT, "id": uuid.uuid4().hex, "tag": TAG, "created": CREATED, "head": head,
        "base": workspace.candidate(head, checkout.editable, workspace.read(head, checkout.editable), text),
        "preset": PRESET, "overrides": {}, "seed": 1, "image": image, "images": dict.fromkeys(("train", "claim", "audit"), image),
        "gpu": None, "runtime": None,
    }  # fmt: skip


def _source(base: str, trial: int) -> str:
    return base if trial < BASELINES else f"{base}\nTRIAL = {trial}\n"


# ------------------------------------------------------------------------------------- what happened


def _story(trials: int, folder: Path, chance: random.Random) -> Iterator[Record]:
    """Every record but for its commits."""
    best = 2.2
    for trial in range(trials):
        verdict = Verdict.BASELINE if trial < BASELINES else _verdict(trial, chance)
        gain = chance.uniform(0.001, 0.004) if verdict is Verdict.KEEP else chance.uniform(-0.1, 0.001)
        record = _record(trial, verdict, best, gain, chance)
        log = str(trial_folder(folder, trial) / "train.log")
        yield replace(record, log_path=log) if verdict is Verdict.CRASH else record
        best -= gain if verdict is Verdict.KEEP else 0.0


def _verdict(trial: int, chance: random.Random) -> Verdict:
    drawn = chance.random()
    if drawn < CRASHED:
        return Verdict.CRASH
    if drawn < CRASHED + REFUSED:
        return Verdict.INVALID
    return Verdict.KEEP if chance.random() < KEPT / (trial + 2 * KEPT) else Verdict.DISCARD


def _record(trial: int, verdict: Verdict, best: float, gain: float, chance: random.Random) -> Record:
    plain = Record(
        trial=trial, tag=TAG, commit=None, parent=None, verdict=verdict, reason=_text(chance, 14), proposed_at=CREATED,
        agent="baseline" if verdict is Verdict.BASELINE else "llm", idea=_text(chance, 9), why=_text(chance, 60), risk=_text(chance, 15),
        kind=chance.choice(list(Kind)), token=str(trial - BASELINES), cost_usd=0.01, prompt_tokens=20_000, completion_tokens=2_000,
    )  # fmt: skip
    if verdict is Verdict.INVALID:
        return plain
    if verdict is Verdict.CRASH:
        return replace(plain, ending=Ending.CRASHED, seconds=Seconds(startup=3.1, total=5.2))
    measured = [_measured(trial, index, best - gain + chance.gauss(0, 0.003)) for index in range(3 if chance.random() < REPEATED else 1)]
    first = measured[0]
    return replace(
        plain, ending=Ending.FINISHED, val_bpb=sum(one.val_bpb or 0.0 for one in measured) / len(measured), score_level="audited",
        gain=None if verdict is Verdict.BASELINE else gain, sigma=0.0031, sigma_interval=(0.0024, 0.0045), threshold=0.0098,
        charge=0.0, slack=first.slack, compute_seconds=first.compute_seconds, audit=first.audit,
        measurements=tuple(brief(one, confirmed=verdict is Verdict.KEEP) for one in measured), seed=first.seed,
        image="sha256:" + "0" * 64, memory_gb=first.memory_gb, steps=first.steps, tokens=first.tokens, params=first.params,
        seconds=first.seconds, summary=first.summary, losses=first.losses,
    )  # fmt: skip


def _measured(trial: int, index: int, score: float) -> Measurement:
    return Measurement(
        ending=Ending.FINISHED, reason="scored", seed=SEEDS_PER_RUN + trial * SEEDS_PER_TRIAL + index, val_bpb=score, score_level="audited",
        charge=0.0, slack=0.0072173519183131255, compute_seconds=Compute(train=27.5003545, claim=2.316360212, audit=4.07906766, startup=3.776557587),
        audit=AuditFacts(
            rounds=2, k=1744, correction=-7.101963019836529e-09, standard_error=5.103055691722627e-05,
            detectable_blind=0.000684040789910546, detectable_informed=0.004562425225755394, worst=6.139804149540851e-07,
        ),
        memory_gb=0.2713584899902344, params=1_294_980, steps=400, tokens=3_276_800,
        seconds=Seconds(startup=2.366786555001454, train=27.40416360100062, claim=2.274345132002054, audit=4.796091978998447, total=38.96104655900126),
        summary=tuple((name, "1.17154") for name in ("training_seconds", "total_seconds", "peak_vram_mb", "mfu_percent", "num_steps", "depth")),
        losses=tuple((step, 7.0 / (1 + step / 50) ** 0.5) for step in range(1, LOSSES + 1)),
    )  # fmt: skip


def _text(chance: random.Random, words: int) -> str:
    return " ".join(chance.choice(WORDS) for _ in range(words))


def _events(header: dict[str, Any], records: list[Record]) -> Iterator[dict[str, Any]]:
    folder = Path(header["tag"])
    yield header
    yield {"event": "data", "digest": "0" * 64, "path": str(folder)}
    for record in records:
        trial = record.trial
        if record.verdict is not Verdict.INVALID:
            yield {
                "event": "proposed", "trial": trial, "at": CREATED, "agent": record.agent, "idea": record.idea, "why": record.why,
                "risk": record.risk, "kind": record.kind, "token": record.token, "cost_usd": record.cost_usd,
                "prompt_tokens": record.prompt_tokens, "completion_tokens": record.completion_tokens,
                "parent": record.parent or header["base"], "baseline": record.verdict is Verdict.BASELINE, "repeat": False,
                "seed": SEEDS_PER_RUN + trial * SEEDS_PER_TRIAL,
            }  # fmt: skip
            yield {"event": "candidate", "trial": trial, "commit": record.commit}
            yield from _measuring(record)
        yield {"event": "judged", "trial": trial, "record": ledger.record_to_json(record)}
        yield {"event": "done", "trial": trial}


def _measuring(record: Record) -> Iterator[dict[str, Any]]:
    for index, one in enumerate(record.measurements or (Measured(seed=1, val_bpb=None),)):
        for phase in ("train", "claim", "audit")[:CONTAINERS]:
            yield {"event": "created", "trial": record.trial, "phase": phase, "container": uuid.uuid4().hex * 2}
        found = _measured(record.trial, index, one.val_bpb or 0.0)
        yield {"event": "measured", "trial": record.trial, "index": index, "measurement": measurement_to_json(found)}
        if one.confirmed:
            yield {"event": "confirmed", "trial": record.trial, "index": index, "measurement": measurement_to_json(found)}


# ------------------------------------------------------------------------------------- the repository


def _commits(task: Path, editable: str, header: dict[str, Any], base: str, story: list[Record]) -> list[tuple[str | None, str | None]]:
    """Commit and parent of each trial; everything is written by one `git fast-import`."""
    marks = task.parent / "marks"
    with subprocess.Popen(["git", "-C", str(task), "fast-import", "--quiet", f"--export-marks={marks}"], stdin=subprocess.PIPE) as git:
        assert git.stdin is not None
        parent, parents = header["base"], []
        for record in story:
            parents.append(parent)
            if record.verdict in (Verdict.BASELINE, Verdict.INVALID):
                continue
            _commit(git.stdin, f"refs/autoresearch/{TAG}/{record.trial}", record.idea, parent, record.trial + 1)
            _inline(git.stdin, f"M 100644 inline {editable}", _source(base, record.trial))
            parent = f":{record.trial + 1}" if record.verdict is Verdict.KEEP else parent
        _commit(git.stdin, NOTES_REF, "Notes", None, len(story) + 1)
        for record in story:
            if record.verdict not in (Verdict.BASELINE, Verdict.INVALID):
                _inline(git.stdin, f"N inline :{record.trial + 1}", json.dumps(asdict(record)))
    assert git.returncode == 0
    ids = dict(line.split() for line in marks.read_text().splitlines())
    found: list[tuple[str | None, str | None]] = []
    for record, parent in zip(story, parents, strict=True):
        own = header["base"] if record.verdict is Verdict.BASELINE else ids.get(f":{record.trial + 1}")
        found.append((own, None if record.verdict is Verdict.BASELINE else ids.get(parent, parent)))
    return found


def _commit(git: IO[bytes], ref: str, subject: str, parent: str | None, mark: int) -> None:
    message = subject.encode()
    git.write(f"commit {ref}\nmark :{mark}\ncommitter a <a@localhost> 1767225600 +0000\ndata {len(message)}\n".encode() + message + b"\n")
    if parent is not None:
        git.write(f"from {parent}\n".encode())


def _inline(git: IO[bytes], what: str, text: str) -> None:
    data = text.encode()
    git.write(f"{what}\ndata {len(data)}\n".encode() + data + b"\n")


def remove(run: LongRun) -> None:
    """Take it away again."""
    shutil.rmtree(run.task.parent, ignore_errors=True)


