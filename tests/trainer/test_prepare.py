import json
import math
import threading
import time
from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from conftest import BOS, LENGTH, VOCAB, make_rows
from safetensors.torch import load_file


def numbered_rows(count):
    """Every token tells its row, and its place in it by the order: row 7 holds 7 * 40, 7 * 40 + 1, ..."""
    return (np.arange(count)[:, None] * 40 + np.arange(LENGTH + 1)).astype(np.uint16)


def test_constants_come_from_the_trial_and_the_data(trial):
    prepare = trial.load_prepare(seed=5, threads=1)
    assert (prepare.SEQUENCE_LENGTH, prepare.VOCAB_SIZE, prepare.BOS, prepare.SEED) == (LENGTH, VOCAB, BOS, 5)
    assert torch.device("cpu") == prepare.DEVICE
    assert torch.get_num_threads() == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_trial_without_a_gpu_says_so(trial):
    with pytest.raises(RuntimeError, match="GPU"):
        trial.load_prepare(device="cuda")


def test_the_tokenizer_knows_merges_and_special_tokens(trial):
    tokenizer = trial.load_prepare().get_tokenizer()
    assert tokenizer.n_vocab == VOCAB
    assert tokenizer.encode_ordinary("the \u00e9") == [257, 32, 258]
    assert tokenizer.encode("<|bos|>a", allowed_special="all") == [BOS, 97]


def test_token_bytes_are_raw_lengths(trial):
    lengths = trial.load_prepare().token_bytes()
    assert lengths.dtype == torch.int64
    assert lengths.shape == (VOCAB,)
    assert lengths[[0, 255, 257, 258, BOS]].tolist() == [1, 1, 3, 2, 0]


# Loader ---------------------------------------------------------------------------------------------------------------


def test_batches_have_the_stated_shape_and_targets_are_inputs_moved_by_one(trial):
    trial.write_rows(numbered_rows(20))
    inputs, targets, epoch = next(trial.load_prepare().make_dataloader(4))
    assert inputs.shape == targets.shape == (4, LENGTH)
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.is_contiguous()
    assert targets.is_contiguous()
    assert torch.equal(targets, inputs + 1)
    assert epoch == 1


def test_an_epoch_has_every_row_once_and_the_next_one_another_order(trial):
    trial.write_rows(numbered_rows(20))
    batches = list(islice(trial.load_prepare().make_dataloader(5), 8))
    first, second = (torch.cat([b[0][:, 0] for b in part]).tolist() for part in (batches[:4], batches[4:]))
    assert sorted(first) == sorted(second) == [row * 40 for row in range(20)]
    assert first != second
    assert [b[2] for b in batches] == [1] * 4 + [2] * 4


def test_a_batch_may_hold_the_end_of_an_epoch_and_the_start_of_the_next(trial):
    trial.write_rows(numbered_rows(6))
    batches = list(islice(trial.load_prepare().make_dataloader(4), 3))
    rows = torch.cat([b[0][:, 0] for b in batches]).tolist()
    assert sorted(rows[:6]) == sorted(rows[6:]) == [row * 40 for row in range(6)]
    assert [b[2] for b in batches] == [1, 1, 2]


def test_a_batch_may_be_larger_than_the_data(trial):
    trial.write_rows(numbered_rows(3))
    inputs, _, epoch = next(trial.load_prepare().make_dataloader(7))
    assert sorted(inputs[:, 0].tolist())[:2] == [0, 0]
    assert epoch == 1


def test_the_order_depends_on_the_seed_alone(trial):
    def first(seed):
        return [b[0] for b in islice(trial.load_prepare(seed=seed).make_dataloader(4), 20)]

    assert all(map(torch.equal, first(1), first(1)))
    assert not all(map(torch.equal, first(1), first(2)))


