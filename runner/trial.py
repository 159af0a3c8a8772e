"""The values that pass between the parts.  Frozen, serialisable, free of any outside system's types."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

REFUSED = "refused.py"
"""A file that no trial was spent on, in the trial's folder: not by the name of one that was tried."""


class Ending(StrEnum):
    """What happened in a container (or, for a trial, in the first of its containers that did not finish)."""

    FINISHED = "finished"
    CRASHED = "crashed"
    TIMED_OUT = "timed_out"
    OUT_OF_MEMORY = "out_of_memory"
    INVALID_OUTPUT = "invalid_output"
    INVALID_ENVIRONMENT = "invalid_environment"
    """Something else had the GPU, or slowed it down: what was timed there counts for nothing."""
    NOT_REPRODUCED = "not_reproduced"
    """The audit did not get what was claimed, and no accusation follows from it: the reason names the cause."""
    TAMPERED = "tampered"
    """The model claimed what it does not answer when it is audited, and nothing honest explains it."""


class Verdict(StrEnum):
    """What is done with the candidate."""

    BASELINE = "baseline"
    """The unmodified file of the run; it sets the mark and is never compared."""
    KEEP = "keep"
    DISCARD = "discard"
    CRASH = "crash"
    """No score: the ending says why."""
    INVALID = "invalid"
    """The proposal was refused before a container was spent on it."""
    REPEAT = "repeat"
    """The champion measured once more with another seed: known better, never compared with itself."""
    ABANDONED = "abandoned"
    """Nothing is known about it: the engine failed, or something else disturbed it, each time that it was tried."""


class Kind(StrEnum):
    """What an idea changes; used to see which kinds have not been tried."""

    HYPERPARAMETER = "hyperparameter"
    ARCHITECTURE = "architecture"
    OPTIMIZER = "optimizer"
    SCHEDULE = "schedule"
    INIT = "init"
    SYSTEMS = "systems"
    SIMPLIFICATION = "simplification"
    OTHER = "other"


class Suggested(StrEnum):
    """What became of the suggestion that a proposal began with: the tuner's, in a hybrid."""

    UNSEEN = "unseen"
    """It went ahead; the model was not asked."""
    TAKEN = "taken"
    """The model saw it and took it as it is."""
    CHANGED = "changed"
    """The model moved one of its constants too, but not only that, or not there."""
    OVERRIDDEN = "overridden"
    """The model put an idea of its own in its place."""
    FALLBACK = "fallback"
    """It went ahead, since the model failed or there was no money left to ask it."""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a proposal cost before any trial; None: not known, or nothing that is counted so."""

    cost_usd: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """An agent's idea; not yet trusted in any way."""

    agent: str
    idea: str
    """One line; becomes the commit's subject."""
    why: str = ""
    risk: str = ""
    kind: Kind = Kind.OTHER
    source: str
    """The whole text of the proposed editable file."""
    token: str = ""
    """The agent's own handle (the tuner's trial number, the replayed line), handed back with the record."""
    spent: Spent = Spent()
    suggestion: Suggested | None = None
    """None: there was none."""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A proposal that never became one: recorded as `invalid`, no container is spent on it."""

    agent: str
    idea: str
    reason: str
    token: str = ""
    spent: Spent = Spent()
    source: str | None = None
    """The proposed file, if it may be mended."""
    suggestion: Suggested | None = None


@dataclass(frozen=True, kw_only=True)
class AuditFacts:
    """What the audits of one measurement found."""

    rounds: int
    """How often every row was asked about."""
    k: int
    """Tokens that were asked about."""
    correction: float
    """What the audit's answers added to the claims, bits per byte."""
    standard_error: float
    """Of the score, from the draw of the tokens alone; bits per byte."""
    detectable_blind: float
    """Gain that a liar who does not know the reference could hide with 1 % probability, bits per byte."""
    detectable_informed: float
    """The same for a liar who knows the reference and the law of the draw."""
    worst: float
    """Largest difference between an answer and its claim, nats."""


@dataclass(frozen=True, kw_only=True)
class Compute:
    """What each phase used after its gate: processor seconds for a budget in steps, wall seconds for one in seconds."""

    train: float
    claim: float
    audit: float
    startup: float
    """Before the gates of training and claim."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The hard limits of one container; all are enforced by the engine or the kernel."""

    memory_bytes: int
    """Memory and swap together; tmpfs pages count."""
    cpus: float
    pids: int = 512
    output_bytes: int
    """Size of the tmpfs volume that holds everything the container gives back."""
    output_inodes: int = 1024
    scratch_bytes: int
    """Size of the executable scratch tmpfs (compiler caches)."""
    shm_bytes: int = 64 << 20
    log_bytes: int = 8 << 20
    startup_seconds: float
    """Cap on the time from start to the gate, where there is nothing to learn from."""
    seconds: float
    """Cap on the time from the gate to the exit of the container."""
    cpu_seconds: float | None = None
    """Cap on the processor seconds of everything in the container, start to exit; None: no cap but the wall's."""
    kill_seconds: float = 10.0
    """How long killing and removing may take before the engine is called broken."""


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """One regular file that the container may read."""

    name: str
    """Plain file name inside the input folder."""
    path: Path
    """Where it lies on the host."""


@dataclass(frozen=True, kw_only=True)
class PhaseImages:
    """Engine ids of what the phases of a trial run from.  No two share a layer: none finds another's traces in the kernel."""

    train: str
    claim: str
    audit: str


@dataclass(frozen=True, kw_only=True)
class VolumeMount:
    """A prepared, labelled volume, read-only in the trial."""

    volume: str
    target: str
    gated: bool = False
    """True if its `gated` folder is opened only at the gate."""


