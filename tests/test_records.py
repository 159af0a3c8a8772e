from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

from runner.ledger import OpenTrial
from runner.measure import Measurement
from runner.records import measurement_from_json, measurement_to_json, measurements_of, record_of
from runner.trial import AuditFacts, Ending, Seconds, Verdict

AUDIT = AuditFacts(
    rounds=4, k=100, correction=0.001, standard_error=0.0003, detectable_blind=0.0007, detectable_informed=0.008, worst=0.01
)
FINISHED = Measurement(
    ending=Ending.FINISHED,
    reason="scored",
    seed=8,
    val_bpb=1.5,
    score_level="audited",
    charge=0.01,
    audit=AUDIT,
    memory_gb=0.5,
    seconds=Seconds(train=2.0, total=5.0),
    summary=(("depth", "4"),),
    losses=((1, 2.5),),
    log_path=Path("/runs/t/train.log"),
)
HEADER = {"tag": "t", "image": "sha256:i", "gpu": None}
EVENT = {
    "trial": 2, "agent": "a", "idea": "i", "why": "", "risk": "", "kind": "other", "token": "", "cost_usd": None,
    "parent": "p", "baseline": False, "seed": 8, "at": "now",
}  # fmt: skip


def opened(*measured: Measurement, confirmed: frozenset[int] = frozenset()) -> OpenTrial:
    values = tuple(json.loads(json.dumps(measurement_to_json(one))) for one in measured)
    return OpenTrial(trial=2, proposed=EVENT, measured=values, confirmed=confirmed)


def test_a_measurement_survives_the_journal() -> None:
    crashed = Measurement(ending=None, reason="", seconds=Seconds())

    assert measurements_of(opened(FINISHED, crashed)) == (FINISHED, crashed)
    assert measurement_from_json(measurement_to_json(FINISHED)) == FINISHED


def test_a_record_is_over_all_measurements() -> None:
    second = replace(FINISHED, seed=9, val_bpb=1.6, charge=0.03, memory_gb=0.7, seconds=Seconds(total=7.0))
    trial = opened(FINISHED, second, confirmed=frozenset([1]))

    record = record_of(HEADER, trial, "c", measurements_of(trial))

    assert record.val_bpb == 1.55
    assert record.charge == 0.02
    assert (record.seed, record.seconds.total, record.memory_gb) == (8, 5.0, 0.7)
    assert [(one.seed, one.confirmed, one.seconds) for one in record.measurements] == [(8, False, 5.0), (9, True, 7.0)]
    assert record.audit is not None
    assert (record.audit.k, record.audit.rounds, record.audit.detectable_blind) == (200, 4, 0.0007)
    assert math.isclose(record.audit.standard_error, 0.0003 / math.sqrt(2))


def test_a_measurement_without_a_score_takes_the_score_from_the_trial() -> None:
    lost = Measurement(ending=Ending.CRASHED, reason="train: exit code 1", seed=9, seconds=Seconds(total=1.0))
    trial = opened(FINISHED, lost)

    record = record_of(HEADER, trial, "c", measurements_of(trial))

    assert (record.verdict, record.ending, record.reason) == (Verdict.CRASH, Ending.CRASHED, "train: exit code 1")
    assert (record.val_bpb, record.score_level, record.seed) == (None, None, 9)
    assert [one.val_bpb for one in record.measurements] == [1.5, None]


def test_what_has_no_audit_was_not_confirmed() -> None:
    trial = opened(replace(FINISHED, audit=None, score_level="reported"), confirmed=frozenset([0]))

    assert [one.confirmed for one in record_of(HEADER, trial, "c", measurements_of(trial)).measurements] == [False]
