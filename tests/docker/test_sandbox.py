"""The contract of the sandbox, held by the real engine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from runner.errors import EngineError
from runner.sandbox import container
from runner.sandbox.create import create_container
from runner.sandbox.docker import DockerSandbox
from runner.sandbox.volumes import PreparedVolume, provide
from runner.trial import Ending, InputFile, Limits, OutputFile, Progress, Result, TrialSpec, VolumeMount
from tests.docker.conftest import ours

if TYPE_CHECKING:
    from docker import DockerClient

pytestmark = pytest.mark.docker

GATE = """
import os, sys, time, json
def gate(path="/in/gated"):
    open("/out/ready", "w").close()
    while not os.access(path, os.R_OK): time.sleep(0.002)
"""
LIMITS = Limits(
    memory_bytes=256 << 20,
    cpus=1.0,
    pids=64,
    output_bytes=16 << 20,
    output_inodes=64,
    scratch_bytes=16 << 20,
    log_bytes=1 << 20,
    startup_seconds=20,
    seconds=20,
)
Run = Callable[..., Result]
RUNTIME = os.environ.get("AUTORESEARCH_TEST_RUNTIME")
"""Named where another than the engine's default is tried."""


@pytest.fixture
def label() -> str:
    return f"autoresearch.test={uuid.uuid4().hex}"


def gated_spec(tmp_path: Path, cpu_image: str, label: str) -> TrialSpec:
    """Of a container that runs `tmp_path`/train.py and is handed rows at its gate."""
    (tmp_path / "rows.bin").write_bytes(b"the rows")
    name, value = label.split("=")
    return TrialSpec(
        phase="train",
        image=cpu_image,
        command=("python3", "/in/train.py"),
        environment=(("PATH", "/usr/bin:/bin:/usr/local/bin"), ("HOME", "/tmp")),
        files=(InputFile(name="train.py", path=tmp_path / "train.py"),),
        gated_files=(InputFile(name="rows.bin", path=tmp_path / "rows.bin"),),
        outputs=(OutputFile(name="result", max_bytes=1000),),
        limits=LIMITS,
        labels=(("autoresearch", "1"), (name, value)),
    )


@pytest.fixture
def spec(tmp_path: Path, cpu_image: str, label: str) -> TrialSpec:
    return gated_spec(tmp_path, cpu_image, label)


@pytest.fixture
def run(engine: DockerClient, spec: TrialSpec, tmp_path: Path, label: str) -> Iterator[Run]:
    """Runs a script in a container; nothing may be left of it afterwards."""

    def run(script: str, **limits: float) -> Result:
        (tmp_path / "train.py").write_text(GATE + textwrap.dedent(script))
        changed = replace(spec, limits=replace(LIMITS, **limits))  # type: ignore[arg-type]
        return DockerSandbox(engine, runtime=RUNTIME).run(changed, tmp_path / "out", created=lambda _: None, progress=lambda _: None)

    yield run
    assert ours(engine, label) == []


def said(result: Result) -> str:
    assert result.log_path is not None
    return result.log_path.read_text(errors="replace")


def test_outputs_and_log_come_back(run: Run) -> None:
    result = run("gate(); print('hello'); open('/out/result', 'w').write('42')")

    assert (result.ending, result.reason, result.exit_code) == (Ending.FINISHED, "exit code 0", 0)
    assert said(result) == "hello\n"
    path = result.output("result")
    assert path is not None
    assert path.read_text() == "42"
    assert result.peak_memory_bytes is None or result.peak_memory_bytes > 0


def test_nothing_gated_is_readable_before_the_gate(run: Run) -> None:
    result = run("""
        seen = []
        for _ in range(20):
            try: seen.append(os.listdir("/in/gated"))
            except PermissionError: pass
            try: seen.append(open("/in/gated/rows.bin").read())
            except PermissionError: pass
            time.sleep(0.01)
        assert seen == [], seen
        gate()
        assert open("/in/gated/rows.bin").read() == "the rows"
        open("/out/result", "w").close()
    """)

    assert result.ending is Ending.FINISHED, said(result)


def test_the_clock_runs_from_the_gate_to_the_exit(run: Run) -> None:
    result = run("time.sleep(1.5); gate(); open('/out/result', 'w').close(); time.sleep(1)")

    assert 1.5 <= result.startup_seconds < 6
    assert 1.0 <= result.seconds < 3


