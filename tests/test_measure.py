"""Train, claim, audit: what the host makes of what its containers give back."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from runner import evidence
from runner.errors import EngineError
from runner.measure import Caps, Measurement, Measurer
from runner.notes import Notes
from runner.phases import Place, environment, handed_out, question
from runner.prepare import Prepared, load
from runner.task import Task, load_task
from runner.trial import Ending, PhaseImages, Progress, Result, TrialSpec
from tests.fakes import LENGTH, ROWS, VOCAB, prepared_folder, safetensors

Logits = npt.NDArray[np.float32]
CAPS = Caps(train=60.0, claim=60.0, audit=60.0)


def table() -> Logits:
    """What an honest model says after each token: float32 [VOCAB, VOCAB]."""
    return np.random.default_rng(5).normal(size=(VOCAB, VOCAB)).astype(np.float32)


def nll_of(logits: npt.NDArray[np.floating], targets: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    wide = logits.astype(np.float64)
    chosen = np.take_along_axis(wide, targets[..., None].astype(np.int64), -1)[..., 0]
    found: npt.NDArray[np.float64] = np.log(np.exp(wide).sum(-1)) - chosen
    return found


@dataclass
class ModelSandbox:
    """Containers whose model looks a token's successor up in a table, unless told to behave otherwise."""

    claims: Callable[[Logits], Logits] = lambda nll: nll
    """What becomes of the honest claim, float32 [ROWS, LENGTH] in the order handed out."""
    answers: Callable[[Logits, int], Logits] = lambda logits, _: logits
    """What becomes of the honest answer of a round."""
    model: Callable[[npt.NDArray[np.int64]], Logits] | None = None
    """Logits of ids [rows, LENGTH], if it is not the table."""
    endings: dict[str, Ending] = field(default_factory=dict)
    """Phases that end otherwise."""
    checkpoint: bytes = field(default_factory=lambda: safetensors(7))
    cpu: dict[str, float] = field(default_factory=lambda: {"train": 10.0, "claim": 1.0, "audit": 2.0})
    specs: list[TrialSpec] = field(default_factory=list)
    told: list[dict[str, object]] = field(default_factory=list)
    questions: list[bytes] = field(default_factory=list)
    trained_on: list[bytes] = field(default_factory=list)

    def run(
        self,
        spec: TrialSpec,
        destination: Path,
        *,
        created: Callable[[str], None],
        progress: Callable[[Progress], None],
    ) -> Result:
        destination.mkdir(parents=True, exist_ok=True)
        self.specs.append(spec)
        created(f"container-{len(self.specs)}")
        files = {file.name: file.path for file in (*spec.files, *spec.gated_files)}
        told = json.loads(files["trial.json"].read_text())
        self.told.append(told)
        if spec.phase in self.endings:
            return Result(ending=self.endings[spec.phase], reason="exit code 1", seconds=1.0, total_seconds=2.0)
        if spec.phase == "train":
            self.trained_on.append(files["rows.bin"].read_bytes())
            (destination / "checkpoint.safetensors").write_bytes(self.checkpoint)
            names = ["checkpoint.safetensors"]
        elif spec.phase == "claim":
            rows = np.fromfile(files["rows.bin"], "<u2").reshape(-1, LENGTH + 1)
            logits = self._logits(rows[:, :-1].astype(np.int64))
            self.claims(nll_of(logits, rows[:, 1:]).astype("<f4")).tofile(destination / "nll.bin")
            names = ["nll.bin"]
        else:
            names = [self._answer(number, spec, told, destination) for number in range(len(spec.rounds))]
        return Result(
            ending=Ending.FINISHED,
            reason="exit code 0",
            exit_code=0,
            startup_seconds=0.5,
            seconds=self.cpu[spec.phase],
            total_seconds=self.cpu[spec.phase] + 1,
            outputs=tuple((name, destination / name) for name in names),
            peak_memory_bytes=1 << 29,
            cpu_seconds=self.cpu[spec.phase],
            startup_cpu_seconds=0.0,
        )

    def reap(self, labels: dict[str, str]) -> int:
        return 0

    def _logits(self, ids: npt.NDArray[np.int64]) -> Logits:
        return table()[ids] if self.model is None else self.model(ids)

    def _answer(self, number: int, spec: TrialSpec, told: dict[str, object], destination: Path) -> str:
        one = spec.rounds[number]
        raw = one.question.path.read_bytes()
        self.questions.append(raw)
        cuts = np.frombuffer(raw, "<i4", count=told["rows"])  # type: ignore[call-overload]
        ids = np.frombuffer(raw, "<u2", offset=cuts.nbytes).reshape(-1, LENGTH).astype(np.int64)
        logits = self._logits(ids)[np.arange(len(ids)), cuts]
        self.answers(logits, number).astype("<f4").tofile(destination / one.answer.name)
        return one.answer.name


