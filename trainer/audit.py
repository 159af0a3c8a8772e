"""The audit: what the trained model says where it cannot see what comes next.

Runs in a container of its own after the claim.  Each question shows rows up to a cut; what follows is other text.  The
answer is all logits at the cut, and the host, which alone knows the token that was hidden, works out its likelihood.
Questions come in rounds: the next one is readable only when the answer to the one before is out of this container's reach.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import prepare
import torch
from network import Network, leave

if TYPE_CHECKING:
    from pathlib import Path

POLL_SECONDS = 0.003


def read_question(path: Path, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts, int32 [rows], and ids, uint16 [rows, T]: the file holds the one after the other, little endian."""
    raw = path.read_bytes()
    cuts = np.frombuffer(raw, dtype="<i4", count=rows)
    ids = np.frombuffer(raw, dtype="<u2", offset=cuts.nbytes).reshape(rows, prepare.SEQUENCE_LENGTH)
    return cuts, ids


def answer(network: Network, cuts: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Logits at the cut of each row, float32 [rows, VOCAB_SIZE]."""
    logits = np.empty((len(ids), prepare.VOCAB_SIZE), dtype="<f4")
    for start, count, tokens in network.batches(ids):
        at = torch.from_numpy(cuts[start : start + count].astype(np.int64)).to(prepare.DEVICE)
        found = network.logits(tokens)[torch.arange(count, device=prepare.DEVICE), at]
        logits[start : start + count] = found.float().cpu().numpy()
    return logits


def wait_for(path: Path) -> None:
    """Until the file may be read."""
    while True:
        try:
            path.open("rb").close()
        except OSError:
            time.sleep(POLL_SECONDS)
        else:
            return


@torch.no_grad()
def main() -> None:
    """Get ready, pass the gate, load the weights, answer the questions in their order."""
    trial: dict[str, Any] = prepare.TRIAL
    network = Network(trial["batch_rows"])
    prepare.pass_gate()
    network.load()
    for question, name in trial["rounds"]:
        wait_for(prepare.GATE_PATH / question)
        cuts, ids = read_question(prepare.GATE_PATH / question, trial["rows"])

        def of(part: slice, cuts: np.ndarray = cuts, ids: np.ndarray = ids) -> np.ndarray:
            return answer(network, cuts[part], ids[part])

        logits = network.answer_all(len(ids), prepare.VOCAB_SIZE, of)
        partial = prepare.OUT_PATH / f"{name}.partial"
        logits.tofile(partial)
        partial.replace(prepare.OUT_PATH / name)
    wait_for(prepare.GATE_PATH / "end")


if __name__ == "__main__":
    main()
    leave()
