"""What the constants of a candidate say about the GPU memory that it needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.constants import find_constants, set_constants
from runner.literals import Value
from runner.memory import SIZES, at_least, parameters, too_large
from runner.task import apply_preset, load_task

ROOT = Path(__file__).parents[1]
TRAIN = (ROOT / "trainer" / "train.py").read_text()


def of_preset(name: str) -> tuple[str, int, int]:
    """train.py under a preset, tokens of the vocabulary, tokens in a row."""
    task = load_task(ROOT, name)
    assert task.data is not None
    return apply_preset(TRAIN, task), task.data.vocab_size, task.data.sequence_length


def sizes(source: str) -> dict[str, int]:
    found = {name: find_constants(source)[name].value for name in SIZES}
    return {name: value for name, value in found.items() if isinstance(value, int)}


def said(preset: str, measured_gb: float, card_gb: float, more: str = "", **changes: Value) -> str | None:
    champion, vocab, length = of_preset(preset)
    candidate = set_constants(champion, changes) + more
    return too_large(candidate, champion, measured_gb=measured_gb, card_gb=card_gb, vocab_size=vocab, sequence_length=length)


@pytest.mark.parametrize(("preset", "millions"), [("h100", 81), ("8gb", 7), ("smoke", 1.2), ("tiny", 0.3)])
def test_parameters_are_those_that_the_presets_state(preset: str, millions: float) -> None:
    source, vocab, _ = of_preset(preset)
    assert parameters(sizes(source), vocab) / 1e6 == pytest.approx(millions, rel=0.05)


def test_the_champions_own_sizes_need_what_it_took() -> None:
    champion, vocab, length = of_preset("h100")
    need = at_least(sizes(champion), sizes(champion), measured_gb=45.0, vocab_size=vocab, sequence_length=length)
    assert need == pytest.approx(45.0)


def test_what_surely_does_not_fit_is_refused_with_the_figures() -> None:
    assert said("h100", 45.0, 79.6, DEPTH=48) == (
        "with DEPTH 9 -> 48 it needs about 152 GB at least, and the GPU has 80; the champion took 45.0"
    )
    reason = said("8gb", 5.0, 7.7, DEVICE_BATCH_SIZE=256, TOTAL_BATCH_SIZE=2**17)
    assert reason is not None
    assert reason.startswith("with DEVICE_BATCH_SIZE 32 -> 256 it needs about ")


@pytest.mark.parametrize(
    "changes",
    [{"DEPTH": 11}, {"DEPTH": 14}, {"MODEL_DIM": 768}, {"MLP_RATIO": 6}, {"DEVICE_BATCH_SIZE": 128}, {"DEVICE_BATCH_SIZE": 32}, {"MATRIX_LR": 0.05}],
)
def test_what_may_fit_passes(changes: dict[str, Value]) -> None:
    assert said("h100", 45.0, 79.6, "", **changes) is None


def test_everything_that_the_tuner_may_choose_passes_on_the_card_of_its_preset() -> None:
    assert said("h100", 45.0, 79.6, DEPTH=11, MODEL_DIM=768, MLP_RATIO=5, VALUE_EMBEDDING_EVERY=1) is None


def test_of_a_file_that_is_changed_otherwise_nothing_is_said() -> None:
    assert said("h100", 45.0, 79.6, more="\n\ndef checkpointed():\n    return None\n", DEPTH=48) is None
    assert said("h100", 45.0, 79.6, more="\n# a remark\n", DEPTH=48) is not None


def test_of_a_file_without_the_constants_nothing_is_said() -> None:
    champion, vocab, length = of_preset("h100")
    other = champion.replace("MLP_RATIO", "WIDENING")
    candidate = set_constants(other, {"DEPTH": 48})
    assert too_large(candidate, other, measured_gb=45.0, card_gb=79.6, vocab_size=vocab, sequence_length=length) is None


def test_sizes_that_make_no_model_are_left_to_the_dry_run() -> None:
    assert said("h100", 45.0, 79.6, DEPTH=0) is None
    assert said("h100", 45.0, 79.6, DEVICE_BATCH_SIZE=-64) is None


def test_a_measurement_below_what_is_known_says_nothing() -> None:
    assert said("h100", 2.0, 79.6, DEPTH=4800) is None
