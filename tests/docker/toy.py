"""A task without a network to train: each phase waits a while and answers as a model does that knows nothing.

Everything but the arithmetic is real, so what happens to the containers of a trial can be tried in seconds, in an image without torch.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from runner import images
from tests.conftest import run_git
from tests.docker.conftest import STATE

ROOT = Path(__file__).parents[2]
YAML = """
editable: trainer/train.py
prepare: trainer
brief: program.md
data: {dataset: files, source: text, vocab_size: 300, sequence_length: 16, val_rows: 32}
budget: {seconds: 20, startup_seconds: 60}
limits: {memory_gb: 0.5, cpus: 1, pids: 32, checkpoint_mb: 1, output_mb: 8, scratch_mb: 16, log_mb: 1}
score: {batch_rows: 8, audit_rounds: 1, confirm_rounds: 1}
judge: {baselines: 1}
constants: {}
"""
TRIAL = """
import json, os, time
from pathlib import Path

import numpy as np

TRIAL = json.loads(Path(os.environ["AUTORESEARCH_TRIAL"]).read_text())
DATA = json.loads((Path(TRIAL["prepare"]) / "data.json").read_text())
OUT, GATE = Path(TRIAL["out"]), Path(TRIAL["gate"])


def pass_gate():
    (OUT / "ready").touch()
    wait_for(GATE)


def wait_for(path):
    while not os.access(path, os.R_OK):
        time.sleep(0.005)


def give(name, data):
    (OUT / "partial").write_bytes(data)
    (OUT / "partial").rename(OUT / name)
"""
TRAIN = """
import json, struct, time
import trial

TAKES = 3.0

trial.pass_gate()
time.sleep(TAKES)
header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
trial.give("checkpoint.safetensors", struct.pack("<Q", len(header)) + header + bytes(4))
"""
CLAIM = """
import time
import numpy as np
import trial

trial.pass_gate()
time.sleep(2)
count = trial.TRIAL["rows"] * trial.DATA["sequence_length"]
trial.give("nll.bin", np.full(count, np.log(trial.DATA["vocab_size"]), "<f4").tobytes())
"""
AUDIT = """
import numpy as np
import trial

trial.pass_gate()
for question, answer in trial.TRIAL["rounds"]:
    trial.wait_for(trial.GATE / question)
    trial.give(answer, np.zeros(trial.TRIAL["rows"] * trial.DATA["vocab_size"], "<f4").tobytes())
trial.wait_for(trial.GATE / "end")
"""


def _text() -> str:
    words = random.Random(1)
    return "\n\n".join(" ".join(f"word{words.randrange(500)}" for _ in range(60)) for _ in range(400))


FILES = {
    "autoresearch.yaml": YAML,
    "program.md": "nothing can be found here\n",
    "trainer/trial.py": TRIAL,
    "trainer/train.py": TRAIN,
    "trainer/claim.py": CLAIM,
    "trainer/audit.py": AUDIT,
    "text/words.txt": _text(),
    ".gitignore": ".autoresearch/\n",
}


class ToyTask:
    """A repository of its own on the engine at `address`, driven as a person would."""

    def __init__(self, folder: Path, address: str, **environment: str) -> None:
        self.folder = folder
        self.environment = {**os.environ, "DOCKER_HOST": address, "PYTHONPATH": str(ROOT), **environment}
        for name, text in FILES.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        run_git(folder, "init", "-q")
        run_git(folder, "add", "-A")
        run_git(folder, "commit", "-qm", "a toy")
        state = folder / ".autoresearch"
        state.mkdir(mode=0o700)
        (light,) = [known for known in images.list_images(STATE) if known.kind == "prepare"]
        cpu = replace(light, kind="cpu", claim_id=light.id, audit_id=light.id)
        (state / "images.json").write_text(json.dumps({"cpu": asdict(cpu), "prepare": asdict(light)}))

        self.begin = ("run", "--cpu", "--tag", "t", "--agent", "replay", "--proposals", str(folder.parent / "none.jsonl"))
        """Measures the baseline and tries nothing."""
        (folder.parent / "none.jsonl").touch()

    def spawn(self, *arguments: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        command = [sys.executable, "-m", "runner.cli", *arguments]
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True)

    def call(self, *arguments: str, code: int = 0, timeout: float = 200) -> str:
        return ended(self.spawn(*arguments), code=code, timeout=timeout)

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.call("log", "--json").splitlines()]

    def journal(self, tag: str) -> list[dict[str, Any]]:
        """What the journal of a run says so far; its last line may be under way."""
        path = self.folder / ".autoresearch" / tag / "journal.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def phases(self, tag: str) -> list[tuple[int, str]]:
        """Trial and phase of every container that was made."""
        return [(event["trial"], event["phase"]) for event in self.journal(tag) if event["event"] == "created"]

    def forget(self) -> None:
        shutil.rmtree(self.folder / ".autoresearch")


def ended(process: subprocess.Popen[str], *, code: int = 0, timeout: float = 200) -> str:
    """What the command said: on standard output, or on standard error if it was to fail."""
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == code, f"exit {process.returncode}\n{out}\n{err}"
    assert "Traceback" not in out + err
    return out if code == 0 else err