@pytest.fixture
def task() -> Task:
    return load_task(Path(__file__).parents[1], "tiny")


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return load(prepared_folder(tmp_path / "data"))


@dataclass
class Bench:
    """Measures with one sandbox."""

    task: Task
    prepared: Prepared
    folder: Path
    created: list[tuple[str, str]] = field(default_factory=list)

    def measurer(self, sandbox: ModelSandbox) -> Measurer:
        phases = ("train", "claim", "audit")
        place = Place(
            images=PhaseImages(train="sha256:t", claim="sha256:c", audit="sha256:a"),
            gpu=None,
            prepare_volumes=tuple((phase, f"prepare-{phase}") for phase in phases),
            data_volume=None,
            labels=(("autoresearch", "1"),),
        )
        return Measurer(sandbox, self.task, self.prepared, place)

    def measure(self, sandbox: ModelSandbox, name: str = "m", caps: Caps = CAPS, *references: Path) -> Measurement:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        (folder / "train.py").write_text("")
        return self.measurer(sandbox).measure(
            3,
            folder,
            seed=11,
            caps=caps,
            references=references,
            notes=Notes(write=self._write),
            progress=lambda _: None,
        )

    def _write(self, event: str, **facts: str) -> None:
        if event == "created":
            self.created.append((facts["phase"], facts["container"]))

    def confirm(self, sandbox: ModelSandbox, measured: Measurement, name: str = "m") -> Measurement:
        return self.measurer(sandbox).confirm(
            3,
            self.folder / name,
            measured,
            caps=CAPS,
            references=(),
            notes=Notes(),
            progress=lambda _: None,
        )


@pytest.fixture
def bench(task: Task, prepared: Prepared, tmp_path: Path) -> Bench:
    (tmp_path / "trials").mkdir()
    return Bench(task=task, prepared=prepared, folder=tmp_path / "trials")


def honest_score(prepared: Prepared) -> float:
    rows = prepared.rows("val")
    nll = nll_of(table()[rows[:, :-1]], rows[:, 1:])
    return float(nll[prepared.token_bytes()[rows[:, 1:]] > 0].sum()) / (math.log(2) * prepared.val_bytes)


def test_an_honest_model_is_scored_by_its_own_answers(bench: Bench, prepared: Prepared) -> None:
    found = bench.measure(ModelSandbox())

    assert (found.ending, found.reason, found.score_level) == (Ending.FINISHED, "scored", "audited")
    assert found.val_bpb == pytest.approx(honest_score(prepared), abs=1e-5)
    assert found.audit is not None
    rounds = bench.task.score.audit_rounds
    # The first row has no bytes: nobody is asked about it.
    assert (found.audit.rounds, found.audit.k) == (rounds, rounds * (ROWS - 1))
    assert abs(found.audit.correction) < 1e-5
    assert found.audit.worst < 1e-4
    assert 0 < found.audit.detectable_blind <= found.audit.detectable_informed
    assert [phase for phase, _ in bench.created] == ["train", "claim", "audit"]
    assert (found.seconds.train, found.seconds.claim, found.seconds.audit) == (10.0, 1.0, 2.0)


def test_every_phase_has_its_own_image_and_mount(bench: Bench) -> None:
    sandbox = ModelSandbox()
    bench.measure(sandbox)

    seen = [(spec.phase, spec.image, spec.volumes[0].volume, spec.holder_image) for spec in sandbox.specs]
    assert seen == [
        ("train", "sha256:t", "prepare-train", "sha256:t"),
        ("claim", "sha256:c", "prepare-claim", "sha256:t"),
        ("audit", "sha256:a", "prepare-audit", "sha256:t"),
    ]