@dataclass(frozen=True, kw_only=True)
class OutputFile:
    """One regular file that the container may give back."""

    name: str
    max_bytes: int
    required: bool = True


@dataclass(frozen=True, kw_only=True)
class Round:
    """One question and its answer: the next question is readable only when the answer to this one is out of reach."""

    question: InputFile
    """Readable in `/in/gated/<name>` once it is this round's turn."""
    answer: OutputFile
    """Written to `/out/<name>`, by rename; of exactly `max_bytes` bytes."""


@dataclass(frozen=True, kw_only=True)
class TrialSpec:
    """One container, fully resolved.  Nothing in it names a host path that is mounted: inputs are copied in."""

    phase: str
    """`train`, `claim` or `audit`."""
    image: str
    """Engine id (`sha256:...`), never a tag."""
    holder_image: str | None = None
    """What our own container beside it runs from; None: the same image."""
    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    files: tuple[InputFile, ...] = ()
    """Readable in `/in` from the start."""
    gated_files: tuple[InputFile, ...] = ()
    """Readable in `/in/gated` once the gate is open."""
    volumes: tuple[VolumeMount, ...] = ()
    outputs: tuple[OutputFile, ...] = ()
    """What is read back from `/out`, in this order."""
    rounds: tuple[Round, ...] = ()
    """Questions that are asked one after the other, the first with the gate."""
    limits: Limits
    gpu: str | None = None
    """UUID of the one GPU, or None for CPU."""
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a running container says about itself (its own word, for the live line only)."""

    phase: str
    step: int | None = None
    loss: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one container gave."""

    ending: Ending
    reason: str
    """From engine facts only, never from text the trial wrote."""
    exit_code: int | None = None
    startup_seconds: float = 0.0
    """Start to gate."""
    seconds: float = 0.0
    """Gate to exit."""
    total_seconds: float = 0.0
    """Everything, holder and copies included."""
    outputs: tuple[tuple[str, Path], ...] = ()
    log_path: Path | None = None
    peak_memory_bytes: int | None = None
    cpu_seconds: float | None = None
    """Processor seconds of everything in the container, start to exit, as the kernel counts them; None if unknown."""
    startup_cpu_seconds: float | None = None
    """Of these, what came before the gate."""

    def output(self, name: str) -> Path | None:
        """The host path of the output called `name`, or None if it was not given back."""
        return dict(self.outputs).get(name)


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Wall seconds of a trial's phases on the host's monotonic clock; None where a phase did not run."""

    startup: float | None = None
    train: float | None = None
    claim: float | None = None
    audit: float | None = None
    total: float | None = None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One measurement of a trial's file, as far as a verdict rests on it."""

    seed: int | None
    val_bpb: float | None
    """None: it gave no score."""
    charge: float | None = None
    """Bits per byte that are added before it is compared."""
    standard_error: float | None = None
    """Of val_bpb from the draw of the audited tokens alone, bits per byte; None: nothing was audited."""
    detectable: float | None = None
    """Gain that a liar who does not know the reference could hide with 1 % probability, bits per byte."""
    seconds: float | None = None
    """Everything that it took, containers and copies."""
    confirmed: bool = False
    """True if a second audit with a fresh draw is in it."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One line of the ledger: everything known about a trial.  Unknown is None, never 0.

    A trial has one measurement or, near the line, several.  `val_bpb`, `charge` and `audit` are over all of them;
    `seed`, `seconds` and what the trial says of itself are of the first (of the one that failed, if one did).
    """

    trial: int
    tag: str
    commit: str | None
    """None for a refused proposal."""
    parent: str | None
    agent: str
    idea: str
    why: str = ""
    risk: str = ""
    kind: str = Kind.OTHER
    token: str = ""
    suggestion: Suggested | None = None
    """What became of the tuner's suggestion, in a hybrid."""
    ending: Ending | None = None
    """None when the proposal was refused before a container was spent on it, or the engine failed each time."""
    verdict: Verdict
    reason: str = ""
    val_bpb: float | None = None
    score_level: str | None = None
    metric: str | None = None
    """What a reported `val_bpb` is, by its name in the task; None: bits per byte."""
    maximise: bool = False
    """True if a higher `val_bpb` is better; so it may be for a reported metric alone."""
    guards_broken: str | None = None
    """Which guard metrics are outside their bounds, in words: then nothing is kept, ranked or learnt from the score."""
    charge: float | None = None
    """Bits per byte that are added before it is compared, for computation beyond the baselines'."""
    slack: float | None = None
    """What computation that is not charged can be worth at most, bits per byte."""
    compute_seconds: Compute | None = None
    """What the charge is made of."""
    audit: AuditFacts | None = None
    measurements: tuple[Measured, ...] = ()
    """In the order in which they were made."""
    gain: float | None = None
    """How much better than the champion's mean the mean of this trial's measurements is, charges included."""
    sigma: float | None = None
    """Standard deviation of one measurement, as estimated when this trial was judged."""
    sigma_interval: tuple[float, float] | None = None
    """90 % interval of sigma."""
    threshold: float | None = None
    """The gain that was needed."""
    seed: int | None = None
    image: str | None = None
    gpu: str | None = None
    memory_gb: float | None = None
    steps: int | None = None
    tokens: int | None = None
    params: int | None = None
    cost_usd: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: Seconds = field(default_factory=Seconds)
    summary: tuple[tuple[str, str], ...] = ()
    """What train.py printed about itself; its own word."""
    losses: tuple[tuple[int, float], ...] = ()
    """(step, training loss), thinned; its own word."""
    proposed_at: str = ""
    """UTC time of the proposal, ISO 8601; also the candidate commit's date."""
    log_path: str | None = None
