"""The command line without an engine: what a user types wrong, and what is missing."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from runner import ledger
from runner.cli import app
from runner.cli.app import Boundary, run_folder
from runner.errors import AgentError, DataError, EngineError, GpuError, StateError, Terminated, UsageError
from runner.task import choose_preset, load_task
from tests.conftest import run_git

NO_ENGINE = {"DOCKER_HOST": "unix:///nowhere/docker.sock"}


def call(*arguments: str, code: int = 0, env: dict[str, str] | None = None) -> str:
    result = CliRunner().invoke(app, list(arguments), env=env or NO_ENGINE)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output if code == 0 else result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["run", "--nonsense"], 2, "No such option"),
        (["run", "--trials", "-1"], 2, "--trials"),
        (["run", "--agent", "magic"], 2, "--agent"),
        (["run", "--agent", "replay"], 2, "--proposals goes with --agent replay"),
        (["run", "--proposals", "x"], 2, "--proposals goes with --agent replay"),
        (["run", "--agent", "command"], 2, "--agent command wants --command '...'"),
        (["run", "--command", "x"], 2, "--command goes with --agent command, and only with it"),
        (["run", "--agent", "replay", "--proposals", "x", "--agent-path", "/opt"], 2, "--agent-path goes with --agent command"),
        (["run", "--context", "5000"], 2, "--context goes with --agent llm, hybrid or command"),
        (["run", "--model", "x/y"], 2, "--model goes with --agent llm or hybrid, and only with them"),
        (["run", "--max-output", "500"], 2, "--max-output goes with --agent llm or hybrid"),
        (["run", "--agent", "hybrid"], 2, "--agent hybrid wants --model provider/name"),
        (["run", "--agent", "llm", "--model", "x/y", "--model-share", "0.5"], 2, "--model-share goes with --agent hybrid, and only with it"),
        (["run", "--agent", "hybrid", "--model", "x/y", "--model-share", "0"], 2, "--model-share 0: a share of the tries, above 0 and at most 1"),
        (["run", "--agent", "hybrid", "--model", "x/y", "--model-share", "nan"], 2, "--model-share nan: a share"),
        (["run", "--agent", "hybrid", "--model", "x/y", "--model-share", "30"], 2, "--model-share 30: a share"),
        (["run", "--max-usd", "inf"], 2, "--max-usd inf: a sum of dollars"),
        (["run", "--max-usd", "-1"], 2, "--max-usd"),
        (["run", "--cpu", "--tag", "../x"], 2, "--tag '../x'"),
        (["run", "--cpu", "--tag", "data"], 2, "--tag 'data'"),
        (["run", "--cpu", "--gpus", "0"], 2, "exclude each other"),
        (["run", "--cpu", "--preset", "smok"], 2, "did you mean smoke?"),
        (["run", "--gpus", "0,1"], 2, "--gpus 0,1: name one GPU by its index; several at once are not there yet"),
        (["run", "--gpus", "2:0,2:1"], 2, "several at once are not there yet"),
        (["run", "--gpus", "first"], 2, "--gpus first: name one GPU by its index (0), one part of a GPU that is divided (0:1), or by UUID"),
        (["run", "--gpus", ""], 2, "name one GPU by its index"),
        (["run", "--gpus", "0:"], 2, "name one GPU by its index"),
        (["run", "--gpus", "0:1:2"], 2, "name one GPU by its index"),
        (["run", "--gpus", "\u0663"], 2, "name one GPU by its index"),
        (["run", "--gpus", "1" * 5000], 2, "name one GPU by its index"),
        (["run", "--gpus", "GPU-../../x"], 2, "name one GPU by its index"),
        (["run", "--gpus", "all"], 2, "name one GPU by its index"),
        (["run", "--cpu"], 3, "autoresearch images build cpu"),
        (["trial", "--cpu"], 2, "--candidate"),
        (["trial", "--cpu", "--candidate", "/nowhere.py"], 2, "--candidate /nowhere.py: No such file or directory"),
        (["trial", "--cpu", "--candidate", "/dev/zero"], 2, "more than 1 MiB"),
        (["status"], 2, "there is no run yet"),
        (["log", "--tag", "x"], 2, "there is no run 'x'; there are: none"),
        (["stop"], 2, "there is no run yet"),
        (["images", "build", "tpu"], 2, "tpu"),
        (["images", "build", "cpu"], 3, "engine"),
        (["prepare", "--preset", "tiny"], 3, "engine"),
        (["prepare", "--dataset", "pile"], 2, "pile"),
        (["prepare", "--source", "/nowhere"], 6, "/nowhere"),
        (["reap"], 3, "engine"),
    ],
)
def test_mistakes_and_what_is_missing(task: Path, arguments: list[str], code: int, said: str) -> None:
    name = arguments[:2] if arguments[0] == "images" else arguments[:1]
    rest = arguments[len(name) :]

    assert said in call(*name, "--task", str(task), *rest, code=code)
    assert not list(task.glob(".autoresearch/*/journal.jsonl"))
    assert run_git(task, "branch", "--list", "autoresearch/*") == ""


def test_a_gpu_that_is_not_there_is_exit_4(task: Path) -> None:
    if Path("/dev/nvidia0").exists():
        pytest.fail("this test is for machines without a GPU")

    assert "use --cpu" in call("run", "--task", str(task), code=4)
    for name in ("0", "0:1", "GPU-8a5c", "MIG-8a5c", "MIG-GPU-8a5c/1/0"):
        call("run", "--task", str(task), "--gpus", name, code=4)


def test_a_folder_that_is_no_task(tmp_path: Path, repository: Path) -> None:
    assert "not in a git repository" in call("run", "--task", str(tmp_path), "--cpu", code=7)
    assert "there is no such folder" in call("run", "--task", str(tmp_path / "x"), "--cpu", code=2)
    assert "has no autoresearch.yaml" in call("run", "--task", str(repository), "--cpu", code=2)


def test_a_preset_that_names_an_absent_constant(task: Path) -> None:
    path = task / "trainer" / "presets" / "tiny.yaml"
    path.write_text(path.read_text().replace("  DEPTH: 2", "  DEPHT: 2"))
    run_git(task, "commit", "-qam", "typo")

    said = call("run", "--task", str(task), "--cpu", "--preset", "tiny", code=2)

    assert "tiny" in said
    assert "DEPHT" in said


def test_a_run_branch_that_is_checked_out_is_refused(task: Path) -> None:
    run_git(task, "checkout", "-qb", "autoresearch/t")

    assert "is checked out" in call("run", "--task", str(task), "--cpu", "--tag", "t", code=7)


def test_a_tag_whose_records_are_gone_is_not_taken_again(task: Path) -> None:
    """`make clean` leaves run branches: their candidates must not be overwritten."""
    run_git(task, "branch", "autoresearch/old")
    run_git(task, "update-ref", "refs/autoresearch/older/3", "HEAD")

    for tag in ("old", "older"):
        assert "its records are not in" in call("run", "--task", str(task), "--cpu", "--tag", tag, code=7)
    assert not list(task.glob(".autoresearch/*/journal.jsonl"))


def test_init_makes_a_task_that_loads(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    call("init", str(folder), "--preset", "smoke")

    assert run_git(folder, "status", "--porcelain") == ""
    assert "DEPTH = 4 " in (folder / "trainer" / "train.py").read_text()
    assert choose_preset(folder, cpu=False) == "smoke"
    assert choose_preset(folder, cpu=True, named="tiny") == "tiny"
    assert "not empty" in call("init", str(folder), code=2)


def test_init_makes_a_task_from_an_example(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    call("init", "--example", "packing", str(folder))

    assert run_git(folder, "status", "--porcelain") == ""
    assert load_task(folder).score.metric == "sum_of_radii"
    assert (folder / ".gitignore").read_text() == "__pycache__/\n.autoresearch/\n"
    assert "not empty" in call("init", "--example", "packing", str(folder), code=2)
    assert "--example pack: there are: packing" in call("init", "--example", "pack", str(tmp_path / "x"), code=2)
    assert "there is no preset 'tiny'" in call("init", "--example", "packing", "--preset", "tiny", str(tmp_path / "x"), code=2)
    assert not (tmp_path / "x").exists()


@pytest.fixture
def reporting(tmp_path: Path) -> Path:
    """A task that reports its score."""
    folder = tmp_path / "packing"
    call("init", "--example", "packing", str(folder))
    return folder


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["prepare"], 2, "this task reports its own score: there are no data to prepare"),
        (["prepare", "--dataset", "kjv"], 2, "flags: data: goes with score.level audited only, and this task's is reported"),
        (["run", "--cpu", "--source", "."], 2, "flags: data: goes with score.level audited only"),
        (["run", "--cpu", "--dataset", "kjv"], 2, "flags: data: goes with score.level audited only"),
        (["run", "--cpu", "--preset", "smoke"], 2, "there is no preset 'smoke'; this task has: none"),
        (["run", "--cpu"], 3, "autoresearch images build cpu"),
    ],
)
def test_what_does_not_go_with_a_task_that_reports_its_score(reporting: Path, arguments: list[str], code: int, said: str) -> None:
    assert said in call(arguments[0], "--task", str(reporting), *arguments[1:], code=code)
    assert not list(reporting.glob(".autoresearch/*/journal.jsonl"))


def test_doctor_wants_no_data_for_a_reported_score(reporting: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", "--task", str(reporting), "--json"], env=NO_ENGINE)
    found = {row["check"]: row for row in map(json.loads, result.stdout.splitlines())}

    assert found["data"] == {"check": "data", "ok": True, "needed": True, "detail": "none needed: the task's own command measures"}


def test_a_level_that_is_not_committed_is_refused(reporting: Path, task: Path) -> None:
    path = task / "autoresearch.yaml"
    path.write_text((reporting / "autoresearch.yaml").read_text().replace("pack.py", "trainer/train.py").replace("space: space", "space: trainer/space"))

    said = call("run", "--task", str(task), "--cpu", code=2)

    assert "autoresearch.yaml asks for score.level reported, and the commit" in said
    assert said.strip().endswith("has audited: commit it first")


def test_a_run_is_not_continued_at_another_level(run_of: Path, reporting: Path) -> None:
    (run_of / "autoresearch.yaml").write_text(
        (reporting / "autoresearch.yaml").read_text().replace("pack.py", "trainer/train.py").replace("space: space", "space: trainer/space")
    )

    said = call("run", "--task", str(run_of), "--cpu", code=2)

    assert said.strip() == (
        "autoresearch: autoresearch.yaml asks for score.level reported, and run 'old' has audited: the two are never mixed on one branch; "
        "use --new"
    )


def test_a_task_whose_files_leave_no_room_is_refused(reporting: Path) -> None:
    with (reporting / "big").open("wb") as file:
        file.truncate(40 << 20)
    run_git(reporting, "add", "-A")
    run_git(reporting, "commit", "-qm", "big")

    assert "set limits.scratch_mb to twice that at least" in call("run", "--task", str(reporting), "--cpu", code=2)


def test_looking_at_a_run(run_of: Path) -> None:
    where = ("--task", str(run_of))
    status = json.loads(call("status", *where, "--json"))
    rows = [json.loads(line) for line in call("log", *where, "--json").splitlines()]

    assert (status["tag"], status["running"], status["best"]["trial"]) == ("old", False, 1)
    assert [row["verdict"] for row in rows] == ["baseline", "keep", "crash"]
    assert rows[2]["val_bpb"] is None
    for text in (call("status", *where), call("log", *where), call("show", "1", *where)):
        assert "\x1b[31m" not in text
        assert "[bold]1[/bold]" in text
    assert "there is no finished trial 9; the last is 2" in call("show", "9", *where, code=2)
    assert call("champion", *where) == (run_of / "trainer" / "train.py").read_text()
    assert json.loads(call("champion", *where, "--json"))["path"] == "trainer/train.py"
    paths = json.loads(call("report", *where, "--json"))
    assert Path(paths["plot"]).read_bytes().startswith(b"\x89PNG")
    assert len(Path(paths["results"]).read_text().splitlines()) == 4


def test_what_a_run_costs_is_told_with_the_price_of_its_gpu(run_of: Path) -> None:
    where = ("--task", str(run_of))
    values = json.loads(call("status", *where, "--json"))
    assert values["cost"] == json.loads(call("report", *where, "--json"))["cost"]
    assert (values["cost"]["total_usd"], values["cost"]["gpu_hours"], values["forecast"]["trials"]) == (0.0, None, 100)
    assert "cost      no model was asked\n" in call("status", *where)

    folder = run_of / ".autoresearch" / "old"
    first, *rest = (folder / "journal.jsonl").read_text().splitlines()
    (folder / "journal.jsonl").write_text("\n".join([json.dumps({**json.loads(first), "gpu": "GPU-1"}), *rest]) + "\n")
    with ledger.writing(folder) as run:
        run.write("paid", agent="llm", cost_usd=0.25, prompt_tokens=100, completion_tokens=10)
        run.write("paid", agent="llm", cost_usd=None, prompt_tokens=None, completion_tokens=None)
    cost = json.loads(call("status", *where, "--json"))["cost"]
    assert (cost["model_usd"], cost["unknown_proposals"], cost["gpu_usd"], cost["total_usd"]) == (0.25, 1, None, None)
    assert "GPU of unknown cost (0.00 hours, its price is unknown: cost.gpu_usd_per_hour)" in call("status", *where)

    with (folder / "task" / "autoresearch.yaml").open("a") as file:
        file.write("\ncost: {gpu_usd_per_hour: 1200}\n")
    values = json.loads(call("status", *where, "--json"))
    assert values["cost"]["gpu_usd"] == pytest.approx(3.0)  # three measurements of 3 s
    assert values["forecast"]["gpu_usd"] == pytest.approx(100.0)
    assert "GPU $3.00 (0.00 hours, at $1200)" in call("report", *where)


def test_a_checkpoint_that_is_gone_is_said_and_a_file_is_not_overwritten(run_of: Path, tmp_path: Path) -> None:
    where = ("--task", str(run_of), "--output", str(tmp_path / "m"))
    assert "trial 1 (keep) has no checkpoint" in call("export-model", "1", *where, code=2)
    folder = run_of / ".autoresearch" / "old" / "trials" / "0001"
    folder.mkdir(parents=True)
    (folder / "checkpoint.safetensors").write_bytes(b"weights")

    assert json.loads(call("export-model", "1", *where, "--json"))["bytes"] == 7
    assert "is there already" in call("export-model", "1", *where, code=2)
    call("export-model", "1", *where, "--force")
    assert (tmp_path / "m").read_bytes() == b"weights"


def test_stop_says_when_there_is_nothing_to_stop(run_of: Path) -> None:
    assert "there is nothing to stop" in call("stop", "--task", str(run_of))
    with ledger.writing(run_of / ".autoresearch" / "old"):
        assert "ends after its current trial" in call("stop", "--task", str(run_of))
        assert json.loads(call("status", "--task", str(run_of), "--json"))["running"] is True


def test_doctor_names_each_thing_and_ends_with_the_first_failure(task: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", "--task", str(task), "--json"], env=NO_ENGINE)
    found = {row["check"]: row for row in map(json.loads, result.stdout.splitlines())}

    assert result.exit_code == 3
    assert found["git"]["ok"] is True
    assert found["engine"]["ok"] is False
    assert found["gpu"]["needed"] is False
    if not found["gpu"]["ok"] and shutil.which("nvidia-ctk") is None:
        assert found["toolkit"] == {"check": "toolkit", "ok": True, "needed": False, "detail": "none needed: no GPU answers here"}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("x"), 2),
        (EngineError("x"), 3),
        (GpuError("x"), 4),
        (AgentError("x"), 5),
        (DataError("x"), 6),
        (StateError("x"), 7),
        (KeyboardInterrupt(), 130),
        (Terminated(), 143),
        (OSError(28, "No space left on device", "/x"), 7),
        (OSError(5, "Input/output error"), 70),
        (ZeroDivisionError("secret words"), 70),
    ],
)
def test_every_error_ends_in_its_code_and_one_message(tmp_path: Path, error: BaseException, code: int) -> None:
    broken = typer.Typer(cls=Boundary)

    @broken.command()
    def fail() -> None:
        run_folder.set(tmp_path)
        raise error

    @broken.command()
    def other() -> None: ...

    before = signal.getsignal(signal.SIGTERM)
    result = CliRunner().invoke(broken, ["fail"])
    signal.signal(signal.SIGTERM, before)
    run_folder.set(None)

    assert result.exit_code == code
    assert len(result.stderr.splitlines()) == 1
    if isinstance(error, ZeroDivisionError):
        assert "secret words" not in result.output
        (path,) = tmp_path.glob("defect-*.txt")
        assert "ZeroDivisionError: secret words" in path.read_text()


def test_starting_fast() -> None:
    """Nothing that is slow to import is imported before a command needs it."""
    import subprocess
    import sys

    heavy = ["docker", "git", "litellm", "torch", "optuna", "matplotlib", "numpy", "libcst", "yaml", "structlog", "mcp", "anyio"]
    program = f"import sys, runner.cli; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ)

    assert found.stdout == "[]\n"