def test_training_is_handed_exactly_its_tokens(bench: Bench, prepared: Prepared) -> None:
    sandbox = ModelSandbox()
    bench.measure(sandbox)

    rows = np.frombuffer(sandbox.trained_on[0], "<u2").reshape(-1, LENGTH + 1)
    assert len(rows) * LENGTH == bench.task.budget.tokens
    there = {row.tobytes() for row in np.asarray(prepared.rows("train"))}
    assert {row.tobytes() for row in rows} <= there


def test_the_order_of_training_rows_is_whole_passes_that_the_seed_gives() -> None:
    first, again, other = handed_out(10, 25, 1), handed_out(10, 25, 1), handed_out(10, 25, 2)

    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert sorted(first[:10]) == sorted(first[10:20]) == list(range(10))
    assert len(first) == 25


def test_no_question_holds_what_it_asks_for(bench: Bench, prepared: Prepared) -> None:
    """Every hidden token is absent: what stands after the cut is training text, all ones here."""
    sandbox = ModelSandbox()
    bench.measure(sandbox)

    true = {row[:1].tobytes(): row for row in np.asarray(prepared.rows("val"))}
    for raw in sandbox.questions:
        count = (len(raw)) // (4 + 2 * LENGTH)
        cuts = np.frombuffer(raw, "<i4", count=count)
        ids = np.frombuffer(raw, "<u2", offset=4 * count).reshape(count, LENGTH)
        for cut, shown in zip(cuts, ids, strict=True):
            row = true[shown[:1].tobytes()]
            assert np.array_equal(shown[: cut + 1], row[: cut + 1])
            assert (shown[cut + 1 :] == 1).all()


def test_a_question_shows_the_row_up_to_the_cut_and_other_text_after_it() -> None:
    rows = np.arange(2 * 5, dtype=np.uint16).reshape(2, 5)
    filler = np.full((3, 5), 99, np.uint16)

    cuts, ids = question(rows, np.array([0, 2]), filler, np.random.default_rng(0), np.array([1, 0]))

    assert cuts.tolist() == [2, 0]
    assert ids.tolist() == [[5, 6, 7, 99], [0, 99, 99, 99]]


def test_later_rounds_show_longer_prefixes_of_the_same_rows(bench: Bench) -> None:
    sandbox = ModelSandbox()
    bench.measure(sandbox)

    cuts = []
    for raw in sandbox.questions:
        count = len(raw) // (4 + 2 * LENGTH)
        ids = np.frombuffer(raw, "<u2", offset=4 * count).reshape(count, LENGTH)
        cuts.append(dict(zip(ids[:, 0].tolist(), np.frombuffer(raw, "<i4", count=count).tolist(), strict=True)))
    for former, later in itertools.pairwise(cuts):
        assert all(former[row] <= later[row] for row in former)


def test_a_claim_that_is_shaded_everywhere_is_tampering(bench: Bench) -> None:
    found = bench.measure(ModelSandbox(claims=lambda nll: nll * np.float32(0.9)))

    assert found.ending is Ending.TAMPERED
    assert found.val_bpb is None
    assert "answers otherwise when it is audited" in found.reason


def test_a_shade_that_only_the_mean_shows_is_tampering_too(bench: Bench) -> None:
    found = bench.measure(ModelSandbox(claims=lambda nll: nll - np.float32(0.0018)))

    assert found.ending is Ending.TAMPERED
    assert "the mean differs" in found.reason


def test_a_shade_within_every_tolerance_gains_nothing(bench: Bench, prepared: Prepared) -> None:
    """The score is what the audit answers: on average a shade of 0.0002 nats is taken back to the last digit."""
    honest = honest_score(prepared)
    scores = []
    for number in range(40):
        found = bench.measure(ModelSandbox(claims=lambda nll: nll - np.float32(0.0002)), f"m{number}")
        assert found.val_bpb is not None
        scores.append(found.val_bpb - honest)
    assert abs(float(np.mean(scores))) < 0.0002 / math.log(2) / 3


