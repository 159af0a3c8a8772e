"""A task whose trials take two seconds, driven by the command line, and what must be true of its run at any time."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner import ledger
from runner.cli.parts import owner_labels
from runner.report.tsv import tsv_text
from runner.trial import Verdict
from runner.verdicts import champion_of
from runner.workspace import Workspace
from tests.conftest import run_git
from tests.docker.conftest import charge_little

if TYPE_CHECKING:
    from docker import DockerClient

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "runner.cli")
TAG = "q"
YAML = """
editable: solve.py
score: {level: reported, command: python3 solve.py, metric: acc, direction: maximise}
budget: {seconds: 20, startup_seconds: 120}
limits: {memory_gb: 0.5, cpus: 1, pids: 32, scratch_mb: 32, log_mb: 1}
judge: {baselines: 1, tau: 0.005, sigma_prior: 0.001, repeats: 0, remeasure_champion_every: 0}
"""
SOLVE = "import time\ntime.sleep(0.3)\nprint('acc: 0.5')\n"
SLEEPS = "import time\nprint('acc: 0.1', flush=True)\ntime.sleep(15)\n"


class Driven:
    """A task in a repository of its own, with one run."""

    def __init__(self, folder: Path, images: Path, flags: Sequence[str], **environment: str) -> None:
        """`images` is the state folder whose images are used, `flags` are for `run`."""
        self.folder, self.flags, self._images = folder, tuple(flags), images
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        self.lend_images()

    def lend_images(self) -> None:
        """Tell the state folder, which may be new, of the images."""
        state = self.folder / ".autoresearch"
        state.mkdir(mode=0o700, exist_ok=True)
        shutil.copy(self._images / "images.json", state / "images.json")

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.folder / ".autoresearch" / TAG

    # -- doing -------------------------------------------------------------------------------------

    def propose(self, *sources: str, tag: str = TAG) -> tuple[str, ...]:
        """Arguments of `run` for trials of these files, in this order."""
        path = self.folder.parent / "proposals.jsonl"
        path.write_text("".join(json.dumps({"idea": f"idea {number}", "source": one}) + "\n" for number, one in enumerate(sources)))
        return (*self.go(tag), "--agent", "replay", "--proposals", str(path))

    def go(self, tag: str = TAG) -> tuple[str, ...]:
        """Arguments that start or continue the run."""
        return ("run", "--tag", tag, *self.flags)

    def spawn(self, *arguments: str) -> subprocess.Popen[str]:
        """A command under way, in a session of its own."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [*COMMAND, *arguments], cwd=self.folder, env=self.environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )

    def call(self, *arguments: str, code: int = 0) -> str:
        """What a command prints: on standard output if it should end well, else its one message."""
        return ended(self.spawn(*arguments), code)

    def json(self, *arguments: str) -> list[dict[str, Any]]:
        """The objects that a command prints."""
        return [json.loads(line) for line in self.call(*arguments, "--json").splitlines()]

    # -- looking -----------------------------------------------------------------------------------

    def events(self) -> list[dict[str, Any]]:
        """Every whole line of the journal."""
        path = self.run / ledger.JOURNAL
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def wait_for(self, child: subprocess.Popen[str], *, after: int = 0, **values: object) -> None:
        """Until the journal has an event with these `values` beyond its first `after` lines."""
        self.wait_until(lambda: any(values.items() <= one.items() for one in self.events()[after:]), child)

    def wait_until(self, true: Callable[[], bool], child: subprocess.Popen[str], *, seconds: float = 100) -> None:
        """Until it is `true`; an error if `child` ends before."""
        deadline = time.monotonic() + seconds
        while not true():
            assert child.poll() is None, child.communicate()
            assert time.monotonic() < deadline, self.events()[-3:]
            time.sleep(0.02)

    def left(self, client: DockerClient) -> list[str]:
        """Every container of the run, running or not, and every volume."""
        labels = [f"{name}={value}" for name, value in owner_labels(self.folder / ".autoresearch").items()]
        containers = client.api.containers(all=True, filters={"label": labels})
        volumes = client.api.volumes({"label": [*labels, "autoresearch.role=trial"]})["Volumes"] or []
        return [found["Names"][0] for found in containers] + [found["Name"] for found in volumes]

    def violations(self, client: DockerClient | None = None, *, between: bool = False) -> list[str]:
        """What is not as it must be once a runner has ended; `between`: it was killed, so a trial may be under way."""
        return [*run_violations(self.folder, self.run), *self._unended(client, between=between)]

    def _unended(self, client: DockerClient | None, *, between: bool) -> list[str]:
        found = []
        if ledger.is_held(self.run):
            found.append("the run is still held")
        if client is not None and (left := self.left(client)):
            found.append(f"left in the engine: {left}")
        if not between and ledger.read(self.run).opened:
            found.append("a trial is open")
        return found