@pytest.mark.parametrize("length", [1, 10, 16])
def test_a_shorter_sequence_cuts_rows_into_windows_that_share_no_target(trial, length):
    trial.write_rows(numbered_rows(4))
    windows = 4 * (LENGTH // length)
    batches = list(islice(trial.load_prepare().make_dataloader(1, length), windows))
    inputs, targets = (torch.cat([b[i] for b in batches]) for i in (0, 1))
    assert inputs.shape == (windows, length)
    assert torch.equal(targets, inputs + 1)
    assert len(set(targets.flatten().tolist())) == windows * length
    assert [b[2] for b in batches] == [1] * windows


def test_a_longer_sequence_than_the_rows_is_refused_at_once(trial):
    prepare = trial.load_prepare()
    for wrong in (LENGTH + 1, 0):
        with pytest.raises(ValueError, match=f"rows allow 1 to {LENGTH}"):
            prepare.make_dataloader(4, wrong)
    with pytest.raises(ValueError, match="batch_size"):
        prepare.make_dataloader(0)


def test_rows_of_another_length_are_refused(trial):
    np.zeros(LENGTH + 2, dtype="<u2").tofile(trial.gated / "rows.bin")
    with pytest.raises(ValueError, match="whole number of rows"):
        trial.load_prepare().make_dataloader(4)


def test_yielded_tensors_are_never_written_again(trial):
    batches = trial.load_prepare().make_dataloader(4)
    kept = [next(batches)[:2] for _ in range(2)]
    copies = [[t.clone() for t in batch] for batch in kept]
    for _ in range(30):
        next(batches)
    assert all(
        torch.equal(a, b) for x, y in zip(kept, copies, strict=True) for a, b in zip(x, y, strict=True)
    )


def test_token_ids_above_the_signed_range_survive(trial):
    trial.write_rows(np.full((4, LENGTH + 1), 65_535, dtype=np.uint16))
    assert next(trial.load_prepare().make_dataloader(2))[0].unique().tolist() == [65_535]


# Gate and budget ------------------------------------------------------------------------------------------------------


def test_the_gate_says_ready_and_waits_until_the_folder_can_be_listed(trial):
    prepare = trial.load_prepare()
    away = trial.gated.rename(trial.root / "closed")
    opened = []

    def host():
        while not (trial.out / "ready").exists():
            time.sleep(0.001)
        time.sleep(0.05)
        opened.append(time.monotonic())
        away.rename(trial.gated)

    thread = threading.Thread(target=host)
    thread.start()
    prepare.open_gate()
    passed = time.monotonic()
    thread.join()
    assert (trial.out / "ready").read_bytes() == b""
    assert opened[0] <= passed < opened[0] + 1


def test_a_budget_in_steps_counts_steps_and_no_time(trial):
    budget = trial.load_prepare(budget={"steps": 4}).open_gate()
    seen = []
    while not budget.done():
        seen.append(budget.progress())
        budget.step()
    assert seen == [0.0, 0.25, 0.5, 0.75]
    assert budget.progress() == 1.0
    assert budget.steps == 4
    budget.step()
    assert budget.progress() == 1.0


@pytest.mark.parametrize("budget", [{"steps": 100}, {"seconds": 1e9}])
def test_a_dry_run_is_done_after_its_steps_and_has_used_what_it_used(trial, budget):
    found = trial.load_prepare(budget={**budget, "stop_after": 3}).open_gate()
    while not found.done():
        found.step()
    assert found.steps == 3
    assert found.progress() == pytest.approx(0.03 if "steps" in budget else 0.0, abs=1e-6)


def test_a_budget_in_seconds_keeps_the_reserve_for_saving(trial, monkeypatch):
    prepare = trial.load_prepare(budget={"seconds": 13.0, "reserve_seconds": 3.0})
    now = [100.0]
    monkeypatch.setattr(prepare.time, "monotonic", lambda: now[0])
    budget = prepare.open_gate()
    budget.step()
    assert budget.progress() == 0.0
    now[0] = 104.0
    assert budget.progress() == pytest.approx(0.4)
    assert budget.elapsed() == 4.0
    assert not budget.done()
    now[0] = 110.0
    assert budget.done()
    now[0] = 200.0
    assert budget.progress() == 1.0


# Outputs --------------------------------------------------------------------------------------------------------------


def read_progress(trial):
    return json.loads((trial.out / "progress.json").read_text())


def test_progress_is_written_at_most_once_a_second(trial, monkeypatch):
    prepare = trial.load_prepare()
    now = [100.0]
    monkeypatch.setattr(prepare.time, "monotonic", lambda: now[0])
    prepare.report(1, 5.0, 512)
    now[0] = 100.9
    prepare.report(2, 4.0, 1024)
    assert read_progress(trial) == {"step": 1, "loss": 5.0, "tokens": 512, "losses": [[1, 5.0]]}
    now[0] = 101.0
    prepare.report(3, 3.0, 1536)
    assert read_progress(trial) == {
        "step": 3,
        "loss": 3.0,
        "tokens": 1536,
        "losses": [[1, 5.0], [2, 4.0], [3, 3.0]],
    }


@pytest.mark.parametrize("steps", [199, 200, 201, 1000, 4321])
def test_losses_are_thinned_evenly(trial, steps):
    prepare = trial.load_prepare()
    for step in range(1, steps + 1):
        prepare.report(step, 1 / step, step)
    prepare._progress.write()
    at = [step for step, _ in read_progress(trial)["losses"]]
    assert len(at) <= 200
    assert len(at) >= min(steps, 100)
    assert at[0] == 1
    assert len({b - a for a, b in pairwise(at)}) == 1
    assert steps - at[-1] < 2 * (at[1] - at[0])


def test_a_loss_that_is_no_number_is_null(trial):
    trial.load_prepare().report(1, math.nan, 512)
    assert read_progress(trial)["loss"] is None
    assert "NaN" not in (trial.out / "progress.json").read_text()


def test_save_leaves_a_checkpoint_a_summary_and_nothing_half_written(trial):
    prepare = trial.load_prepare()
    model = torch.nn.Linear(3, 2)
    prepare.report(1, 5.0, 512)
    prepare.report(2, 4.0, 1024)
    prepare.save(model, {"num_steps": 2, "training_seconds": torch.tensor(1.5)})
    assert sorted(path.name for path in trial.out.iterdir()) == [
        "checkpoint.safetensors",
        "progress.json",
        "summary.json",
    ]
    assert json.loads((trial.out / "summary.json").read_text()) == {"num_steps": 2, "training_seconds": 1.5}
    assert read_progress(trial)["step"] == 2
    saved = load_file(trial.out / "checkpoint.safetensors")
    assert torch.equal(saved["weight"], model.weight)


def test_a_compiled_model_is_saved_under_its_own_names(trial):
    model = torch.compile(torch.nn.Linear(3, 2), backend="eager")
    trial.load_prepare().save(model, {})
    assert set(load_file(trial.out / "checkpoint.safetensors")) == {"weight", "bias"}


def test_make_rows_holds_a_special_token():
    assert (make_rows(20) == BOS).any()
