"""The progress plot: an image of the promised size with the promised marks, and labels that do not overlap."""

from __future__ import annotations

import random
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from runner.report.labels import Label, place_labels
from runner.report.plot import DPI, GREEN, GREY, INCHES, LIGHT, RED, draw_progress
from runner.trial import Ending, Record, Verdict
from tests.records import baseline, record


def search(trials: int, seed: int = 0) -> list[Record]:
    """Synthetic records: three baselines, then a search that gets slowly better."""
    draw = random.Random(seed)
    records, champion = [], 1.62
    for number in range(trials):
        if number < 3:
            records.append(baseline(number, champion + draw.gauss(0, 0.003), sigma=0.003))
            continue
        score = champion + draw.gauss(0.02, 0.02)
        if draw.random() < 0.1:
            records.append(record(number, Verdict.CRASH, None, ending=Ending.CRASHED))
        elif score < champion - 0.006:
            records.append(
                record(
                    number,
                    Verdict.KEEP,
                    score,
                    gain=champion - score,
                    sigma=0.003,
                    idea=f"LR 0.01 -> 0.0{number}",
                )
            )
            champion = score
        else:
            records.append(record(number, Verdict.DISCARD, score, sigma=0.003))
    return records


def pixels(records: list[Record], path: Path, tag: str = "nov21") -> dict[str, int]:
    """How many pixels of the picture have exactly the colour of each kind of mark."""
    draw_progress(records, path, tag=tag)
    image = np.round(matplotlib.image.imread(path) * 255).astype(int)
    assert image.shape[:2] == (round(INCHES[1] * DPI), round(INCHES[0] * DPI))
    return {color: int((image[..., :3] == _rgb(color)).all(axis=-1).sum()) for color in (GREEN, GREY, RED)}


def _rgb(color: str) -> list[int]:
    return [int(color[at : at + 2], 16) for at in (1, 3, 5)]


@pytest.mark.parametrize("trials", [1, 3, 8, 40, 300])
def test_any_number_of_trials_gives_a_picture_with_its_marks(tmp_path: Path, trials: int) -> None:
    records = search(trials, seed=trials)
    found = pixels(records, tmp_path / "progress.png")
    verdicts = {known.verdict for known in records}
    assert (found[RED] > 0) == (Verdict.CRASH in verdicts)
    assert (found[GREY] > 0) == (Verdict.DISCARD in verdicts)
    assert found[GREEN] > 0
    assert list(tmp_path.iterdir()) == [tmp_path / "progress.png"]


def test_more_keeps_more_green(tmp_path: Path) -> None:
    base = [baseline(number) for number in range(3)]
    discards = [record(number, Verdict.DISCARD, 1.65) for number in range(3, 9)]
    keeps = [record(number, Verdict.KEEP, 1.6 - number / 100, gain=0.01) for number in range(3, 9)]
    few, many = pixels(base + discards, tmp_path / "few.png"), pixels(base + keeps, tmp_path / "many.png")
    assert many[GREEN] > few[GREEN] + 500
    assert many[GREY] < few[GREY]


@pytest.mark.parametrize(
    "records",
    [
        [],
        [baseline(0, None)],
        [baseline(0), record(1, Verdict.CRASH, float("nan")), record(2, Verdict.DISCARD, 1e9), record(3, Verdict.INVALID, None, commit=None)],
        [baseline(0, 1.6), baseline(1, 1.6), record(2, Verdict.KEEP, 1.6, idea="$\\frac{ \x1b[31m 日本 🎉 <b>")],
    ],
)  # fmt: skip
def test_odd_runs_are_drawn_without_a_warning(tmp_path: Path, records: list[Record]) -> None:
    draw_progress(records, tmp_path / "progress.png", tag="$x_{")
    assert (tmp_path / "progress.png").stat().st_size > 1000


def test_labels_cover_neither_each_other_nor_points() -> None:
    figure = Figure(figsize=INCHES, dpi=DPI)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    draw = random.Random(1)
    labels = [Label(x=draw.random(), y=draw.random(), text=f"idea number {number}") for number in range(40)]
    points = [(label.x, label.y) for label in labels]
    figure.draw_without_rendering()
    renderer = canvas.get_renderer()  # type: ignore[no-untyped-call]
    place_labels(axes, renderer, labels, points)
    figure.draw_without_rendering()
    extents = [Text.get_window_extent(text, renderer) for text in axes.texts]
    assert len(extents) > 5
    assert not any(a.overlaps(b) for i, a in enumerate(extents) for b in extents[i + 1 :])
    marks = axes.transData.transform(points)
    assert not any(box.contains(x, y) for box in extents for x, y in marks)


def test_a_champion_measured_again_has_a_mark_of_its_own(tmp_path: Path) -> None:
    again = [record(number, Verdict.REPEAT, 1.6, commit="b" * 40) for number in range(3, 9)]
    without = pixels([baseline(number) for number in range(3)], tmp_path / "a.png")
    draw_progress([*(baseline(number) for number in range(3)), *again], tmp_path / "b.png", tag="nov21")
    image = np.round(matplotlib.image.imread(tmp_path / "b.png") * 255).astype(int)
    assert (image[..., :3] == _rgb(LIGHT)).all(axis=-1).sum() > 40
    assert without[GREEN] > 0


def test_better_is_at_the_same_end_also_for_a_metric_that_should_grow(tmp_path: Path) -> None:
    """Mirrored scores give the same picture, but for the numbers and words beside it."""

    def drawn(sign: int, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        more = {"maximise": sign < 0}
        records = [baseline(number, sign * 1.6, **more) for number in range(3)]
        records += [record(number, Verdict.KEEP, sign * (1.6 - number / 100), gain=0.01, **more) for number in range(3, 9)]
        records += [record(number, Verdict.DISCARD, sign * 9.0, **more) for number in range(9, 12)]
        draw_progress(records, tmp_path / name, tag="nov21")
        image = np.round(matplotlib.image.imread(tmp_path / name) * 255).astype(int)
        rows: np.ndarray[tuple[int, ...], np.dtype[np.int64]] = np.argwhere((image[..., :3] == _rgb(GREEN)).all(axis=-1))[:, 0]
        return rows

    falling, growing = drawn(1, "a.png"), drawn(-1, "b.png")
    assert abs(int(np.median(falling)) - int(np.median(growing))) < 10
