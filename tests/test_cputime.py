from __future__ import annotations

from pathlib import Path

import pytest

from runner.sandbox.cputime import read_usage, usage_file

ID = "c0ffee" * 10 + "abcd"


def proc(root: Path, groups: str, mounts: str) -> Path:
    (root / "proc" / "77").mkdir(parents=True)
    (root / "proc" / "self").mkdir()
    (root / "proc" / "77" / "cgroup").write_text(groups)
    (root / "proc" / "self" / "mountinfo").write_text(mounts)
    return root / "proc"


def test_the_first_kind_of_control_groups_counts_nanoseconds(tmp_path: Path) -> None:
    folder = tmp_path / "cg" / "docker" / ID
    folder.mkdir(parents=True)
    (folder / "cpuacct.usage").write_text("1500000000\n")
    found = proc(
        tmp_path,
        f"12:memory:/docker/{ID}\n4:cpu,cpuacct:/docker/{ID}\n1:name=systemd:/docker/{ID}\n",
        f"30 25 0:26 / {tmp_path}/mem rw,nosuid - cgroup cgroup rw,memory\n"
        f"31 25 0:27 / {tmp_path}/cg rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n",
    )

    file = usage_file(found, ID, 77)

    assert file == folder / "cpuacct.usage"
    assert read_usage(file) == 1.5


def test_the_second_kind_counts_microseconds_and_may_be_mounted_below_its_root(tmp_path: Path) -> None:
    folder = tmp_path / "cg" / "system.slice" / f"docker-{ID}.scope"
    folder.mkdir(parents=True)
    (folder / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 2000000\nsystem_usec 500000\n")
    found = proc(
        tmp_path,
        f"0::/machine/system.slice/docker-{ID}.scope\n",
        f"29 25 0:25 /machine {tmp_path}/cg rw,nosuid - cgroup2 cgroup2 rw\n",
    )

    file = usage_file(found, ID, 77)

    assert file is not None
    assert read_usage(file) == 2.5


@pytest.mark.parametrize("group", ["4:cpu,cpuacct:/docker/another\n", "", "0::/\n"])
def test_a_process_number_of_another_machine_means_nothing(tmp_path: Path, group: str) -> None:
    mounts = f"31 25 0:27 / {tmp_path} rw - cgroup cgroup rw,cpu,cpuacct\n"
    (tmp_path / "cpuacct.usage").write_text("5\n")

    assert usage_file(proc(tmp_path, group, mounts), ID, 77) is None


def test_no_such_process_and_no_such_file_are_none(tmp_path: Path) -> None:
    assert usage_file(tmp_path, ID, 77) is None
    assert read_usage(tmp_path / "cpuacct.usage") is None


@pytest.mark.parametrize(("name", "text"), [("cpuacct.usage", "x"), ("cpu.stat", "user_usec 1\n"), ("cpu.stat", "")])
def test_what_cannot_be_understood_is_none(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)

    assert read_usage(tmp_path / name) is None