def test_a_model_that_looks_ahead_is_named_and_not_accused(bench: Bench) -> None:
    def peeking(ids: npt.NDArray[np.int64]) -> Logits:
        logits = table()[ids]
        following = np.roll(ids, -1, axis=1)
        np.put_along_axis(logits, following[..., None], 9.0, -1)
        return logits

    found = bench.measure(ModelSandbox(model=peeking))

    assert found.ending is Ending.NOT_REPRODUCED
    assert "tokens that come after" in found.reason
    assert found.val_bpb is None


def test_a_random_model_is_named_and_not_accused(bench: Bench) -> None:
    random = np.random.default_rng(1)

    def dropout(ids: npt.NDArray[np.int64]) -> Logits:
        found: Logits = table()[ids] * (random.random((*ids.shape, 1)) < 0.8)
        return found.astype(np.float32)

    found = bench.measure(ModelSandbox(model=dropout))

    assert found.ending is Ending.NOT_REPRODUCED
    assert "random" in found.reason


def test_a_model_whose_rows_depend_on_each_other_is_named_and_not_accused(bench: Bench) -> None:
    def batched(ids: npt.NDArray[np.int64]) -> Logits:
        place = np.arange(len(ids), dtype=np.float32)[:, None, None]
        found: Logits = (table()[ids] * (1 + place / 10)).astype(np.float32)
        return found

    found = bench.measure(ModelSandbox(model=batched))

    assert found.ending is Ending.NOT_REPRODUCED
    assert "depends on the other rows" in found.reason


def test_noise_that_an_honest_model_may_have_is_looked_at_once_more(bench: Bench) -> None:
    """Differences between hard and gross in the first audit only: the second one decides."""
    asked: list[int] = []

    def once(logits: Logits, _: int) -> Logits:
        asked.append(1)
        return logits * np.float32(1.01) if len(asked) <= bench.task.score.audit_rounds else logits

    found = bench.measure(ModelSandbox(answers=once))

    assert found.ending is Ending.FINISHED
    assert found.audit is not None
    assert found.audit.rounds == 2 * bench.task.score.audit_rounds
    assert [phase for phase, _ in bench.created].count("audit") == 2


@pytest.mark.parametrize("value", [math.nan, math.inf, 2e4])
def test_answers_that_are_no_logits_are_an_invalid_output(bench: Bench, value: float) -> None:
    found = bench.measure(ModelSandbox(answers=lambda logits, _: np.where(logits > 2, np.float32(value), logits)))

    assert found.ending is Ending.INVALID_OUTPUT
    assert "not finite or exceed" in found.reason
    assert found.val_bpb is None


@pytest.mark.parametrize("phase", ["train", "claim", "audit"])
@pytest.mark.parametrize("ending", [Ending.CRASHED, Ending.TIMED_OUT, Ending.OUT_OF_MEMORY, Ending.INVALID_OUTPUT])
def test_a_phase_that_fails_ends_the_measurement(bench: Bench, phase: str, ending: Ending) -> None:
    found = bench.measure(ModelSandbox(endings={phase: ending}))

    assert (found.ending, found.val_bpb) == (ending, None)
    assert found.reason == f"{phase}: exit code 1"
    # An audit that fails is never drawn again.
    assert [name for name, _ in bench.created].count(phase) == 1


@pytest.mark.parametrize(
    ("claims", "said"),
    [
        (lambda nll: nll[:-1], "bytes instead of"),
        (lambda nll: np.where(nll > 5, np.float32(np.nan), nll), "not finite"),
        (lambda nll: nll - np.float32(50), "are possible"),
    ],
)
def test_a_claim_that_is_none_is_an_invalid_output(
    bench: Bench, claims: Callable[[Logits], Logits], said: str
) -> None:
    found = bench.measure(ModelSandbox(claims=claims))

    assert found.ending is Ending.INVALID_OUTPUT
    assert said in found.reason
    assert [phase for phase, _ in bench.created] == ["train", "claim"]


