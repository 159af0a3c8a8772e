"""The claim: what the trained model says about the validation rows.

Runs in a container of its own after training and writes the negative log-likelihood of every target to `nll.bin`.  The
host does not take its word: it asks another container (audit.py) about tokens that are not there.
"""

from __future__ import annotations

import numpy as np
import prepare
import torch
from network import Network, leave, negative_log_likelihood


def score_rows(network: Network, rows: np.ndarray) -> np.ndarray:
    """Nats of every target, float32 [rows, T], for token rows uint16 [rows, T + 1]."""
    nll = np.empty((len(rows), rows.shape[1] - 1), dtype="<f4")
    for start, count, tokens in network.batches(rows):
        logits = network.logits(tokens[:, :-1].contiguous())
        nll[start : start + count] = negative_log_likelihood(logits, tokens[:, 1:])[:count].cpu().numpy()
    return nll


@torch.no_grad()
def main() -> None:
    """Get ready, pass the gate, load the weights, score the rows."""
    network = Network(prepare.TRIAL["batch_rows"])
    prepare.pass_gate()
    network.load()
    rows = prepare.open_rows()
    assert len(rows) == prepare.TRIAL["rows"], (
        f"{len(rows)} rows lie behind the gate, not {prepare.TRIAL['rows']}"
    )
    nll = network.answer_all(len(rows), prepare.SEQUENCE_LENGTH, lambda part: score_rows(network, rows[part]))
    partial = prepare.OUT_PATH / "nll.partial"
    nll.tofile(partial)
    partial.replace(prepare.OUT_PATH / "nll.bin")


if __name__ == "__main__":
    main()
    leave()
