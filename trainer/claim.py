"""The claim: what the trained model says about the validation rows.

Runs in a container of its own after training: rebuilds the network from train.py, gets the weights and the rows at the
gate, and writes the negative log-likelihood of every target to `nll.bin`.  The host does not take its word: it asks
another container about tokens that were never handed over.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING

import numpy as np
import prepare
import torch
import torch.nn.functional as F
from safetensors.torch import load_model

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

LOGITS_PER_CHUNK = 1 << 25
"""Logits that are turned into float32 at a time (128 MiB)."""


def load_train(path: Path) -> ModuleType:
    """train.py as a module named `train`: its definitions run, its `main` does not."""
    spec = importlib.util.spec_from_file_location("train", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train"] = module
    spec.loader.exec_module(module)
    return module


def logits_of(model: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """The model's answer to int64 ids [B, T], checked: floating point [B, T, VOCAB_SIZE]."""
    logits = model(inputs)
    assert isinstance(logits, torch.Tensor), (
        f"model(ids) gave {type(logits).__name__}; it must give a tensor of logits"
    )
    expected = (*inputs.shape, prepare.VOCAB_SIZE)
    assert tuple(logits.shape) == expected, (
        f"model(ids) gave shape {tuple(logits.shape)} for ids of shape {tuple(inputs.shape)}; "
        f"logits must have shape {expected}"
    )
    assert logits.is_floating_point(), f"model(ids) gave {logits.dtype}; logits must be floating point"
    return logits


def negative_log_likelihood(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Nats of every target, float32 [B, T], from logits [B, T, vocab] and int64 targets [B, T]."""
    chunk = max(1, LOGITS_PER_CHUNK // logits.shape[-1])
    flat_logits, flat_targets = logits.flatten(0, 1), targets.flatten()
    parts = [
        F.nll_loss(F.log_softmax(some.float(), dim=-1), wanted, reduction="none")
        for some, wanted in zip(flat_logits.split(chunk), flat_targets.split(chunk), strict=True)
    ]
    return torch.cat(parts).view(targets.shape)


def score_rows(model: torch.nn.Module, rows: np.ndarray, batch_rows: int) -> np.ndarray:
    """Nats of every target, float32 [rows, T], for token rows uint16 [rows, T + 1].

    Every batch has `batch_rows` rows: the last one is filled up with its first row, and that part is dropped.
    """
    nll = np.empty((len(rows), rows.shape[1] - 1), dtype="<f4")
    for start in range(0, len(rows), batch_rows):
        batch = np.asarray(rows[start : start + batch_rows], dtype=np.int64)
        count = len(batch)
        batch = np.concatenate([batch, np.repeat(batch[:1], batch_rows - count, axis=0)])
        tokens = torch.from_numpy(batch).to(prepare.DEVICE)
        answer = negative_log_likelihood(logits_of(model, tokens[:, :-1].contiguous()), tokens[:, 1:])
        nll[start : start + count] = answer[:count].cpu().numpy()
    return nll


@torch.no_grad()
def main() -> None:
    """Warm up on dummy tokens, pass the gate, load the weights, score the rows."""
    batch_rows = prepare.TRIAL["batch_rows"]
    torch.manual_seed(prepare.SEED)
    train = load_train(prepare.TRIAL_PATH.parent / "train.py")
    model = train.build_model(prepare.DEVICE).eval()
    shape = (batch_rows, prepare.SEQUENCE_LENGTH + 1)
    dummy = np.random.default_rng(prepare.SEED).integers(prepare.VOCAB_SIZE, size=shape, dtype=np.uint16)
    score_rows(model, dummy, batch_rows)

    prepare.pass_gate()
    load_model(
        getattr(model, "_orig_mod", model),
        str(prepare.GATE_PATH / "checkpoint.safetensors"),
        device=str(prepare.DEVICE),
    )
    rows = prepare.open_rows()
    assert len(rows) == prepare.TRIAL["rows"], (
        f"{len(rows)} rows lie behind the gate, not {prepare.TRIAL['rows']}"
    )
    nll = score_rows(model, rows, batch_rows)
    partial = prepare.OUT_PATH / "nll.partial"
    nll.tofile(partial)
    partial.replace(prepare.OUT_PATH / "nll.bin")


if __name__ == "__main__":
    main()
