"""The command line from outside, with real containers: one task, one run at preset tiny, all kinds of candidates."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from runner import images
from runner.constants import set_constants
from runner.phases import environment, handed_out
from runner.prepare import Prepared, load
from tests.conftest import run_git
from tests.docker.conftest import STATE, charge_little, ours, without_dry_run

if TYPE_CHECKING:
    from docker import DockerClient

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

COMMAND = Path(sys.executable).with_name("autoresearch")
CANDIDATES = Path(__file__).parents[1] / "candidates"
TINY = ("--cpu", "--preset", "tiny")
BETTER = {"EMBEDDING_LR": 0.3, "UNEMBEDDING_LR": 0.007, "MATRIX_LR": 0.05, "WARMDOWN": 0.5, "MOMENTUM": 0.9, "X0_INIT": 0.2}
"""Gains 0.08 or more at tiny, twice what a keep needs: each task here has a split of its own, and they differ by 0.01 or two."""
LOOK = "        if at % LOG_EVERY == 0 or at == 1:\n"
"""A line of train.py that runs at every step."""
KEYS = {
    "trial", "tag", "commit", "parent", "agent", "idea", "why", "kind", "ending", "verdict", "reason", "val_bpb",
    "score_level", "gain", "sigma", "seed", "image", "gpu", "memory_gb", "steps", "tokens", "params", "cost_usd",
    "seconds", "audit",
}  # fmt: skip


def at_step_ten(statement: str) -> str:
    """Lines that go before `LOOK`."""
    return f"        if at == 10:\n            {statement}\n"


class Task:
    """A task of its own, driven as a person would."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "AUTORESEARCH_DATA": str(data)}

    def call(self, *arguments: str, code: int = 0) -> str:
        done = self.spawn(*arguments)
        out, err = done.communicate(timeout=500)
        assert done.returncode == code, f"exit {done.returncode}\n{out}\n{err}"
        assert "Traceback" not in out + err
        return out if code == 0 else err

    def spawn(self, *arguments: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        command = [str(COMMAND), *arguments]
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )

    def json(self, *arguments: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.call(*arguments, "--json").splitlines()]

    def trial(self, source: str | Path, *arguments: str) -> dict[str, Any]:
        path = source if isinstance(source, Path) else self.folder.parent / "candidate.py"
        if isinstance(source, str):
            path.write_text(source)
        (found,) = self.json("trial", "--candidate", str(path), *arguments)
        assert set(found) >= KEYS
        return found

    def champion(self) -> str:
        return self.call("champion")


@pytest.fixture(scope="module")
def make_task(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Task]:
    """Makes tasks that share prepared data."""
    data = tmp_path_factory.mktemp("data")

    def make() -> Task:
        folder = tmp_path_factory.mktemp("task") / "task"
        subprocess.run([COMMAND, "init", str(folder)], check=True, capture_output=True)
        task = Task(folder, data)
        for kind in ("cpu", "prepare"):
            task.call("images", "build", kind)
            assert images.image_id(kind, folder / ".autoresearch") == images.image_id(kind, STATE)
        charge_little(folder)
        without_dry_run(folder)
        return task

    return make


@pytest.fixture(scope="module")
def task(make_task: Callable[[], Task]) -> Task:
    """A task with a run: its baselines are measured."""
    made = make_task()
    made.call("run", *TINY, "--tag", "t", "--trials", "0")
    return made


@pytest.fixture(scope="module")
def prepared(task: Task) -> Prepared:
    (path,) = Path(task.environment["AUTORESEARCH_DATA"]).glob("kjv-v1024-*[0-9a-f]")
    return load(path)


Again = Callable[[str], Path]


@pytest.fixture
def again(tmp_path: Path) -> Again:
    """A candidate as an experiment of its own: the same one twice is refused."""

    def make(name: str) -> Path:
        path = tmp_path / f"{name}.py"
        path.write_text(f"{(CANDIDATES / path.name).read_text()}\nTRIED_AT = {time.monotonic_ns()}\n")
        return path

    return make


@pytest.fixture(autouse=True)
def nothing_is_left(engine: DockerClient, task: Task) -> Any:
    before = run_git(task.folder, "status", "--porcelain")
    yield
    labelled = ours(engine, "autoresearch.tag=t")
    assert labelled == []
    assert run_git(task.folder, "status", "--porcelain") == before