def test_a_checkpoint_that_is_none_is_never_given_to_anybody(bench: Bench) -> None:
    found = bench.measure(ModelSandbox(checkpoint=b"\x80\x04pickle"))

    assert found.ending is Ending.INVALID_OUTPUT
    assert [phase for phase, _ in bench.created] == ["train"]


def test_a_confirmation_asks_anew_and_pools_all_answers(bench: Bench, prepared: Prepared) -> None:
    sandbox = ModelSandbox()
    first = bench.measure(sandbox)
    before = list(sandbox.questions)
    found = bench.confirm(sandbox, first)

    assert found.ending is Ending.FINISHED
    assert found.audit is not None
    assert first.audit is not None
    assert found.audit.rounds == bench.task.score.audit_rounds + bench.task.score.confirm_rounds
    assert found.audit.detectable_blind < first.audit.detectable_blind
    assert found.val_bpb == pytest.approx(honest_score(prepared), abs=1e-5)
    assert found.seconds.audit == 4.0
    assert not set(before) & set(sandbox.questions[len(before) :])


def test_a_lie_that_the_first_audit_missed_may_be_found_by_the_second(bench: Bench) -> None:
    sandbox = ModelSandbox()
    first = bench.measure(sandbox)
    found = bench.confirm(ModelSandbox(answers=lambda logits, _: logits * np.float32(0.5)), first)

    assert found.ending is Ending.TAMPERED
    assert found.val_bpb is None


def test_the_draw_is_the_same_again_after_the_engine_failed(bench: Bench) -> None:
    """Entropy is on the disk before the container exists: a failing engine gives no second chance."""

    class Failing(ModelSandbox):
        def run(self, spec: TrialSpec, destination: Path, **words: object) -> Result:
            if spec.phase == "audit":
                self.questions.append(spec.rounds[0].question.path.read_bytes())
                raise ConnectionError
            return super().run(spec, destination, **words)  # type: ignore[arg-type]

    failing, working = Failing(), ModelSandbox()
    with pytest.raises(ConnectionError):
        bench.measure(failing)
    bench.measure(working)

    assert working.questions[0] == failing.questions[0]


def test_entropy_is_recorded_with_what_it_is_used_on(tmp_path: Path) -> None:
    evidence.save_claim(tmp_path, np.ones((2, 3), np.float32))
    (tmp_path / "checkpoint.safetensors").write_bytes(b"weights")

    first, second = evidence.entropy(tmp_path, 1), evidence.entropy(tmp_path, 2)

    assert first == evidence.entropy(tmp_path, 1)
    assert first != second
    kept = json.loads((tmp_path / evidence.ENTROPY).read_text())
    assert set(kept["1"]["sha256"]) == {"claim.npy", "checkpoint.safetensors"}


def test_computation_beyond_the_baselines_is_charged(bench: Bench) -> None:
    base = bench.measure(ModelSandbox(), "base").compute_seconds
    caps = Caps(train=60.0, claim=60.0, audit=60.0, reference=base, counts_cpu=True)
    same = bench.measure(ModelSandbox(), "same", caps)
    more = bench.measure(ModelSandbox(cpu={"train": 20.0, "claim": 1.0, "audit": 2.0}), "more", caps)
    later = bench.measure(ModelSandbox(cpu={"train": 10.0, "claim": 6.0, "audit": 1.0}), "later", caps)

    assert same.charge == 0
    budget = bench.task.budget
    assert more.charge == pytest.approx(budget.bpb_per_doubling * math.log2(2 / (1 + budget.tolerance)))
    assert later.charge == pytest.approx(budget.bpb_per_doubling * math.log2(1.5 / (1 + budget.tolerance)))
    assert same.slack == pytest.approx(budget.bpb_per_doubling * math.log2(1 + budget.tolerance))


def test_computation_that_could_not_be_measured_keeps_nothing(bench: Bench) -> None:
    class Silent(ModelSandbox):
        def run(self, spec: TrialSpec, destination: Path, **words: object) -> Result:
            return replace(super().run(spec, destination, **words), cpu_seconds=None)  # type: ignore[arg-type]

    with pytest.raises(EngineError, match="processor seconds"):
        bench.measure(Silent(), "base")
    base = bench.measure(ModelSandbox(), "known").compute_seconds
    caps = Caps(train=60.0, claim=60.0, audit=60.0, reference=base, counts_cpu=True)
    found = bench.measure(Silent(), "silent", caps)

    assert found.charge is None
    assert found.guards_broken is not None
    assert "could not be measured" in found.guards_broken


