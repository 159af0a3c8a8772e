"""The candidates that other tests send through whole trials do here what their names say."""

from pathlib import Path

import pytest
import torch
from conftest import LENGTH, VOCAB

CANDIDATES = Path(__file__).resolve().parents[1] / "candidates"


def load(trial, name, **settings):
    source = (CANDIDATES / f"{name}.py").read_text()
    return trial.load_train(source=source, constants=None, settings=settings, small=False)


@pytest.mark.parametrize("name", ["better", "worse", "neutral"])
def test_the_honest_ones_train_and_keep_the_contract(trial, name):
    train = load(trial, name, budget={"steps": 1})
    train.main()
    assert (trial.out / "checkpoint.safetensors").exists()
    logits = train.build_model("cpu")(torch.zeros(2, LENGTH, dtype=torch.int64))
    assert logits.shape == (2, LENGTH, VOCAB)


def test_the_neutral_one_gives_the_very_weights_of_the_file_it_was_made_from(make_trial):
    names = ("DEPTH", "MODEL_DIM", "HEAD_DIM", "TOTAL_BATCH_SIZE", "DEVICE_BATCH_SIZE", "ROPE_BASE", "X0_LR")
    names += ("MATRIX_LR", "EMBEDDING_LR", "UNEMBEDDING_LR", "WARMDOWN", "FINAL_LR")
    saved = []
    first = make_trial()
    neutral = load(first, "neutral", budget={"steps": 3})
    constants = {name: getattr(neutral, name) for name in names}
    neutral.main()
    saved.append((first.out / "checkpoint.safetensors").read_bytes())
    second = make_trial()
    second.load_train(constants, {"budget": {"steps": 3}}, small=False).main()
    saved.append((second.out / "checkpoint.safetensors").read_bytes())
    assert saved[0] == saved[1]


def test_the_one_that_raises_does_so_after_the_gate(trial):
    with pytest.raises(RuntimeError, match="always fails"):
        load(trial, "raises").main()
    assert (trial.out / "ready").exists()


def test_the_one_that_prints_a_score_saves_nothing(trial, capsys):
    load(trial, "prints_score").main()
    assert "val_bpb: 0.1" in capsys.readouterr().out
    assert [path.name for path in trial.out.iterdir()] == ["ready"]


@pytest.mark.parametrize("name", ["sleeps", "eats_memory"])
def test_the_dangerous_ones_do_nothing_before_the_gate(trial, name):
    train = load(trial, name)
    assert train.build_model("cpu")(torch.zeros(2, LENGTH, dtype=torch.int64)).shape == (2, LENGTH, VOCAB)
    assert not (trial.out / "ready").exists()