def test_the_baseline_is_the_file_with_the_presets_constants(task: Task) -> None:
    records = task.json("log")

    assert [(record["trial"], record["verdict"]) for record in records] == [(0, "baseline"), (1, "baseline"), (2, "baseline")]
    assert [record["seed"] for record in records] == [100_000, 100_004, 100_008]
    assert len({record["val_bpb"] for record in records}) == 3
    assert all(1.5 < record["val_bpb"] < 3 for record in records)
    assert all(record["score_level"] == "audited" for record in records)
    assert all(record["audit"]["k"] == 4 * 128 and abs(record["audit"]["correction"]) < 1e-6 for record in records)
    assert all(0 < record["audit"]["detectable_gain"] < 0.05 for record in records)
    assert all(set(record["compute_seconds"]) == {"train", "claim", "audit", "startup"} for record in records)
    assert all(record["charge"] is None for record in records)  # they are what others are charged against
    assert records[0]["steps"] == 20
    assert 100_000 < records[0]["params"] < 1_000_000
    assert records[0]["tokens"] > 0
    assert records[0]["memory_gb"] > 0
    shown = task.call("show", "0")
    assert "-DEPTH = 9" in shown
    assert "+DEPTH = 2" in shown


def test_better_is_kept_and_worse_is_not(task: Task) -> None:
    champion = task.champion()
    better = set_constants(champion, BETTER)
    kept = task.trial(better, "--message", "better rates")

    assert (kept["ending"], kept["verdict"]) == ("finished", "keep"), kept
    assert kept["gain"] > kept["threshold"] > 0
    assert kept["idea"] == "better rates"
    assert "confirmed by a second audit" in kept["reason"]
    assert kept["audit"]["rounds"] == 8
    assert task.champion() == better
    assert run_git(task.folder, "rev-parse", "autoresearch/t") == kept["commit"]
    assert run_git(task.folder, "rev-parse", "autoresearch/t^") == kept["parent"]

    worse = task.trial(set_constants(better, {"UNEMBEDDING_LR": 0.0001}))

    assert (worse["ending"], worse["verdict"]) == ("finished", "discard"), worse
    assert worse["gain"] < 0
    assert task.champion() == better
    assert run_git(task.folder, "rev-parse", f"refs/autoresearch/t/{worse['trial']}") == worse["commit"]
    assert json.loads(run_git(task.folder, "notes", "--ref=autoresearch", "show", worse["commit"]))["verdict"] == "discard"

    exported = task.folder.parent / "model.safetensors"
    (value,) = task.json("export-model", str(kept["trial"]), "--output", str(exported))
    assert exported.stat().st_size == value["bytes"] > 1000
    task.call("export-model", str(worse["trial"]), code=2)


@pytest.mark.parametrize(
    ("name", "ending", "reason"),
    [
        ("raises", "crashed", "train: exit code 1"),
        ("sleeps", "timed_out", "train: still running"),
        ("eats_memory", "out_of_memory", "train: the kernel ended a process at the memory limit of 2.0 GiB"),
        ("prints_score", "invalid_output", "train: "),
    ],
)
def test_a_trial_that_gives_no_score_is_a_value(task: Task, name: str, ending: str, reason: str) -> None:
    before = run_git(task.folder, "rev-parse", "autoresearch/t")
    record = task.trial(CANDIDATES / f"{name}.py")

    assert (record["ending"], record["verdict"]) == (ending, "crash"), record
    again = task.trial(CANDIDATES / f"{name}.py")
    assert (again["ending"], again["verdict"], again["commit"]) == (None, "invalid", None), again
    assert f"trial {record['trial']}" in again["reason"]
    assert record["reason"].startswith(reason)
    assert record["val_bpb"] is record["gain"] is record["score_level"] is None
    assert run_git(task.folder, "rev-parse", "autoresearch/t") == before


