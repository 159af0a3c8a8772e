"""The space file is read strictly and laid over by presets."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.agents.space import Dimension, load_space
from runner.errors import UsageError

ROOT = Path(__file__).parents[1]


def load(tmp_path: Path, text: str, preset: str | None = None) -> dict[str, Dimension]:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    return load_space(path, preset, where="space.yaml")


def test_ranges_and_choices(tmp_path: Path) -> None:
    space = load(
        tmp_path,
        "constants:\n  LR: {low: 1e-3, high: 1, log: true}\n  BATCH: {low: 2**10, high: 2**12, power_of_two: true}\n"
        "  DIM: {low: 64, high: 512, multiple_of: HEAD}\n  PATTERN: {choices: [SL, L]}\n  BETAS: {choices: [[0.8, 0.9], [0.9, 0.9]]}\n",
    )
    assert space == {
        "LR": Dimension(low=0.001, high=1.0, log=True),
        "BATCH": Dimension(low=1024, high=4096, power_of_two=True, whole=True),
        "DIM": Dimension(low=64, high=512, multiple_of="HEAD", whole=True),
        "PATTERN": Dimension(choices=("SL", "L")),
        "BETAS": Dimension(choices=((0.8, 0.9), (0.9, 0.9))),
    }
    assert list(space) == ["LR", "BATCH", "DIM", "PATTERN", "BETAS"]


def test_a_preset_changes_key_by_key_adds_and_takes_away(tmp_path: Path) -> None:
    text = (
        "constants: {LR: {low: 1, high: 9, log: true}, DEPTH: {low: 4, high: 9, int: true}, P: {choices: [a, b]}}\n"
        "presets: {smoke: {LR: {high: 5}, DEPTH: null, P: {low: 0, high: 1}, NEW: {low: 0, high: 1}}, other: {}}\n"
    )
    assert load(tmp_path, text, "smoke") == {
        "LR": Dimension(low=1, high=5, log=True),
        "P": Dimension(low=0, high=1),
        "NEW": Dimension(low=0, high=1),
    }
    assert set(load(tmp_path, text, "none")) == {"LR", "DEPTH", "P"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("constant: {}", "space.yaml: constant: unknown key (did you mean constants?)"),
        ("constants: {LR: {low: 1, hi: 2}}", "space.yaml: constants.LR.hi: unknown key (did you mean high?)"),
        ("constants: {LR: {low: a, high: 2}}", "space.yaml: constants.LR.low: must be a number, not 'a'"),
        ("constants: {LR: {low: 1}}", "space.yaml: constants.LR: give low and high, or choices"),
        ("constants: {LR: {low: 2, high: 1}}", "space.yaml: constants.LR: low (2) must be below high (1)"),
        ("constants: {LR: {low: 0, high: 1, log: true}}", "space.yaml: constants.LR: log needs a low above 0, not 0"),
        ("constants: {LR: {low: 0, high: .inf}}", "space.yaml: constants.LR.high: must be finite, not inf"),
        ("constants: {D: {low: 0.5, high: 1, int: true}}", "space.yaml: constants.D: low, high and step of a whole number must be whole"),
        ("constants: {D: {low: 3, high: 8, power_of_two: true}}", "space.yaml: constants.D: low and high must be powers of two"),
        ("constants: {D: {low: 1, high: 8, log: true, step: 1}}", "space.yaml: constants.D: step does not go with log or power_of_two"),
        ("constants: {P: {choices: [a]}}", "space.yaml: constants.P.choices: must be a list of two or more values, not ['a']"),
        ("constants: {P: {choices: [a, a]}}", "space.yaml: constants.P.choices: a value comes twice"),
        ("constants: {P: {choices: [a, {}]}}", "space.yaml: constants.P.choices: {} is not a number, text, true, false or a list of these"),
        ("constants: {P: {choices: [a, b], low: 1}}", "space.yaml: constants.P.choices: goes alone, not with low"),
        ("constants: {lr: {low: 1, high: 2}}", "space.yaml: constants.lr: a constant's name is in upper case"),
        ("constants: {LR: 3}", "space.yaml: constants.LR: must be a list of `key: value`, not 3"),
        ("constants: {LR: {low: 1, high: 5}}\npresets: {smoke: {LR: {high: 1}}}", "space.yaml: presets.smoke.LR: low (1) must be below high (1)"),
        ("presets: {tiny: {LR: {lo: 1}}}", "space.yaml: presets.tiny.LR.lo: unknown key (did you mean low?)"),
    ],
)  # fmt: skip
def test_messages_name_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(tmp_path, text, "smoke")
    assert str(caught.value) == message


@pytest.mark.parametrize("preset", [None, "smoke", "tiny", "h100", "24gb", "12gb", "8gb"])
def test_the_shipped_space_loads_for_every_preset(preset: str | None) -> None:
    assert len(load_space(ROOT / "trainer" / "space.yaml", preset)) > 10