def test_a_claim_that_was_drawn_for_stands_when_the_trial_is_run_again(bench: Bench) -> None:
    """Made again with the rows in another order it differs in its last bits, and the trial is honest all the same."""

    class Failing(ModelSandbox):
        def run(self, spec: TrialSpec, destination: Path, **words: object) -> Result:
            if spec.phase == "audit":
                raise ConnectionError
            return super().run(spec, destination, **words)  # type: ignore[arg-type]

    base = bench.measure(ModelSandbox(), "base").compute_seconds
    caps = Caps(train=60.0, claim=60.0, audit=60.0, reference=base, counts_cpu=True)
    with pytest.raises(ConnectionError):
        bench.measure(Failing(), "candidate", caps)
    first = (bench.folder / "candidate" / evidence.CLAIM).read_bytes()
    found = bench.measure(ModelSandbox(claims=lambda nll: nll + np.float32(1e-6)), "candidate", caps)

    assert found.ending is Ending.FINISHED, found.reason
    assert (bench.folder / "candidate" / evidence.CLAIM).read_bytes() == first


def test_a_draw_is_not_used_on_another_model(bench: Bench) -> None:
    """An engine that failed under its audit is no way to draw training luck, or lies, again."""

    class Failing(ModelSandbox):
        def run(self, spec: TrialSpec, destination: Path, **words: object) -> Result:
            if spec.phase == "audit":
                raise ConnectionError
            return super().run(spec, destination, **words)  # type: ignore[arg-type]

    base = bench.measure(ModelSandbox(), "base").compute_seconds
    caps = Caps(train=60.0, claim=60.0, audit=60.0, reference=base, counts_cpu=True)
    with pytest.raises(ConnectionError):
        bench.measure(Failing(), "candidate", caps)
    found = bench.measure(ModelSandbox(checkpoint=safetensors(8)), "candidate", caps)
    with pytest.raises(ConnectionError):
        bench.measure(Failing(), "baseline")
    trusted = bench.measure(ModelSandbox(checkpoint=safetensors(8)), "baseline")

    assert found.ending is Ending.NOT_REPRODUCED
    assert "another model" in found.reason
    assert trusted.ending is Ending.FINISHED


def test_the_reference_is_the_mean_of_the_baselines(bench: Bench) -> None:
    for name, shift in (("a", 0.0), ("b", 0.0001)):
        bench.measure(ModelSandbox(claims=lambda nll, shift=shift: nll + np.float32(shift)), name)  # type: ignore[misc]

    claims = [evidence.load_claim(bench.folder / name) for name in "ab"]
    mean = evidence.reference([bench.folder / "a", bench.folder / "b", bench.folder / "missing"])

    assert mean is not None
    assert claims[0] is not None
    assert claims[1] is not None
    np.testing.assert_allclose(mean, (claims[0] + claims[1]) / 2, rtol=1e-6)
    assert evidence.reference([]) is None


def test_what_is_handed_in_does_not_stay(bench: Bench) -> None:
    bench.confirm(ModelSandbox(), bench.measure(ModelSandbox()))

    left = sorted(path.relative_to(bench.folder / "m").as_posix() for path in (bench.folder / "m").rglob("*") if path.is_file())
    assert left == [
        "audit-1.npz",
        "audit-2.npz",
        "checkpoint.safetensors",
        "claim.npy",
        "draws.json",
        "train.py",
        "trial.json",
    ]


def test_a_trials_environment_is_built_from_empty_and_keeps_memory_on_a_cpu_alone() -> None:
    cpu, gpu = dict(environment(2.5, None)), dict(environment(2.5, "GPU-1"))

    assert cpu["OMP_NUM_THREADS"] == gpu["OMP_NUM_THREADS"] == "2"
    assert {name for name in cpu if name not in gpu} == {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"}
    assert not {name for name in gpu if name not in cpu}