SEARCH = '''
import base64, os, sys
WANTED = {wanted!r}
def decode(text): return bytes(byte ^ 0x55 for byte in base64.b64decode(text))
NEEDLES = {{name: [decode(text) for text in texts] for name, texts in WANTED.items()}}
def search(roots):
    found, read = set(), 0
    for root in roots:
        for folder, _, names in os.walk(root):
            for name in names:
                path = os.path.join(folder, name)
                if "bible" in path.lower() or "kjv" in path.lower(): found.add("name " + path)
                if not os.path.isfile(path) or os.path.islink(path): continue
                try: data = open(path, "rb").read()
                except OSError: continue
                read += len(data)
                found |= {{kind for kind, needles in NEEDLES.items() if any(needle in data for needle in needles)}}
    return found, read
image, read = search(["/bin", "/etc", "/home", "/lib", "/lib64", "/media", "/mnt", "/opt", "/root", "/run", "/sbin", "/srv", "/usr", "/var"])
if image or read < 100_000_000: sys.exit(f"image: {{image}} in {{read}} bytes")
open("/out/ready", "w").close()
while not os.access("/in/gated", os.R_OK): pass
mounted, _ = search(["/in", "/out", "/prepare", "/scratch", "/tmp", "/dev/shm"])
# The training rows must be found, or the search itself would be broken.
if mounted != {{"train rows"}}: sys.exit(f"mounts: {{mounted}}")
open("/out/checkpoint.safetensors", "wb").write(b"nothing of it was there")
'''


def test_validation_text_is_nowhere_in_a_train_container(task: Task, prepared: Prepared) -> None:
    """Searched from inside: the package's files, its decoder, known sentences, and the tokens of validation rows."""

    train = prepared.rows("train").tobytes()

    def needles(split: Any) -> tuple[list[bytes], list[bytes]]:
        rows = prepared.rows(split)
        if split == "train":  # what this trial is handed, by its seed
            number = task.json("log")[-1]["trial"] + 1
            rows = rows[handed_out(len(rows), 160, 100_000 + 4 * number)]
        some = rows[np.linspace(0, len(rows) - 1, 8).astype(int)]
        # The text repeats itself here and there; what training rightly holds too proves nothing.
        some = [row for row in some if (row[20:50].tobytes() in train) is (split == "train")]
        ranks = json.loads((prepared.path / "prepare" / "tokenizer.json").read_text())["ranks"]
        raw = [base64.b64decode(rank) for rank in ranks] + [b"\0"] * 10
        texts = [b"".join(raw[token] for token in row).split(b"\0")[-1][:60] for row in some]
        return [text for text in texts if len(text) == 60], [row[20:50].tobytes() for row in some]

    def hidden(values: list[bytes]) -> list[str]:
        return [base64.b64encode(bytes(byte ^ 0x55 for byte in value)).decode() for value in values]

    sentences, rows = needles("val")
    test_sentences, test_rows = needles("test")
    assert len(sentences) > 4
    assert len(rows) > 4
    wanted = {
        "sentences": hidden(sentences + test_sentences),
        "rows": hidden(rows + test_rows),
        "train rows": hidden(needles("train")[1]),
    }
    record = task.trial(SEARCH.format(wanted=wanted))

    log = (task.folder / ".autoresearch" / "t" / "trials" / f"{record['trial']:04d}" / "train.log").read_text()
    assert log == ""
    assert record["ending"] == "invalid_output", record
    assert "checkpoint.safetensors: header" in record["reason"]


