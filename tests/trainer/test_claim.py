import shutil
import threading
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import LENGTH, VOCAB, make_rows
from safetensors.torch import load_model

TIED = """
import torch
from torch import nn
from prepare import VOCAB_SIZE

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB_SIZE, 8)
        self.head = nn.Linear(8, VOCAB_SIZE, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.embedding(ids))

def build_model(device):
    return Tied().to(device)

if __name__ == "__main__":
    raise SystemExit("run as a program")
"""


def claim(trial, rows, batch_rows=4):
    """Run the claim on what lies in `out`, as its container would; gives nll [rows, LENGTH]."""
    if (trial.out / "checkpoint.safetensors").exists():
        shutil.move(trial.out / "checkpoint.safetensors", trial.gated / "checkpoint.safetensors")
    trial.write_rows(rows)
    trial.load_claim(phase="claim", rows=len(rows), batch_rows=batch_rows).main()
    return np.fromfile(trial.out / "nll.bin", dtype="<f4").reshape(len(rows), LENGTH)


def expected(model, rows):
    tokens = torch.from_numpy(rows.astype(np.int64))
    with torch.no_grad():
        logits = model(tokens[:, :-1]).double()
    return (
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        .view(len(rows), -1)
        .numpy()
    )


@pytest.mark.parametrize("batch_rows", [4, 10, 16])
def test_what_was_trained_is_what_is_claimed(trial, batch_rows):
    train = trial.load_train()
    train.main()
    rows = make_rows(10, seed=9)
    model = train.build_model("cpu")
    load_model(model, str(trial.out / "checkpoint.safetensors"))
    wanted = expected(model, rows)
    nll = claim(trial, rows, batch_rows)
    assert (trial.out / "nll.bin").stat().st_size == 4 * 10 * LENGTH
    np.testing.assert_allclose(nll, wanted, atol=1e-5)
    assert nll.mean() < np.log(VOCAB) - 0.1


def test_tied_weights_survive_and_main_does_not_run(trial):
    prepare = trial.load_prepare()
    (trial.inputs / "train.py").write_text(TIED)
    namespace = {"__name__": "train"}
    exec(compile(TIED, "train.py", "exec"), namespace)
    torch.manual_seed(3)
    model = namespace["build_model"]("cpu")
    prepare.save(model, {})
    rows = make_rows(5, seed=2)
    np.testing.assert_allclose(claim(trial, rows), expected(model, rows), atol=1e-5)


def test_weights_and_rows_are_touched_only_after_ready(trial):
    trial.load_train().main()
    (trial.out / "ready").unlink()
    away = trial.gated.rename(trial.root / "closed")
    shutil.move(trial.out / "checkpoint.safetensors", away / "checkpoint.safetensors")

    def host():
        while not (trial.out / "ready").exists():
            time.sleep(0.001)
        away.rename(trial.gated)

    thread = threading.Thread(target=host)
    thread.start()
    trial.load_claim(phase="claim", rows=50, batch_rows=4).main()
    thread.join()
    assert np.isfinite(np.fromfile(trial.out / "nll.bin", dtype="<f4")).all()


def test_another_number_of_rows_than_stated_is_refused(trial):
    trial.load_train().main()
    shutil.move(trial.out / "checkpoint.safetensors", trial.gated / "checkpoint.safetensors")
    module = trial.load_claim(phase="claim", rows=7, batch_rows=4)
    with pytest.raises(AssertionError, match="50 rows"):
        module.main()