def quick(folder: Path, images: Path, *, yaml: str = YAML, source: str = SOLVE) -> Driven:
    """A new task whose command reports its own score: a baseline of two seconds."""
    folder.mkdir(parents=True)
    for name, text in {"autoresearch.yaml": yaml, "program.md": "more", "solve.py": source, ".gitignore": ".autoresearch/\n"}.items():
        (folder / name).write_text(text)
    run_git(folder, "init", "-q")
    run_git(folder, "add", "-A")
    run_git(folder, "commit", "-qm", "task")
    return Driven(folder, images, ("--cpu",))


def audited(folder: Path, images: Path) -> Driven:
    """The shipped task at preset tiny with its data prepared: three baselines of ten seconds."""
    data = folder.with_name(f"{folder.name}-data")
    subprocess.run([*COMMAND, "init", str(folder)], check=True, capture_output=True)
    charge_little(folder)
    wait_long(folder)
    made = Driven(folder, images, ("--cpu", "--preset", "tiny"), AUTORESEARCH_DATA=str(data))
    made.call("prepare", "--preset", "tiny")
    return made


def wait_long(task: Path) -> None:
    """Give start-up at `tiny` five minutes: on a machine that does much else importing torch can take one."""
    path = task / "trainer" / "presets" / "tiny.yaml"
    text = path.read_text()
    assert text.count("startup_seconds: 60\n") == 1
    path.write_text(text.replace("startup_seconds: 60\n", "startup_seconds: 300\n"))
    run_git(task, "commit", "-qam", "Wait long")


def run_violations(folder: Path, run: Path) -> list[str]:
    """Where journal, branch, references, notes and results of a run that is at rest do not agree."""
    workspace, state = Workspace(folder), ledger.read(run)
    events = [json.loads(line) for line in (run / ledger.JOURNAL).read_text().splitlines()]
    header, records, tag = state.header or {}, state.records, run.name
    found = []

    def must(true: object, otherwise: str) -> None:
        if not true:
            found.append(otherwise)

    for name, key in (("proposed", "trial"), ("judged", "trial")):
        counts = Counter(one[key] for one in events if one["event"] == name)
        must(not (twice := [trial for trial, count in counts.items() if count > 1]), f"{name} twice: {twice}")
    measured = Counter((one["trial"], one["index"]) for one in events if one["event"] == "measured")
    must(not (twice := [one for one, count in measured.items() if count > 1]), f"measured twice: {twice}")
    numbers = [record.trial for record in records]
    must(sorted([*numbers, *state.opened]) == list(range(len(numbers) + len(state.opened))), f"numbers: {numbers}, open {list(state.opened)}")
    tokens = Counter(record.token for record in records if record.agent == "replay")
    must(not (twice := [token for token, count in tokens.items() if count > 1]), f"proposals tried twice: {twice}")
    champion, tip = champion_of(records, header["base"]), workspace.tip(tag)
    must(tip == champion, f"the branch is at {tip} and the champion is {champion}")
    best = next((one for one in reversed(records) if one.verdict is Verdict.KEEP), None)
    if best is not None:
        kept = [one for one in records if one.verdict is Verdict.KEEP]
        must(all(one.val_bpb is not None for one in kept), "kept without a score")
        source = (ledger.trial_folder(run, best.trial) / "train.py").read_bytes()
        editable = (folder / "autoresearch.yaml").read_text().split("editable:")[1].split()[0]
        must(workspace.read(champion, editable) == source, "the branch's tree is not the one that was measured")
    for record in records:
        if record.commit is None:
            continue
        ref = run_git(folder, "rev-parse", f"refs/autoresearch/{tag}/{record.trial}")
        must(ref == record.commit, f"trial {record.trial}: its reference is {ref}")
        lines = [json.loads(line) for line in run_git(folder, "notes", "--ref=autoresearch", "show", record.commit).splitlines()]
        wanted = json.loads(json.dumps(ledger.record_to_json(record)))
        must(wanted in lines, f"trial {record.trial}: its note is not its record")
    if records:
        must((run / "results.tsv").read_text() == tsv_text(records), "results.tsv is not what the journal says")
    fsck = run_git(folder, "fsck", "--no-dangling", "--connectivity-only")
    must(not fsck, f"git fsck: {fsck}")
    must(not list((folder / ".git").rglob("*.lock")), "a lock of git's is left")
    return found


def ended(child: subprocess.Popen[str], code: int, *, seconds: float = 1500) -> str:
    """What a command printed, once it has ended with this code; else an error."""
    out, err = child.communicate(timeout=seconds)
    assert child.returncode == code, f"exit {child.returncode}\n{out}\n{err}"
    assert "Traceback" not in out + err
    if code:
        assert len(err.splitlines()) == 1, err
    return out if code == 0 else err


def send(child: subprocess.Popen[str], number: int) -> float:
    """Send a signal; the moment."""
    child.send_signal(signal.Signals(number))
    return time.monotonic()