def test_isolation_seen_from_inside(run: Run) -> None:
    result = run("""
        import socket
        gate()
        status = dict(line.split(":", 1) for line in open("/proc/self/status"))
        assert os.getuid() == 10001 and os.getgid() == 10001
        assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0, status
        assert status["NoNewPrivs"].strip() == "1"
        assert status["Seccomp"].strip() == "2"
        assert [line.split(":")[0].strip() for line in open("/proc/net/dev") if ":" in line] == ["lo"]
        try: socket.create_connection(("1.1.1.1", 53), timeout=2); raise SystemExit("network")
        except OSError: pass
        for path in ("/x", "/in/x", "/usr/x", "/etc/x", "/home/x", "/var/x", "/run/x"):
            try: open(path, "w"); raise SystemExit(path + " is writable")
            except OSError: pass
        left = set(os.environ) - {"PATH", "HOME", "HOSTNAME", "LC_CTYPE", "PWD", "NVIDIA_VISIBLE_DEVICES"}
        assert not left, left
        assert not os.path.exists("/var/run/docker.sock")
        open("/out/result", "w").close()
    """)

    assert result.ending is Ending.FINISHED, said(result)


@pytest.mark.parametrize(
    ("script", "ending", "reason"),
    [
        ("gate(); raise ValueError('val_bpb: 0.1')", Ending.CRASHED, "exit code 1"),
        ("raise SystemExit(3)", Ending.CRASHED, "exit code 3"),
        ("gate(); os.kill(os.getpid(), 11)", Ending.CRASHED, "ended by signal 11 (exit code 139)"),
        ("gate(); x = bytearray(1 << 30)", Ending.OUT_OF_MEMORY, "the kernel ended a process at the memory limit of 0.2 GiB"),
        (
            "gate()\nif os.fork() == 0: x = bytearray(1 << 30)\nos.wait(); open('/out/result', 'w').close()",
            Ending.OUT_OF_MEMORY,
            "the kernel ended a process at the memory limit of 0.2 GiB",
        ),
        ("print('val_bpb: 0.1')", Ending.INVALID_OUTPUT, "exit code 0 without ever asking for the data"),
        ("gate(); print('val_bpb: 0.1')", Ending.INVALID_OUTPUT, "result was not written"),
        ("gate(); os.mkfifo('/out/result')", Ending.INVALID_OUTPUT, "result: not a regular file"),
        ("gate(); os.mkdir('/out/result')", Ending.INVALID_OUTPUT, "result: not a regular file"),
        ("gate(); os.symlink('/etc/passwd', '/out/result')", Ending.INVALID_OUTPUT, "result: not a regular file"),
        (
            "gate(); f = open('/out/result', 'w'); f.truncate(10 << 40)",
            Ending.INVALID_OUTPUT,
            f"result: {10 << 40} bytes, more than the 1000 allowed",
        ),
    ],
)  # fmt: skip
def test_endings(run: Run, script: str, ending: Ending, reason: str) -> None:
    result = run(script)

    assert (result.ending, result.reason) == (ending, reason)
    assert result.output("result") is None


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("gate(); time.sleep(600)", "still running 2.0 s after the gate opened; killed"),
        ("time.sleep(600)", "not ready 2 s after the start; killed"),
        (
            "import signal; [signal.signal(s, signal.SIG_IGN) for s in (1, 2, 15)]; gate(); os.fork(); time.sleep(600)",
            "still running 2.0 s after the gate opened; killed",
        ),
    ],
)
def test_deadlines(run: Run, script: str, reason: str) -> None:
    began = time.monotonic()
    result = run(script, seconds=2, startup_seconds=2)

    assert (result.ending, result.reason) == (Ending.TIMED_OUT, reason)
    assert time.monotonic() - began < 12


def test_what_can_be_written_is_capped(run: Run) -> None:
    result = run("""
        gate()
        def fill(folder):
            wrote = 0
            try:
                with open(folder + "/big", "wb", buffering=0) as file:
                    while wrote < 1 << 30: wrote += file.write(bytes(1 << 20))
            except OSError as error: assert error.errno == 28, error
            os.unlink(folder + "/big")
            return wrote
        assert fill("/out") <= 16 << 20 and fill("/scratch") <= 16 << 20 and fill("/dev/shm") <= 64 << 20
        made = 0
        try:
            for made in range(10**6): open(f"/out/{made}", "w").close()
        except OSError as error: assert error.errno == 28, error
        assert made < 100
        for name in range(made): os.unlink(f"/out/{name}")
        open("/out/result", "w").close()
    """)

    assert result.ending is Ending.FINISHED, said(result)


