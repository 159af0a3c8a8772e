import os

import numpy as np
import pytest
import torch
from conftest import LENGTH, VOCAB

FIXED = """
import torch
from torch import nn
from prepare import VOCAB_SIZE

class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, ids):
        return {answer}

def build_model(device):
    return Fixed().to(device)
"""


def test_sixteen_bit_logits_are_normalised_in_float32(trial):
    network = trial.load_network()
    logits = torch.randn(2, 3, VOCAB).bfloat16()
    targets = torch.randint(VOCAB, (2, 3))
    nll = network.negative_log_likelihood(logits, targets)
    assert nll.dtype == torch.float32
    wanted = -logits.double().log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    torch.testing.assert_close(nll.double(), wanted, atol=1e-5, rtol=0)


def test_chunks_change_nothing(trial, monkeypatch):
    network = trial.load_network()
    logits, targets = torch.randn(4, LENGTH, VOCAB), torch.randint(VOCAB, (4, LENGTH))
    whole = network.negative_log_likelihood(logits, targets)
    monkeypatch.setattr(network, "LOGITS_PER_CHUNK", 7 * VOCAB)
    assert torch.equal(network.negative_log_likelihood(logits, targets), whole)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("torch.zeros(*ids.shape, VOCAB_SIZE + 1)", "must have shape"),
        ("torch.zeros(ids.numel(), VOCAB_SIZE)", "must have shape"),
        ("torch.zeros(())", "must have shape"),
        ("(torch.zeros(*ids.shape, VOCAB_SIZE), None)", "tuple"),
        ("torch.zeros(*ids.shape, VOCAB_SIZE, dtype=torch.int64)", "floating point"),
    ],
)
def test_an_answer_that_is_no_logits_is_named(trial, answer, said):
    (trial.inputs / "train.py").write_text(FIXED.format(answer=answer))
    network = trial.load_network()
    with pytest.raises(AssertionError, match=said):
        network.Network(2)


def test_every_batch_has_the_same_size(trial):
    (trial.inputs / "train.py").write_text(FIXED.format(answer="torch.zeros(*ids.shape, VOCAB_SIZE)"))
    network = trial.load_network().Network(4)
    rows = torch.arange(10 * LENGTH).reshape(10, LENGTH).numpy().astype("uint16")
    seen = [(start, count, tuple(tokens.shape), tokens[-1, 0].item()) for start, count, tokens in network.batches(rows)]
    assert seen == [
        (0, 4, (4, LENGTH), 3 * LENGTH),
        (4, 4, (4, LENGTH), 7 * LENGTH),
        (8, 2, (4, LENGTH), 8 * LENGTH),
    ]


@pytest.mark.parametrize("threads", [1, 2, 3, 9])
def test_as_many_processes_as_there_are_give_the_same_answers(trial, threads):
    (trial.inputs / "train.py").write_text(FIXED.format(answer="torch.zeros(*ids.shape, VOCAB_SIZE)"))
    network = trial.load_network(threads=threads).Network(4)
    here, asked = os.getpid(), np.arange(10, dtype="<f4")[:, None] * np.ones(3, dtype="<f4")

    def answer(part):
        assert part.start % 4 == 0, "each row stays in its batch"
        return np.concatenate([asked[part], np.full((len(asked[part]), 1), os.getpid() == here)], axis=1)

    found = network.answer_all(10, 4, answer)

    np.testing.assert_array_equal(found[:, :3], asked)
    workers = min(threads, 3)
    assert found[0, 3] == 1
    assert bool(found[-1, 3]) == (workers == 1)


def test_a_process_that_fails_gives_no_answers(trial, capfd):
    (trial.inputs / "train.py").write_text(FIXED.format(answer="torch.zeros(*ids.shape, VOCAB_SIZE)"))
    network = trial.load_network(threads=2).Network(4)

    def answer(part):
        if part.start:
            raise ValueError("only for the first rows")
        return np.zeros((part.stop, 1), dtype="<f4")

    with pytest.raises(AssertionError, match="ended with status"):
        network.answer_all(10, 1, answer)
    assert "ValueError: only for the first rows" in capfd.readouterr().err


def test_a_file_that_sets_the_number_of_threads_is_answered_all_the_same(trial):
    """A process that has a pool of threads would hang in the one it forks."""
    source = FIXED.format(answer="(torch.ones(512, 512) @ torch.ones(512, 512))[0, 0] * torch.ones(*ids.shape, VOCAB_SIZE)")
    (trial.inputs / "train.py").write_text(f"import torch\ntorch.set_num_threads(4)\n{source}")
    network = trial.load_network(threads=2).Network(4)
    tokens = torch.zeros(4, LENGTH, dtype=torch.int64)

    found = network.answer_all(10, 1, lambda part: network.logits(tokens)[0, : part.stop - part.start, :1].numpy())

    assert torch.get_num_threads() == 1
    assert (found == 512).all()
