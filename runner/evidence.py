"""What a measurement leaves on the host: its claim, and every audit's draw and answers.

The draw's entropy is on the disk before the container that is asked exists, and is used again if that container must be
started again: a trial gains nothing from an engine that fails in the right moment.
"""

from __future__ import annotations

import io
import json
import secrets
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from runner.audit import Draw
from runner.durable import file_sha256, write_durably

CLAIM = "claim.npy"
ENTROPY = "draws.json"

Claim = npt.NDArray[np.float32]
Answers = npt.NDArray[np.float64]


def save_claim(folder: Path, claim: Claim) -> None:
    """Put the claim, float32 [R, T] in the data's own order, on the disk.  Raises `StateError`."""
    buffer = io.BytesIO()
    np.save(buffer, claim, allow_pickle=False)
    write_durably(folder / CLAIM, buffer.getvalue())


def load_claim(folder: Path) -> Claim | None:
    """The claim of the measurement in `folder`, or None if it has none."""
    try:
        claim: Claim = np.load(folder / CLAIM, allow_pickle=False)
    except FileNotFoundError:
        return None
    return claim


def reference(folders: list[Path]) -> npt.NDArray[np.float32] | None:
    """The mean of the claims in `folders`, float32 [R, T]; None if there is none."""
    claims = [claim for folder in folders if (claim := load_claim(folder)) is not None]
    if not claims:
        return None
    total = claims[0].astype(np.float64)
    for claim in claims[1:]:
        total += claim
    return (total / len(claims)).astype(np.float32)


def entropy(folder: Path, number: int, randbits: Callable[[int], int] = secrets.randbits) -> int | None:
    """128 bits of the operating system's randomness for audit `number`, the same each time that one is asked for.

    They are recorded beside the digests of what they will be used on.  None if they were drawn for another claim or
    checkpoint: a model that was trained again after an engine failed must be the same, or its luck could be drawn twice.
    Raises `StateError`.
    """
    path = folder / ENTROPY
    known = json.loads(path.read_text()) if path.exists() else {}
    digests = {name: file_sha256(folder / name) for name in (CLAIM, "checkpoint.safetensors")}
    drawn = known.get(str(number))
    if drawn is None:
        drawn = known[str(number)] = {"entropy": f"{randbits(128):032x}", "sha256": digests}
        write_durably(path, json.dumps(known).encode())
    return int(drawn["entropy"], 16) if drawn["sha256"] == digests else None


def drawn_for(folder: Path) -> bool:
    """True if a claim is on the disk for which audits were drawn already, by the very checkpoint that is there now.

    A claim made again differs in its last bits, since the rows come in another order: it is the first one that counts.
    """
    path = folder / ENTROPY
    if not path.exists() or not (folder / CLAIM).exists():
        return False
    digest = file_sha256(folder / "checkpoint.safetensors")
    return all(drawn["sha256"]["checkpoint.safetensors"] == digest for drawn in json.loads(path.read_text()).values())


def forget_draws(folder: Path) -> None:
    """So that the next ones are drawn anew."""
    (folder / ENTROPY).unlink(missing_ok=True)


def audit_file(number: int) -> str:
    """Name of the file with what was asked and answered in audit `number`."""
    return f"audit-{number}.npz"


def save_audit(folder: Path, number: int, draw: Draw, answers: Answers) -> None:
    """Keep what was asked and answered.  Raises `StateError`."""
    buffer = io.BytesIO()
    np.savez(buffer, cuts=draw.cuts, probability=draw.probability, answers=answers)
    write_durably(folder / audit_file(number), buffer.getvalue())


def forget_audits(folder: Path) -> None:
    """Drop what was asked and answered."""
    for path in folder.glob("audit-*.npz"):
        path.unlink()


def answers(folder: Path, number: int) -> Answers:
    """The answers of audit `number`, float64 [rounds, R], nats."""
    with np.load(folder / audit_file(number), allow_pickle=False) as kept:
        found: Answers = kept["answers"]
    return found


def audits(folder: Path) -> tuple[list[Draw], list[Answers]]:
    """All audits of the measurement in `folder`, in their order."""
    draws, given = [], []
    number = 1
    while (path := folder / audit_file(number)).exists():
        with np.load(path, allow_pickle=False) as kept:
            draws.append(Draw(cuts=kept["cuts"], probability=kept["probability"]))
            given.append(kept["answers"])
        number += 1
    return draws, given


def discard(folder: Path) -> None:
    """Drop what is of no use once a measurement is judged, but for a baseline's: 4 bytes for every target."""
    (folder / CLAIM).unlink(missing_ok=True)
