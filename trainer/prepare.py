"""The fixed side of a trial: what is given to train.py, and what it may give back.

train.py imports from here.  Nothing in this file can be changed by a trial: it lies on a read-only mount, and the host
believes none of it.  The clock that counts, the limits and the score are kept outside the container.

Two files say what this trial is: `trial.json`, whose path is in the environment as AUTORESEARCH_TRIAL, and `data.json`
in the folder that it names as `prepare`.
"""

from __future__ import annotations

import base64
import json
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import tiktoken

# ---------------------------------------------------------------------------------------------------------------------
# What this trial is

TRIAL_PATH: Path = Path(os.environ.get("AUTORESEARCH_TRIAL", "/in/trial.json"))
TRIAL: dict[str, Any] = json.loads(TRIAL_PATH.read_text())
PREPARE_PATH: Path = Path(TRIAL["prepare"])
OUT_PATH: Path = Path(TRIAL["out"])
GATE_PATH: Path = Path(TRIAL["gate"])
DATA: dict[str, Any] = json.loads((PREPARE_PATH / "data.json").read_text())

SEQUENCE_LENGTH: int = DATA["sequence_length"]
"""Tokens in one row as the model sees it; the model is scored at this length."""
VOCAB_SIZE: int = DATA["vocab_size"]
"""Number of tokens, special ones included; the last dimension of the logits."""
BOS: int = DATA["bos"]
"""The token that every document starts with."""
SEED: int = TRIAL["seed"]
"""Chosen by the runner: seed everything random with it."""
DEVICE: torch.device = torch.device(TRIAL["device"])
"""Where to train."""

torch.set_num_threads(TRIAL["threads"])
if DEVICE.type == "cuda" and not torch.cuda.is_available():
    raise RuntimeError("this trial wants a GPU, and torch finds none")


# ---------------------------------------------------------------------------------------------------------------------
# Tokens


def get_tokenizer() -> tiktoken.Encoding:
    """The tokenizer of the data.  Training needs none: rows hold token ids already."""
    import tiktoken

    tokenizer = json.loads((PREPARE_PATH / "tokenizer.json").read_text())
    return tiktoken.Encoding(
        name=DATA["dataset"],
        pat_str=tokenizer["pattern"],
        mergeable_ranks={base64.b64decode(raw): rank for rank, raw in enumerate(tokenizer["ranks"])},
        special_tokens=tokenizer["special"],
    )


def token_bytes() -> torch.Tensor:
    """Raw bytes of each token, int64 [VOCAB_SIZE] on DEVICE; 0 for special tokens, which the score leaves out."""
    lengths = np.load(PREPARE_PATH / "token_bytes.npy", allow_pickle=False)
    return torch.from_numpy(lengths.astype(np.int64)).to(DEVICE)


def open_rows() -> np.ndarray:
    """The rows behind the gate, uint16 [rows, SEQUENCE_LENGTH + 1], memory-mapped and read-only."""
    path = GATE_PATH / "rows.bin"
    tokens = np.memmap(path, dtype="<u2", mode="r")
    if tokens.size == 0 or tokens.size % (SEQUENCE_LENGTH + 1):
        raise ValueError(f"{path}: {tokens.size} tokens are no whole number of rows of {SEQUENCE_LENGTH + 1}")
    return tokens.reshape(-1, SEQUENCE_LENGTH + 1)


def make_dataloader(
    batch_size: int, sequence_length: int = SEQUENCE_LENGTH
) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
    """Training batches without end, in an order that depends on the seed and the epoch alone.

    Open the gate first.  Each pass over the data (an epoch) visits every row once in a new random order; a batch may
    hold the end of one pass and the start of the next.  A `sequence_length` below SEQUENCE_LENGTH cuts each row into
    windows that share no target, and drops the rest of the row.

    Yields:
        inputs: int64 [batch_size, sequence_length] on DEVICE.
        targets: int64, the same shape; the token that follows each input.
        epoch: the pass that the batch begins in, from 1.

    Tensors once yielded are never written again.
    """
    if not 1 <= sequence_length <= SEQUENCE_LENGTH:
        raise ValueError(f"sequence_length is {sequence_length}; rows allow 1 to {SEQUENCE_LENGTH}")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    return _batches(open_rows(), batch_size, sequence_length)


