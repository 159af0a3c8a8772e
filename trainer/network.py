"""The candidate's network as it is scored: built from train.py, warmed up on dummy tokens, loaded at the gate.

Both scoring programs, claim.py and audit.py, ask it in the same way, so that an honest model gives both the same answer.
"""

from __future__ import annotations

import importlib.util
import itertools
import mmap
import os
import sys
import traceback
from typing import TYPE_CHECKING

import numpy as np
import prepare
import torch
import torch.nn.functional as F
from safetensors.torch import load_model

if TYPE_CHECKING:
    from collections.abc import Callable
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


class Network:
    """The network and the one size of batch that it is asked in."""

    def __init__(self, batch_rows: int) -> None:
        """Build it with weights of no meaning and ask it once, so that what must be compiled is compiled."""
        torch.manual_seed(prepare.SEED)
        self._workers = prepare.TRIAL["threads"] if prepare.DEVICE.type == "cpu" else 1
        if self._workers > 1:
            # Before anything is computed: a process that has a pool of threads cannot be forked safely.
            torch.set_num_threads(1)
        train = load_train(prepare.TRIAL_PATH.parent / "train.py")
        self._batch_rows = batch_rows
        self._model = train.build_model(prepare.DEVICE).eval()
        if self._workers > 1:
            torch.set_num_threads(1)  # again: the file may have set it
        self._ask = self._model
        shape = (batch_rows, prepare.SEQUENCE_LENGTH)
        dummy = np.random.default_rng(prepare.SEED).integers(prepare.VOCAB_SIZE, size=shape, dtype=np.uint16)
        tokens = torch.from_numpy(dummy.astype(np.int64)).to(prepare.DEVICE)
        if prepare.DEVICE.type == "cuda" and not hasattr(self._model, "_orig_mod"):
            self._ask = torch.compile(self._model, dynamic=False)
            try:
                self.logits(tokens)
            except Exception as error:  # noqa: BLE001 - whatever the compiler meets in a foreign model
                print(f"not compiled, asked as it is: {type(error).__name__}")
                self._ask = self._model
        self.logits(tokens)

    def load(self, path: Path | None = None) -> None:
        """Put in the weights of a checkpoint; by default those that lie behind the gate."""
        path = path or prepare.GATE_PATH / "checkpoint.safetensors"
        load_model(getattr(self._model, "_orig_mod", self._model), str(path), device=str(prepare.DEVICE))

    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """The model's answer to int64 ids [B, T], checked: floating point [B, T, VOCAB_SIZE]."""
        logits = self._ask(inputs)
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

    def answer_all(self, count: int, width: int, answer: Callable[[slice], np.ndarray]) -> np.ndarray:
        """What `answer` gives for parts of `count` rows, put together: float32 [count, width].

        On a CPU every processor has a process with one thread and a part of the batches: matrices of this size keep two
        threads waiting for each other half of the time.  Each row is answered in the same batch whatever their number.
        """
        batches = -(-count // self._batch_rows)
        workers = min(self._workers, batches)
        if workers == 1:
            return answer(slice(0, count))
        found = np.frombuffer(mmap.mmap(-1, count * width * 4), dtype="<f4").reshape(count, width)
        starts = [batches * worker // workers * self._batch_rows for worker in range(workers)] + [count]
        parts = [slice(*pair) for pair in itertools.pairwise(starts)]
        children = [fork(found, part, answer) for part in parts[1:]]
        found[parts[0]] = answer(parts[0])
        for child in children:
            _, status = os.waitpid(child, 0)
            assert status == 0, f"a process that answers for a part of the rows ended with status {status}"
        return found

    def batches(self, rows: np.ndarray):
        """(first row, how many count, int64 ids [batch_rows, T]) for rows of ids uint16 [rows, T].

        Every batch has the same size: the last one is filled up with its first row.
        """
        for start in range(0, len(rows), self._batch_rows):
            batch = np.asarray(rows[start : start + self._batch_rows], dtype=np.int64)
            count = len(batch)
            batch = np.concatenate([batch, np.repeat(batch[:1], self._batch_rows - count, axis=0)])
            yield start, count, torch.from_numpy(batch).to(prepare.DEVICE)


def leave() -> None:
    """End this process at once: taking torch apart properly takes half a second."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def fork(found: np.ndarray, part: slice, answer: Callable[[slice], np.ndarray]) -> int:
    """A process that puts the answers of one part into `found`, which it shares with this one; its number."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        found[part] = answer(part)
        status = 0
    except BaseException:  # noqa: BLE001 - nothing may go on in this process
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def negative_log_likelihood(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Nats of every target, float32 [B, T], from logits [B, T, vocab] and int64 targets [B, T]."""
    chunk = max(1, LOGITS_PER_CHUNK // logits.shape[-1])
    flat_logits, flat_targets = logits.flatten(0, 1), targets.flatten()
    parts = [
        F.nll_loss(F.log_softmax(some.float(), dim=-1), wanted, reduction="none")
        for some, wanted in zip(flat_logits.split(chunk), flat_targets.split(chunk), strict=True)
    ]
    return torch.cat(parts).view(targets.shape)