def holds_every_limit(inspected: Any, options: Any, *, set_by_image: Sequence[str]) -> None:
    """The engine's description of a trial's container and of the volume it may write, setting by setting."""
    host = inspected["HostConfig"]

    assert inspected["Config"]["User"] == "10001:10001"
    assert host["NetworkMode"] == "none"
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert host["CapAdd"] is None
    assert host["SecurityOpt"][0] == "no-new-privileges"
    assert json.loads(host["SecurityOpt"][1].removeprefix("seccomp="))["defaultAction"] == "SCMP_ACT_ERRNO"
    assert host["Memory"] == host["MemorySwap"] == 2 << 30
    assert host["PidsLimit"] == 256
    assert host["NanoCpus"] == 2_000_000_000
    assert host["LogConfig"] == {"Type": "local", "Config": {"max-size": host["LogConfig"]["Config"]["max-size"], "max-file": "1", "compress": "false"}}
    assert 0 < int(host["LogConfig"]["Config"]["max-size"]) <= 8 << 20
    assert host["Binds"] is None
    tmpfs = {point: set(flags.split(",")) for point, flags in host["Tmpfs"].items()}
    assert set(tmpfs) == {"/tmp", "/scratch"}
    for flags in tmpfs.values():
        assert {"nosuid", "nodev", "nr_inodes=65536"} <= flags
        assert any(flag.startswith("size=") for flag in flags)
    assert "noexec" in tmpfs["/tmp"]
    assert "exec" in tmpfs["/scratch"]
    assert (host["IpcMode"], host["ShmSize"]) == ("private", 64 << 20)
    assert {"Name": "core", "Soft": 0, "Hard": 0} in host["Ulimits"]
    assert host["Init"] is True
    assert (host["RestartPolicy"]["Name"], host["AutoRemove"], host["Privileged"], host["OomKillDisable"]) == ("no", False, False, False)
    assert (host["PidMode"], host["UTSMode"], host["UsernsMode"], host["CgroupParent"]) == ("", "", "", "")
    never = ("Devices", "DeviceRequests", "GroupAdd", "ExtraHosts", "Links", "VolumesFrom", "Sysctls", "CapAdd", "PortBindings")
    assert {key: host[key] for key in never if host.get(key)} == {}
    assert {"/proc/stat", "/proc/vmstat", "/sys"} <= set(host["MaskedPaths"])
    assert (inspected["Config"]["Entrypoint"] or [], inspected["Config"]["Cmd"][:3]) == ([], ["timeout", "-s", "KILL"])
    names_of_image = {one.partition("=")[0] for one in set_by_image}
    ours_alone = {one.partition("=")[0] for one in inspected["Config"]["Env"]} - names_of_image
    assert ours_alone <= {name for name, _ in environment(2.0, None)} | {"NVIDIA_VISIBLE_DEVICES"}
    assert "NVIDIA_VISIBLE_DEVICES=void" in inspected["Config"]["Env"]
    labels = inspected["Config"]["Labels"]
    assert {"autoresearch", "autoresearch.owner", "autoresearch.run", "autoresearch.trial", "autoresearch.role"} <= set(labels)
    assert labels["autoresearch.owner"] == str(os.getuid())
    assert (options["type"], set(options["o"].split(",")) >= {"nosuid", "nodev", "noexec", "uid=10001"}) == ("tmpfs", True)
    assert "size=" in options["o"]
    assert "nr_inodes=" in options["o"]
    assert {mount["Type"] for mount in inspected["Mounts"]} == {"volume"}
    assert {mount["Destination"]: mount["RW"] for mount in inspected["Mounts"]} == {
        "/in": False,
        "/out": True,
        "/prepare": False,
    }


def test_a_running_trial_has_every_limit(task: Task, engine: DockerClient, again: Again) -> None:
    """Looked at from outside, by the engine's own words."""
    child = task.spawn("trial", "--candidate", str(again("sleeps")))
    try:
        deadline = time.monotonic() + 60
        running: list[Any] = []
        while not running and time.monotonic() < deadline:
            running = engine.api.containers(filters={"label": ["autoresearch.tag=t", "autoresearch.role=trial"]})
            time.sleep(0.2)
        (found,) = running
        inspected = engine.api.inspect_container(found["Id"])
        (out,) = [mount["Name"] for mount in inspected["Mounts"] if mount["RW"]]
        writable = engine.api.inspect_volume(out)
        image = engine.api.inspect_image(inspected["Image"])  # type: ignore[no-untyped-call]
    finally:
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=60)
    assert inspected["Image"] == images.image_id("cpu", STATE)
    holds_every_limit(inspected, writable["Options"], set_by_image=image["Config"]["Env"] or ())
    # Ctrl-C in the middle of a trial: nothing is left (the fixture looks), and the same command goes on.
    assert child.returncode == 130
    assert "what was measured is kept" in err
    (trial,) = [entry for entry in task.json("status") if entry]
    assert trial["open_trial"] is not None


def test_an_interrupted_trial_is_taken_up_again(task: Task) -> None:
    before = task.json("log")
    task.call("run", "--trials", "0")
    after = task.json("log")

    assert len(after) == len(before) + 1
    assert after[-1]["agent"] == "hand"
    assert after[-1]["ending"] == "timed_out"


