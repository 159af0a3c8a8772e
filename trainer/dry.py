"""The dry run: a few steps of the trial's own training, then what was saved is loaded as the claim will load it.

Runs in a container of its own before a trial is spent, on training text alone.  What fails here is printed as any failure is and
said in `dry.json`.  The host does not rest on that word: whoever says that nothing failed has the trial to come.
"""

from __future__ import annotations

import runpy
import sys
import traceback

import prepare
import torch

TRAIN = prepare.TRIAL_PATH.parent / "train.py"
CHECKPOINT = prepare.OUT_PATH / "checkpoint.safetensors"
ROWS = 2


class NothingSaved(Exception):  # noqa: N818 - what it says is what is told
    """train.py ended by itself and has saved nothing."""


def train() -> None:
    """train.py as the program that it is in a trial."""
    sys.path.insert(0, str(TRAIN.parent))
    sys.argv[:] = [str(TRAIN)]
    try:
        runpy.run_path(str(TRAIN), run_name="__main__")
    except SystemExit as left:
        if left.code not in (None, 0):
            raise
    if not CHECKPOINT.exists():
        raise NothingSaved("train.py ended without a call of save()")


@torch.no_grad()
def load() -> None:
    """The network built anew with the weights that were saved, and asked once."""
    from network import Network

    rows = min(ROWS, prepare.TRIAL["batch_rows"])
    network = Network(rows)
    network.load(CHECKPOINT)
    network.logits(torch.zeros((rows, prepare.SEQUENCE_LENGTH), dtype=torch.int64, device=prepare.DEVICE))


def failure(error: BaseException, part: str) -> dict[str, object]:
    """What failed, which is printed too: the exception's name, and the innermost line of train.py."""
    trace, lines = error.__traceback__, []
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(TRAIN):
            if not lines:
                error = error.with_traceback(trace)  # what called it is of no interest
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    traceback.print_exception(error)
    return {"error": type(error).__name__, "line": lines[-1] if lines else None, "part": part}


def main() -> dict[str, object]:
    """Train and load; says what failed, or nothing."""
    for part in (train, load):
        try:
            part()
        except BaseException as error:  # noqa: BLE001 - whatever a candidate raises
            return failure(error, part.__name__)
    return {"error": None}


if __name__ == "__main__":
    said = main()
    # Without the gate nothing is read back; a file that failed before it may not have come so far.
    prepare.pass_gate()
    prepare.write_json("dry.json", said)
    import network

    network.leave()