def _batches(
    rows: np.ndarray, batch_size: int, sequence_length: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
    windows = SEQUENCE_LENGTH // sequence_length
    # The same memory seen as [rows, windows, sequence_length + 1]; a window's last token is the next one's first.
    shape = (len(rows), windows, sequence_length + 1)
    strides = (rows.strides[0], sequence_length * rows.itemsize, rows.itemsize)
    pieces = np.lib.stride_tricks.as_strided(rows, shape, strides, writeable=False)
    order = np.empty(0, dtype=np.int64)
    passes, taken = 0, 0

    def next_batch() -> tuple[torch.Tensor, torch.Tensor, int]:
        nonlocal order, passes, taken
        epoch = 0
        picked = np.empty(batch_size, dtype=np.int64)
        filled = 0
        while filled < batch_size:
            if taken == order.size:
                passes, taken = passes + 1, 0
                order = np.random.default_rng((SEED, passes)).permutation(len(rows) * windows)
            epoch = epoch or passes
            count = min(batch_size - filled, order.size - taken)
            picked[filled : filled + count] = order[taken : taken + count]
            filled, taken = filled + count, taken + count
        tokens = torch.from_numpy(pieces[np.divmod(picked, windows)].astype(np.int64))
        if DEVICE.type == "cuda":
            # The caching host allocator keeps a pinned block until the copy out of it has run, so none is overwritten.
            tokens = tokens.pin_memory().to(DEVICE, non_blocking=True)
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), epoch

    # One batch ahead: its copy is under way while the caller works on the one before.
    ahead = next_batch()
    while True:
        batch, ahead = ahead, next_batch()
        yield batch


# ---------------------------------------------------------------------------------------------------------------------
# The gate and the budget


def pass_gate() -> None:
    """Say `ready` and wait until the host lets this container at the data; the host's clock starts then."""
    (OUT_PATH / "ready").touch()
    while True:
        try:
            next(GATE_PATH.iterdir(), None)
        except OSError:
            time.sleep(0.002)
        else:
            return


class Budget:
    """What is left to train with: a number of steps, or seconds since the gate."""

    def __init__(self) -> None:
        budget = TRIAL["budget"]
        self._steps: int | None = budget.get("steps")
        self._seconds: float = 0.0
        if self._steps is None:
            # Saving the model and leaving must fit into the budget too: the host's clock stops when the process is gone.
            self._seconds = max(budget["seconds"] - budget.get("reserve_seconds", 0.0), 1e-3)
        self._stop_after: int | None = budget.get("stop_after")
        self._started = time.monotonic()
        self.steps = 0
        """Steps counted so far."""

    def step(self) -> None:
        """Count one optimiser step."""
        self.steps += 1

    def elapsed(self) -> float:
        """Seconds since the gate opened."""
        return time.monotonic() - self._started

    def progress(self) -> float:
        """The part of the budget that is used, 0 to 1.  Synchronise the GPU first if the answer must be exact."""
        used = self.steps / self._steps if self._steps is not None else self.elapsed() / self._seconds
        return min(used, 1.0)

    def done(self) -> bool:
        """True once the budget is used up, or the few steps of a dry run are done: stop and save."""
        return self.progress() >= 1.0 or (self._stop_after is not None and self.steps >= self._stop_after)


def open_gate() -> Budget:
    """Say that everything is ready, wait for the training data, and start the clock.  Call once, before any data."""
    pass_gate()
    return Budget()


# ---------------------------------------------------------------------------------------------------------------------
# What comes back

MAX_LOSSES = 200
REPORT_SECONDS = 1.0


class _Progress:
    """What was reported so far; of the losses, every `stride`-th, so that they stay few and evenly spread."""

    def __init__(self) -> None:
        self.latest: dict[str, Any] = {}
        self.losses: list[tuple[int, float | None]] = []
        self.stride = 1
        self.reports = 0
        self.written = -math.inf

    def add(self, step: int, loss: float | None, tokens: int) -> None:
        if self.reports % self.stride == 0:
            self.losses.append((step, loss))
            if len(self.losses) > MAX_LOSSES:
                del self.losses[1::2]
                self.stride *= 2
        self.reports += 1
        self.latest = {"step": step, "loss": loss, "tokens": tokens}

    def write(self) -> None:
        self.written = time.monotonic()
        write_json("progress.json", {**self.latest, "losses": self.losses})


_progress = _Progress()


def report(step: int, loss: float, tokens: int) -> None:
    """Say where training is: shown live, believed by nobody.  Cheap; call it every step.

    Args:
        step: optimiser steps done.
        loss: training loss of that step, nats per token.
        tokens: tokens trained on so far.
    """
    _progress.add(int(step), float(loss) if math.isfinite(loss) else None, int(tokens))
    if time.monotonic() - _progress.written >= REPORT_SECONDS:
        _progress.write()


def save(model: torch.nn.Module, summary: Mapping[str, float]) -> None:
    """Hand over the trained model.  Call once, at the end.

    Args:
        model: its `state_dict` is saved; weights that share memory are stored once.  A compiled model is unwrapped.
        summary: flat numbers about the run, shown to people.
    """
    from safetensors.torch import save_model

    if _progress.latest:
        _progress.write()
    write_json("summary.json", {name: float(value) for name, value in summary.items()})
    partial = OUT_PATH / "checkpoint.partial"
    save_model(getattr(model, "_orig_mod", model), str(partial))
    partial.replace(OUT_PATH / "checkpoint.safetensors")


def write_json(name: str, value: dict[str, Any]) -> None:
    """Give the host a file of this name, whole or not at all."""
    partial = OUT_PATH / f"{name}.partial"
    partial.write_text(json.dumps(value))
    partial.replace(OUT_PATH / name)
