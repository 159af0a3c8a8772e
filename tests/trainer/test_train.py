import ast
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import LENGTH, TRAINER, VOCAB
from safetensors.torch import load_file

SUMMARY = [
    "training_seconds",
    "total_seconds",
    "peak_vram_mb",
    "mfu_percent",
    "total_tokens_M",
    "num_steps",
    "num_params_M",
    "depth",
]


def checkpoint(trial):
    return (trial.out / "checkpoint.safetensors").read_bytes()


def awake(model):
    """A model in which nothing is zero, so that every path reaches the logits."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.1)
    return model


# The contract -----------------------------------------------------------------------------------------------------------


def test_logits_have_the_stated_shape_and_depend_on_the_past_alone(trial):
    model = awake(trial.load_train().build_model("cpu"))
    ids = torch.randint(VOCAB, (3, LENGTH))
    with torch.no_grad():
        before = model(ids)
        assert before.shape == (3, LENGTH, VOCAB)
        for cut in (0, 1, LENGTH // 2, LENGTH - 1):
            changed = ids.clone()
            changed[:, cut:] = torch.randint(VOCAB, (3, LENGTH - cut))
            torch.testing.assert_close(model(changed)[:, :cut], before[:, :cut], atol=1e-5, rtol=0)
        # And on the past they do depend.
        changed = ids.clone()
        changed[:, 0] = (ids[:, 0] + 1) % VOCAB
        assert not torch.allclose(model(changed)[:, -1], before[:, -1], atol=1e-4)


def test_rows_of_a_batch_do_not_touch_each_other(trial):
    model = awake(trial.load_train().build_model("cpu"))
    ids = torch.randint(VOCAB, (4, LENGTH))
    with torch.no_grad():
        torch.testing.assert_close(model(ids)[1:2], model(ids[1:2]), atol=1e-5, rtol=0)


def test_nothing_happens_at_import_but_definitions(trial):
    trial.load_train()
    assert list(trial.out.iterdir()) == []
    tree = ast.parse((TRAINER / "train.py").read_text())
    calls = [node for node in tree.body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)]
    assert calls == []


def test_only_prepare_torch_and_the_standard_library_are_needed(trial):
    tree = ast.parse((TRAINER / "train.py").read_text())
    names = [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
    roots = {name.split(".")[0] for name in names}
    assert roots - sys.stdlib_module_names == {"prepare", "torch"}


def test_every_constant_is_a_literal_with_a_comment_that_does_not_repeat_it(trial):
    source = (TRAINER / "train.py").read_text()
    section = source[source.index("# Constants.") : source.index("# Attention.")]
    lines = [line for line in section.splitlines() if re.match(r"[A-Z]", line)]
    assert len(lines) > 30
    for line in lines:
        name, value, comment = re.fullmatch(r"([A-Z][A-Z0-9_]*) = (.+?)  # (.+)", line).groups()
        assert value == "2**18" or ast.literal_eval(value) is not None, name
        assert not re.search(rf"(?<![\w.]){re.escape(value)}(?![\w.])", comment), name


# Training -----------------------------------------------------------------------------------------------------------------


def test_training_learns_and_says_so(trial, capsys):
    trial.load_train(settings={"budget": {"steps": 30}}).main()
    progress = json.loads((trial.out / "progress.json").read_text())
    assert progress["step"] == 30
    assert progress["tokens"] == 30 * 512
    assert [step for step, _ in progress["losses"]] == list(range(1, 31))
    assert progress["losses"][-1][1] < progress["losses"][0][1] - 1
    printed = capsys.readouterr().out
    assert "attention: " in printed
    assert re.search(r"^step 30 .* loss \d", printed, re.MULTILINE)


def test_the_summary_is_printed_and_saved(trial, capsys):
    trial.load_train().main()
    saved = json.loads((trial.out / "summary.json").read_text())
    assert list(saved) == SUMMARY
    assert saved["num_steps"] == 6
    assert saved["depth"] == 3
    assert saved["total_tokens_M"] == pytest.approx(6 * 512 / 1e6)
    assert saved["peak_vram_mb"] == saved["mfu_percent"] == 0
    weights = load_file(trial.out / "checkpoint.safetensors")
    assert saved["num_params_M"] == pytest.approx(sum(w.numel() for w in weights.values()) / 1e6)
    after = capsys.readouterr().out.split("---\n")[1]
    printed = dict(re.findall(r"^(\w+):\s+(\S+)$", after, re.MULTILINE))
    assert list(printed) == SUMMARY
    assert printed["num_steps"] == "6"


def test_the_same_seed_gives_the_same_weights_and_another_one_others(make_trial):
    saved = []
    for seed in (1, 1, 2):
        trial = make_trial()
        trial.load_train(settings={"seed": seed}).main()
        saved.append(checkpoint(trial))
    assert saved[0] == saved[1]
    assert saved[0] != saved[2]


def test_warming_up_changes_no_result(make_trial):
    saved = []
    for warm in (False, True):
        trial = make_trial()
        trial.load_train().main(warm=warm)
        saved.append(checkpoint(trial))
    assert saved[0] == saved[1]


def test_warming_up_trains_on_nothing_real(trial):
    """Not even the gate has to be open for it."""
    train = trial.load_train()
    (trial.gated / "rows.bin").unlink()
    model = train.build_model("cpu")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    train.warm_up(model, model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_after_the_warm_up_nothing_is_compiled_again(trial):
    """With a real compiler that would take its time from the budget."""
    from torch._dynamo.utils import counters

    train = trial.load_train()
    model = train.build_model("cpu")
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)
    train.warm_up(model, compiled)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    optimiser, batches = train.Optimiser(model), train.make_dataloader(train.DEVICE_BATCH_SIZE)
    for step in range(4):
        train.train_step(compiled, optimiser, batches, step / 4)
    assert counters["stats"]["unique_graphs"] == graphs


def test_accumulated_gradients_equal_those_of_one_pass(make_trial):
    class Keep:
        def step(self, progress):
            self.grads = {name: weight.grad.clone() for name, weight in model.named_parameters()}

    grads, losses = [], []
    for rows in (16, 4):
        train = make_trial().load_train({"DEVICE_BATCH_SIZE": rows})
        torch.manual_seed(1)
        model = awake(train.build_model("cpu"))
        keep = Keep()
        losses.append(train.train_step(model, keep, train.make_dataloader(rows), 0.0))
        grads.append(keep.grads)
    torch.testing.assert_close(losses[1], losses[0])
    for name, value in grads[0].items():
        torch.testing.assert_close(grads[1][name], value, atol=1e-6, rtol=1e-3)


def test_a_batch_that_does_not_divide_is_refused_with_the_numbers(trial):
    with pytest.raises(AssertionError, match="TOTAL_BATCH_SIZE 500 is no multiple of the 256"):
        trial.load_train({"TOTAL_BATCH_SIZE": 500}).main()


def test_a_width_that_does_not_divide_is_refused_with_the_numbers(trial):
    with pytest.raises(AssertionError, match="MODEL_DIM 40 is no multiple of HEAD_DIM 16"):
        trial.load_train({"MODEL_DIM": 40}).build_model("cpu")


def test_a_loss_that_is_no_number_ends_the_run(trial, capsys):
    with pytest.raises(SystemExit) as ended:
        trial.load_train({"UNEMBEDDING_STD": float("1e38"), "SOFTCAP": 1e-38}).main()
    assert ended.value.code == 1
    assert "FAIL" in capsys.readouterr().out
    assert not (trial.out / "checkpoint.safetensors").exists()


def test_a_budget_in_seconds_is_kept(trial):
    trial.load_train(settings={"budget": {"seconds": 1.0, "reserve_seconds": 0.5}}).main()
    summary = json.loads((trial.out / "summary.json").read_text())
    assert 0.5 <= summary["training_seconds"] < 1.0
    assert summary["num_steps"] >= 1


def test_it_runs_as_a_program(trial):
    trial.load_prepare()
    path = trial.write_train()
    done = subprocess.run(
        [sys.executable, str(path)],
        env={**os.environ, "PYTHONPATH": str(TRAINER)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (trial.out / "checkpoint.safetensors").exists()


@pytest.mark.parametrize(
    "constants",
    [
        {"VALUE_EMBEDDING_EVERY": 0},
        {"VALUE_EMBEDDING_EVERY": 1},
        {"DEPTH": 1},
        {"WINDOW_PATTERN": "L", "MLP_RATIO": 2},
        {"WARMUP": 0.3, "WARMDOWN": 0.0, "MOMENTUM_WARMUP": 0.0},
    ],
)
def test_constants_can_be_set_to_their_extremes(trial, constants):
    train = trial.load_train(constants, {"budget": {"steps": 2}})
    train.main()
    assert json.loads((trial.out / "summary.json").read_text())["num_steps"] == 2


# Parts ----------------------------------------------------------------------------------------------------------------------


def test_value_embeddings_alternate_and_the_last_layer_has_one(trial):
    model = trial.load_train({"DEPTH": 5}).build_model("cpu")
    assert list(model.value_embeddings) == ["0", "2", "4"]
    assert [block.attention.gate is not None for block in model.blocks] == [True, False, True, False, True]


def test_windows_follow_the_pattern_and_the_last_layer_sees_everything(trial):
    train = trial.load_train({"DEPTH": 6, "WINDOW_PATTERN": "SL", "SHORT_WINDOW": 7})
    model = train.GPT(train.full_attention, has_windows=True, dtype=torch.float32)
    assert [block.attention.window for block in model.blocks] == [7, None, 7, None, 7, None]
    without = train.build_model("cpu")
    assert {block.attention.window for block in without.blocks} == {None}
    assert without.flops_per_token() > model.flops_per_token()


def test_the_learning_rate_rises_stays_and_falls(trial):
    train = trial.load_train({"WARMUP": 0.1, "WARMDOWN": 0.5, "FINAL_LR": 0.2})
    scales = [train.lr_scale(p) for p in (0.0, 0.05, 0.1, 0.4, 0.5, 0.75, 1.0)]
    assert scales == pytest.approx([0.0, 0.5, 1.0, 1.0, 1.0, 0.6, 0.2])


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 40), (2, 40, 8)])
def test_orthogonalise_brings_singular_values_near_one(trial, shape):
    matrices = torch.randn(shape)
    values = torch.linalg.svdvals(trial.load_train().orthogonalise(matrices, torch.float32))
    assert values.max() < 1.3
    assert values.median() > 0.7


def test_muon_updates_a_stack_as_it_would_each_matrix(trial):
    train = trial.load_train()

    def run(*, together):
        torch.manual_seed(0)
        weights = [torch.nn.Parameter(torch.randn(6, 9)) for _ in range(3)]
        optimisers = [train.Muon(weights)] if together else [train.Muon([weight]) for weight in weights]
        for _ in range(3):
            for weight in weights:
                weight.grad = torch.randn(6, 9)
            for optimiser in optimisers:
                optimiser.step(0.02, 0.9, 0.1)
        return torch.stack([weight.detach() for weight in weights])

    torch.testing.assert_close(run(together=True), run(together=False), atol=1e-5, rtol=0)


def test_every_weight_is_trained_by_exactly_one_optimiser(trial):
    train = trial.load_train()
    model = train.build_model("cpu")
    optimiser = train.Optimiser(model)
    trained = [p for group in optimiser.adamw.param_groups for p in group["params"]]
    trained += [p for group, *_ in optimiser.muon.stacks for p in group]
    assert sorted(map(id, trained)) == sorted(map(id, model.parameters()))
