"""Which GPUs an engine knows by CDI, from what it says of itself and from the files that it reads."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from runner.sandbox.cdi import MAX_BYTES, described, names, offered

NAME = "nvidia.com/gpu=GPU-1"
SPECIFICATION = {
    "cdiVersion": "0.5.0",
    "kind": "nvidia.com/gpu",
    "devices": [{"name": name, "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia0"}]}} for name in ("0", "GPU-1", "MIG-1")],
    "containerEdits": {"env": ["NVIDIA_VISIBLE_DEVICES=void"]},
}
YAML = """---
cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia1
      major: 195
  name: "1"
- name: GPU-2
containerEdits:
  env:
  - NVIDIA_VISIBLE_DEVICES=void
"""


class FakeClient:
    """An engine at an address that says something of itself."""

    def __init__(self, address: str, facts: dict[str, Any]) -> None:
        self.api, self.base_url, self._facts = self, address, facts

    def info(self) -> dict[str, Any]:
        return self._facts


def folder(path: Path, **files: str) -> dict[str, Any]:
    """What an engine says that reads these files; `_` in a name stands for the dot."""
    for name, text in files.items():
        (path / name.replace("_", ".")).write_text(text)
    return {"CDISpecDirs": [str(path), str(path / "not there")]}


def test_what_the_engine_has_discovered_is_believed_and_no_file_is_read(tmp_path: Path) -> None:
    facts = folder(tmp_path, nvidia_yaml=YAML)
    facts["DiscoveredDevices"] = [
        {"Source": "cdi", "ID": NAME},
        {"Source": "cdi", "ID": "vendor.com/net=GPU-3"},
        {"Source": "other", "ID": "nvidia.com/gpu=GPU-4"},
        {"Source": "cdi"},
        "nonsense",
    ]

    assert names(facts, local=True) == names(facts, local=False) == {NAME}
    assert names({**facts, "DiscoveredDevices": []}, local=True) == frozenset()


def test_the_files_of_an_older_engine_on_this_machine_are_read(tmp_path: Path) -> None:
    facts = folder(tmp_path, nvidia_yaml=YAML, other_json=json.dumps(SPECIFICATION), notes_txt=YAML)
    wanted = {f"nvidia.com/gpu={name}" for name in ("0", "1", "GPU-1", "GPU-2", "MIG-1")}

    assert names(facts, local=True) == wanted
    assert names({**facts, "DiscoveredDevices": None}, local=True) == wanted
    assert names(facts, local=False) == frozenset()


@pytest.mark.parametrize("facts", [{}, {"CDISpecDirs": None}, {"CDISpecDirs": []}, {"CDISpecDirs": ["/dev/null"]}])
def test_an_engine_without_cdi_offers_nothing(facts: dict[str, Any]) -> None:
    assert names(facts, local=True) == frozenset()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1, 2]",
        "kind: [",
        "a: &a [*a]",
        "kind: nvidia.com/gpu",
        '{"kind": "nvidia.com/gpu", "devices": {"name": "GPU-9"}}',
        '{"kind": "nvidia.com/gpu", "devices": ["GPU-9", {"name": 9}, {}, null]}',
        '{"kind": "vendor.com/net", "devices": [{"name": "GPU-9"}]}',
        '{"kind": "nvidia.com/gpu", "devices": [{"name": "GPU-9"}], "more": "' + "x" * MAX_BYTES + '"}',
        "[" * 5_000,
    ],
    ids=lambda text: text[:24] or "nothing",
)
def test_a_file_that_is_broken_or_too_large_or_another_vendors_says_nothing(tmp_path: Path, text: str) -> None:
    facts = folder(tmp_path, a_json=text, b_yaml=text, c_json=json.dumps(SPECIFICATION))
    (tmp_path / "d.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "e.json").mkdir()
    (tmp_path / "f.yaml").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "g.yaml")

    assert names(facts, local=True) == {f"nvidia.com/gpu={name}" for name in ("0", "GPU-1", "MIG-1")}


def test_a_specification_is_of_gpus_or_says_nothing() -> None:
    assert list(described(SPECIFICATION)) == ["nvidia.com/gpu=0", NAME, "nvidia.com/gpu=MIG-1"]
    assert list(described({**SPECIFICATION, "kind": "nvidia.com/mofed"})) == []
    assert list(described({})) == []


def test_only_an_engine_behind_a_unix_socket_is_taken_for_local(tmp_path: Path) -> None:
    facts = folder(tmp_path, other_json=json.dumps(SPECIFICATION))
    here: Any = FakeClient("http+docker://localhost", facts)
    there: Any = FakeClient("https://gpu-server:2376", facts)

    assert NAME in offered(here)
    assert offered(there) == frozenset()
