"""Pure: how much GPU memory a candidate needs at least, as far as constants say it.

Nothing is counted from code.  The champion's memory was measured, so a candidate that differs from it in constants alone needs
what the champion needed, scaled; for any other candidate nothing is said.  The formulas are those of the shipped train.py: a file
without its constants of size is another program, and nothing is said about it either.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from runner.constants import find_constants, set_constants
from runner.errors import UsageError
from runner.gates import fingerprint
from runner.literals import Value

SIZES = ("DEPTH", "MODEL_DIM", "MLP_RATIO", "VALUE_EMBEDDING_EVERY", "DEVICE_BATCH_SIZE")
BEYOND = 1.3
"""An estimate so many times the card's memory is refused: what is measured of the champion holds memory that it did not need."""
FIXED_GB = (0.5, 4.0)
"""CUDA's own and the kernels' workspaces: least and most."""
PARAMETER_BYTES = 16
"""Weight, gradient and two moments, in float32."""
LOGIT_BYTES = (4.0, 16.0)
"""Kept for each logit of a pass: least and most, by what is compiled into one kernel."""
ATTENTION_WIDTHS, MLP_WIDTHS = 12, 2
"""Widths of the model that a block keeps for a token: so many, and so many for each of MLP_RATIO.  Only their ratio counts."""


def too_large(
    source: str, champion: str, *, measured_gb: float, card_gb: float, vocab_size: int, sequence_length: int
) -> str | None:
    """Why a source surely does not fit into a GPU of `card_gb` GiB where its champion took `measured_gb`, with the figures, or None."""
    changed = _changed_constants(source, champion)
    if changed is None or not set(SIZES) & changed.keys():
        return None
    old, new = _sizes(champion), _sizes(source)
    if old is None or new is None:
        return None
    need = at_least(old, new, measured_gb=measured_gb, vocab_size=vocab_size, sequence_length=sequence_length)
    if need is None or need <= BEYOND * card_gb:
        return None
    changes = ", ".join(f"{name} {old[name]} -> {new[name]}" for name in SIZES if old[name] != new[name])
    return f"with {changes} it needs about {need:.0f} GB at least, and the GPU has {card_gb:.0f}; the champion took {measured_gb:.1f}"


def at_least(
    old: Mapping[str, int], new: Mapping[str, int], *, measured_gb: float, vocab_size: int, sequence_length: int
) -> float | None:
    """The least GiB that a model of the sizes `new` needs where one of the sizes `old` took `measured_gb`; None: it cannot be said.

    What the model takes is split into what is fixed, parameters, logits and blocks; the first three are estimated, and the
    blocks took the rest.  The least over all splits counts.
    """
    found = []
    for fixed, logit_bytes in itertools.product(FIXED_GB, LOGIT_BYTES):
        rest = measured_gb - fixed - _gb(_known_bytes(old, vocab_size, sequence_length, logit_bytes))
        if rest > 0:
            grown = rest * _block_units(new) / _block_units(old)
            found.append(fixed + _gb(_known_bytes(new, vocab_size, sequence_length, logit_bytes)) + grown)
    return min(found, default=None)


def parameters(sizes: Mapping[str, int], vocab_size: int) -> int:
    """Weights of the shipped model's matrices and tables; its scalars and gates are left out."""
    depth, width, every = sizes["DEPTH"], sizes["MODEL_DIM"], sizes["VALUE_EMBEDDING_EVERY"]
    tables = 2 + (-(-depth // every) if every > 0 else 0)
    return tables * vocab_size * width + depth * (4 + 2 * sizes["MLP_RATIO"]) * width**2


def _known_bytes(sizes: Mapping[str, int], vocab_size: int, sequence_length: int, logit_bytes: float) -> float:
    logits = sizes["DEVICE_BATCH_SIZE"] * sequence_length * vocab_size
    return PARAMETER_BYTES * parameters(sizes, vocab_size) + logit_bytes * logits


def _block_units(sizes: Mapping[str, int]) -> float:
    widths = ATTENTION_WIDTHS + MLP_WIDTHS * sizes["MLP_RATIO"]
    return sizes["DEVICE_BATCH_SIZE"] * sizes["DEPTH"] * sizes["MODEL_DIM"] * widths


def _gb(size: float) -> float:
    return size / (1 << 30)


def _changed_constants(source: str, champion: str) -> dict[str, Value] | None:
    """The constants that the source has otherwise; None if anything else of it is other."""
    try:
        old, new = find_constants(champion), find_constants(source)
        changed = {name: new[name].value for name in new if name in old and new[name].value != old[name].value}
        back = set_constants(source, {name: old[name].value for name in changed})
    except UsageError:
        return None
    return changed if fingerprint(back) == fingerprint(champion) else None


def _sizes(source: str) -> dict[str, int] | None:
    found = {name: constant.value for name, constant in find_constants(source).items()}
    sizes = {name: value for name in SIZES if isinstance(value := found.get(name), int) and not isinstance(value, bool)}
    if len(sizes) != len(SIZES) or min(value for name, value in sizes.items() if name != "VALUE_EMBEDDING_EVERY") < 1:
        return None
    return sizes