def test_processes_are_capped(run: Run) -> None:
    result = run("""
        gate()
        made = 0
        try:
            for made in range(10**6):
                if os.fork() == 0: time.sleep(600)
        except OSError as error: assert error.errno == 11, error
        assert made < 64, made
        open("/out/result", "w").close()
    """)

    assert result.ending is Ending.FINISHED, said(result)


def test_a_flood_of_output_is_capped(run: Run, tmp_path: Path) -> None:
    result = run("gate(); [print('x' * 1000) for _ in range(100_000)]; open('/out/result', 'w').close()")

    assert result.ending is Ending.FINISHED
    assert 0 < (tmp_path / "out" / "train.log").stat().st_size <= 1 << 20


def test_progress_is_the_trials_own_word_and_garbage_is_nothing(
    engine: DockerClient, spec: TrialSpec, tmp_path: Path
) -> None:
    seen: list[Progress] = []
    script = """
        gate()
        for text in ('{"step": 5, "loss": 2.5}', '{"step": "x"}', '[' * 9999, 'nan', ''):
            open('/out/tmp', 'w').write(text); os.rename('/out/tmp', '/out/progress.json'); time.sleep(1.3)
        open('/out/result', 'w').close()
    """
    (tmp_path / "train.py").write_text(GATE + textwrap.dedent(script))
    DockerSandbox(engine, runtime=RUNTIME).run(spec, tmp_path / "out", created=lambda _: None, progress=seen.append)

    assert (5, 2.5) in {(progress.step, progress.loss) for progress in seen}
    assert {type(progress.step) for progress in seen} <= {int, type(None)}


@pytest.mark.parametrize("name", ["ready", "result", "progress.json"])
def test_a_link_to_itself_stops_nobody(run: Run, name: str) -> None:
    """The engine answers with a server error when it is asked for such a name."""
    result = run(f"""
        os.symlink("{name}", "/out/{name}")
        if "{name}" != "ready": open("/out/ready", "w").close()
        while not os.access("/in/gated", os.R_OK): time.sleep(0.002)
        if "{name}" != "result": open("/out/result", "w").close()
    """)

    if name == "result":
        assert (result.ending, result.reason) == (Ending.INVALID_OUTPUT, "result: cannot be read")
    else:
        assert result.ending is Ending.FINISHED, said(result)


def test_a_pipe_in_the_place_of_a_file_holds_nobody_up(run: Run) -> None:
    """The engine's own root process would wait for ever in opening it."""
    began = time.monotonic()
    result = run("""
        import threading
        gate()
        os.mkfifo("/out/pipe"); open("/out/file", "w").write('{"step": 1, "loss": 1.0}')
        end = time.monotonic() + 5
        while time.monotonic() < end:
            for name in ("file", "pipe"):
                os.link("/out/" + name, "/out/new"); os.rename("/out/new", "/out/progress.json")
        open("/out/result", "w").close()
    """)

    assert result.ending is Ending.FINISHED, said(result)
    assert time.monotonic() - began < 20


def test_a_lease_on_a_file_does_not_stretch_the_deadline(run: Run) -> None:
    result = run(
        """
        import fcntl, signal
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        file = open("/out/progress.json", "w"); file.write('{"step": 1}'); file.flush()
        try: fcntl.fcntl(file, 1024, fcntl.F_WRLCK)
        except PermissionError: pass
        else: raise SystemExit("a lease was given")
        gate(); time.sleep(60)
        """,
        seconds=3,
    )

    assert result.ending is Ending.TIMED_OUT
    assert result.seconds < 4


def test_nothing_of_one_trial_is_there_for_the_next(run: Run) -> None:
    script = """
        found = [p for d in ("/tmp", "/scratch", "/out", "/dev/shm") for p in os.listdir(d)]
        assert found == [], found
        gate()
        for d in ("/tmp", "/scratch", "/out", "/dev/shm"): open(d + "/left", "w").close()
        open("/out/result", "w").close()
    """
    for _ in range(2):
        result = run(script)
        assert result.ending is Ending.FINISHED, said(result)