def test_a_killed_trial_is_taken_up_by_the_same_command_and_told_once(
    task: Task, engine: DockerClient, again: Again
) -> None:
    before = task.json("log")
    raises = again("raises")
    child = task.spawn("trial", "--candidate", str(raises))
    deadline = time.monotonic() + 60
    while not ours(engine, "autoresearch.tag=t") and time.monotonic() < deadline:
        time.sleep(0.1)
    child.kill()
    child.communicate()
    assert ours(engine, "autoresearch.tag=t")

    record = task.trial(raises)

    assert record["ending"] == "crashed"
    assert [row["trial"] for row in task.json("log")] == [*(row["trial"] for row in before), record["trial"]]


def test_another_split_of_the_text_is_refused(task: Task, tmp_path: Path) -> None:
    task.environment["AUTORESEARCH_DATA"], mine = str(tmp_path), task.environment["AUTORESEARCH_DATA"]
    try:
        assert "another split of the text" in task.call("run", "--trials", "0", code=6)
    finally:
        task.environment["AUTORESEARCH_DATA"] = mine


def test_the_tuner_and_a_replay_propose(task: Task, tmp_path: Path) -> None:
    (tuned,) = task.json("run", "--trials", "1")
    path = tmp_path / "proposals.jsonl"
    proposals = [
        {"idea": "a patch of something else", "patch": "--- a/x\n+++ b/x\n@@ -1,1 +1,1 @@\n-nothing like it\n+other\n"},
        {"idea": "a slow head", "constants": {"UNEMBEDDING_LR": 0.0002}},
    ]
    path.write_text("".join(json.dumps(proposal) + "\n" for proposal in proposals))
    # Near the line the champion may be measured again in between.
    told = task.json("run", "--agent", "replay", "--proposals", str(path))
    refused, replayed = (record for record in told if record["agent"] == "replay")

    assert (tuned["agent"], tuned["ending"]) == ("tuner", "finished")
    assert "->" in tuned["idea"]
    assert (refused["agent"], refused["verdict"], refused["ending"], refused["commit"]) == ("replay", "invalid", None, None)
    assert (replayed["agent"], replayed["ending"], replayed["idea"]) == ("replay", "finished", "a slow head")
    assert "+UNEMBEDDING_LR = 0.0002 " in task.call("show", str(replayed["trial"]))
    folder = task.folder / ".autoresearch" / "t"
    assert (folder / "progress.png").read_bytes().startswith(b"\x89PNG")
    assert len((folder / "results.tsv").read_text().splitlines()) == len(task.json("log")) + 1


def test_sigterm_ends_with_143(task: Task) -> None:
    child = task.spawn("run", "--trials", "5", "--agent", "replay", "--proposals", str(CANDIDATES))
    time.sleep(4)
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate(timeout=60)

    assert child.returncode == 143, err
    assert "Traceback" not in err


def test_flags_that_contradict_the_run_are_refused(task: Task) -> None:
    assert "started otherwise than --preset smoke (it has tiny)" in task.call("run", "--preset", "smoke", code=2)
    assert "exclude" in task.call("run", "--cpu", "--gpus", "0", "--new", code=2)


def test_a_gpu_that_is_not_there_is_exit_4(task: Task) -> None:
    if Path("/dev/nvidia0").exists():
        pytest.fail("this test is for machines without a GPU")
    task.call("run", "--gpus", "0", "--new", code=4)
    assert [path.name for path in (task.folder / ".autoresearch").iterdir() if (path / "journal.jsonl").exists()] == ["t"]


def test_a_second_runner_is_refused(task: Task, again: Again) -> None:
    child = task.spawn("trial", "--candidate", str(again("sleeps")))
    try:
        time.sleep(3)
        assert "held by another runner" in task.call("run", "--trials", "0", code=7)
    finally:
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=60)
    assert child.returncode == 130


def test_the_same_seed_gives_the_same_score_in_another_repository(make_task: Callable[[], Task], task: Task) -> None:
    """That another seed gives another score is seen on the three baselines."""
    same = make_task().json("run", *TINY, "--tag", "same", "--trials", "0")
    first = task.json("log")[:3]

    assert [round(record["val_bpb"], 4) for record in same] == [round(record["val_bpb"], 4) for record in first]
