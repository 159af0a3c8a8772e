"""A trial's folders as a container sees them, with synthetic data.

These tests need torch, safetensors and tiktoken: they run in the CPU image, not on the host
(`PYTHONPATH=trainer python3 -m pytest tests/trainer`).
"""

import base64
import gc
import importlib
import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

TRAINER = Path(__file__).resolve().parents[2] / "trainer"
VOCAB, LENGTH, BOS = 260, 32, 259
SMALL = {
    "DEPTH": 3,
    "MODEL_DIM": 32,
    "HEAD_DIM": 16,
    "TOTAL_BATCH_SIZE": 512,
    "DEVICE_BATCH_SIZE": 8,
    "VALUE_GATE_CHANNELS": 8,
    "LOG_EVERY": 2,
}


MODULES = ("prepare", "network", "claim", "audit", "train")


class Trial:
    """One trial on disk, and its modules loaded afresh: each reads its settings when it is imported."""

    def __init__(self, root, monkeypatch):
        self.root = root
        self._monkeypatch = monkeypatch
        self.prepare, self.inputs, self.gated, self.out = (
            root / n for n in ("prepare", "in", "gated", "out")
        )
        for folder in (self.prepare, self.inputs, self.gated, self.out):
            folder.mkdir(parents=True)
        self.settings = {
            "phase": "train",
            "seed": 1337,
            "device": "cpu",
            "threads": 1,
            "budget": {"steps": 6},
            "gate": str(self.gated),
            "out": str(self.out),
            "prepare": str(self.prepare),
        }
        self._write_data()
        self.write_rows(make_rows(50))

    def _write_data(self):
        data = {
            "vocab_size": VOCAB,
            "sequence_length": LENGTH,
            "bos": BOS,
            "train_rows": 50,
            "dataset": "kjv",
        }
        (self.prepare / "data.json").write_text(json.dumps(data))
        # All single bytes, then three longer tokens, then the special one.
        raw = [bytes([i]) for i in range(256)] + [b"th", b"the", "\u00e9".encode()]
        tokenizer = {
            "pattern": r"\S+|\s+",
            "ranks": [base64.b64encode(token).decode() for token in raw],
            "special": {"<|bos|>": BOS},
        }
        (self.prepare / "tokenizer.json").write_text(json.dumps(tokenizer))
        np.save(self.prepare / "token_bytes.npy", np.array([*map(len, raw), 0], dtype=np.uint16))

    def write_rows(self, rows):
        rows.astype("<u2").tofile(self.gated / "rows.bin")

    def load_prepare(self, **settings):
        self._start(settings)
        return importlib.import_module("prepare")

    def load_claim(self, **settings):
        self._start(settings)
        return importlib.import_module("claim")

    def load_audit(self, **settings):
        self._start(settings)
        return importlib.import_module("audit")

    def load_network(self, **settings):
        self._start(settings)
        return importlib.import_module("network")

    def load_train(self, constants=None, settings=None, source=None, *, small=True):
        self._start(settings or {})
        path = self.write_train(constants, source, small=small)
        spec = importlib.util.spec_from_file_location("train", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules["train"] = module
        spec.loader.exec_module(module)
        return module

    def write_train(self, constants=None, source=None, *, small=True):
        path = self.inputs / "train.py"
        source = source or (TRAINER / "train.py").read_text()
        path.write_text(set_constants(source, (SMALL if small else {}) | (constants or {})))
        return path

    def _start(self, settings):
        path = self.inputs / "trial.json"
        path.write_text(json.dumps(self.settings | settings))
        self._monkeypatch.setenv("AUTORESEARCH_TRIAL", str(path))
        self._monkeypatch.syspath_prepend(str(TRAINER))
        for name in MODULES:
            sys.modules.pop(name, None)


def make_rows(count, seed=0):
    """Rows [count, LENGTH + 1] in which a token mostly follows from the one before it."""
    random = np.random.default_rng(seed)
    rows = np.empty((count, LENGTH + 1), dtype=np.uint16)
    rows[:, 0] = random.integers(0, 64, count)
    for t in range(1, LENGTH + 1):
        rows[:, t] = (rows[:, t - 1] * 5 + random.integers(0, 2, count)) % 64
    rows[::7, 3] = BOS
    return rows


def set_constants(source, values):
    for name, value in values.items():
        source, found = re.subn(rf"(?m)^{name} = .*?(?=  #)", f"{name} = {value!r}", source)
        assert found == 1, f"{name} is not set once"
    return source


@pytest.fixture
def make_trial(tmp_path, monkeypatch):
    """Makes trials that share nothing."""
    made = []

    def make():
        made.append(Trial(tmp_path / str(len(made)), monkeypatch))
        return made[-1]

    yield make
    for name in MODULES:
        sys.modules.pop(name, None)
    gc.enable()
    gc.unfreeze()


@pytest.fixture
def trial(make_trial):
    return make_trial()
