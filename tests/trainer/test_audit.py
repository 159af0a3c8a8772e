import shutil
import threading
import time

import numpy as np
import pytest
import torch
from conftest import VOCAB, make_rows
from safetensors.torch import load_model


def write_question(path, cuts, ids):
    path.write_bytes(np.asarray(cuts, "<i4").tobytes() + np.asarray(ids, "<u2").tobytes())


def answers(trial, count):
    return np.fromfile(trial.out / f"answer-{count}.bin", dtype="<f4").reshape(-1, VOCAB)


@pytest.mark.parametrize("batch_rows", [4, 16])
def test_the_answer_is_all_logits_at_the_cut(trial, batch_rows):
    train = trial.load_train()
    train.main()
    rows = make_rows(10, seed=9)[:, :-1]
    cuts = np.arange(10) * 3
    model = train.build_model("cpu")
    load_model(model, str(trial.out / "checkpoint.safetensors"))
    with torch.no_grad():
        wanted = model(torch.from_numpy(rows.astype(np.int64)))[torch.arange(10), torch.from_numpy(cuts)]
    shutil.move(trial.out / "checkpoint.safetensors", trial.gated / "checkpoint.safetensors")
    write_question(trial.gated / "question-0.bin", cuts, rows)
    (trial.gated / "end").touch()
    rounds = [("question-0.bin", "answer-0.bin")]
    trial.load_audit(phase="audit", rows=10, batch_rows=batch_rows, rounds=rounds).main()
    np.testing.assert_allclose(answers(trial, 0), wanted.numpy(), atol=1e-5)


def test_what_stands_after_the_cut_changes_no_answer_of_the_shipped_model(trial):
    trial.load_train().main()
    rows = make_rows(6, seed=4)[:, :-1]
    others = rows.copy()
    others[:, 11:] = make_rows(6, seed=5)[:, 11:-1]
    shutil.move(trial.out / "checkpoint.safetensors", trial.gated / "checkpoint.safetensors")
    for number, ids in enumerate((rows, others)):
        write_question(trial.gated / f"question-{number}.bin", [10] * 6, ids)
    (trial.gated / "end").touch()
    rounds = [(f"question-{number}.bin", f"answer-{number}.bin") for number in range(2)]
    trial.load_audit(phase="audit", rows=6, batch_rows=4, rounds=rounds).main()
    np.testing.assert_allclose(answers(trial, 0), answers(trial, 1), atol=1e-5)


def test_it_waits_for_each_question_and_for_the_end(trial):
    trial.load_train().main()
    shutil.move(trial.out / "checkpoint.safetensors", trial.gated / "checkpoint.safetensors")
    (trial.out / "ready").unlink()
    seen = []

    def host():
        for number in range(2):
            time.sleep(0.2)
            seen.append(sorted(path.name for path in trial.out.glob("answer-*.bin")))
            write_question(trial.gated / "partial", [5] * 3, make_rows(3, seed=number)[:, :-1])
            (trial.gated / "partial").rename(trial.gated / f"question-{number}.bin")
            while not (trial.out / f"answer-{number}.bin").exists():
                time.sleep(0.002)
        time.sleep(0.1)
        seen.append("end")
        (trial.gated / "end").touch()

    thread = threading.Thread(target=host)
    thread.start()
    rounds = [(f"question-{number}.bin", f"answer-{number}.bin") for number in range(2)]
    trial.load_audit(phase="audit", rows=3, batch_rows=4, rounds=rounds).main()
    assert seen == [[], ["answer-0.bin"], "end"]
    thread.join()