def test_the_container_is_announced_before_it_starts(
    engine: DockerClient, spec: TrialSpec, tmp_path: Path, label: str
) -> None:
    def created(identifier: str) -> None:
        assert engine.api.inspect_container(identifier)["State"]["Status"] == "created"
        raise InterruptedError

    (tmp_path / "train.py").write_text("")
    with pytest.raises(InterruptedError):
        DockerSandbox(engine, runtime=RUNTIME).run(spec, tmp_path / "out", created=created, progress=lambda _: None)

    assert ours(engine, label) == []


def test_an_image_that_is_gone_is_the_engines_failure(
    engine: DockerClient, spec: TrialSpec, tmp_path: Path, label: str
) -> None:
    (tmp_path / "train.py").write_text("")
    gone = replace(spec, image="sha256:" + "0" * 64)
    with pytest.raises(EngineError, match="autoresearch images build"):
        DockerSandbox(engine, runtime=RUNTIME).run(gone, tmp_path / "out", created=lambda _: None, progress=lambda _: None)

    assert ours(engine, label) == []


def test_a_prepared_volume_is_filled_once_checked_and_mended(
    engine: DockerClient, cpu_image: str, spec: TrialSpec, run: Run, tmp_path: Path, label: str
) -> None:
    (tmp_path / "tokens").write_bytes(os.urandom(3 << 20))
    wanted = PreparedVolume(
        name=f"autoresearch-test-{uuid.uuid4().hex[:8]}",
        files=(InputFile(name="tokens", path=tmp_path / "tokens"),),
        gated=True,
        labels=spec.labels,
    )
    try:
        assert provide(engine, cpu_image, wanted) is True
        assert provide(engine, cpu_image, wanted) is False
        script = """
            try: os.listdir("/data/gated"); raise SystemExit("open")
            except PermissionError: pass
            gate("/data/gated")
            assert os.path.getsize("/data/gated/tokens") == 3 << 20
            try: open("/data/gated/tokens", "r+b"); raise SystemExit("writable")
            except OSError: pass
            open("/out/result", "w").close()
        """
        (tmp_path / "train.py").write_text(GATE + textwrap.dedent(script))
        mounted = replace(spec, volumes=(VolumeMount(volume=wanted.name, target="/data", gated=True),))
        for _ in range(2):  # the gate is closed again after the first
            result = DockerSandbox(engine, runtime=RUNTIME).run(mounted, tmp_path / "out", created=lambda _: None, progress=lambda _: None)
            assert result.ending is Ending.FINISHED, said(result)

        (tmp_path / "tokens").write_bytes(b"other")
        assert provide(engine, cpu_image, wanted) is True
        # A runner that was killed while it filled a volume leaves its keeper, which holds the volume.
        body = container.keeper_body(
            cpu_image,
            mounts=[container.volume_mount(wanted.name, "/hold", read_only=False)],
            seconds=600,
            labels=dict(spec.labels),
        )
        create_container(engine, body, f"{wanted.name}-keeper")
        engine.api.start(f"{wanted.name}-keeper")
        (tmp_path / "tokens").write_bytes(b"a third")
        assert provide(engine, cpu_image, wanted) is True
    finally:
        engine.api.remove_volume(wanted.name)


def test_a_killed_runner_leaves_only_what_the_reaper_removes(
    engine: DockerClient, spec: TrialSpec, tmp_path: Path, label: str
) -> None:
    """kill -9 of the process in the middle of a trial, then reap by label."""
    (tmp_path / "train.py").write_text(GATE + "gate(); time.sleep(600)")
    program = textwrap.dedent(f"""
        import pathlib, pickle, sys
        from runner.sandbox.connect import connect
        from runner.sandbox.docker import DockerSandbox
        spec = pickle.load(open({str(tmp_path / 'spec')!r}, "rb"))
        DockerSandbox(connect()).run(spec, pathlib.Path({str(tmp_path / 'out')!r}),
            created=lambda _: None, progress=lambda p: print("running", flush=True))
    """)
    import pickle

    (tmp_path / "spec").write_bytes(pickle.dumps(spec))
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"running\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    name, value = label.split("=")

    assert len(ours(engine, label)) == 4
    assert DockerSandbox(engine).reap({name: "somebody else's"}) == 0
    assert DockerSandbox(engine).reap({name: value}) == 4
    assert ours(engine, label) == []
