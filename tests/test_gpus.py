"""What is made of what the driver says; the driver is a fake that another process finds in the real binding's place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
FAKE = ROOT / "tests" / "docker" / "nvml"
CARD = "GPU-00000000-0000-0000-0000-000000000002"
FIRST, SECOND = (f"MIG-00000000-0000-0000-0000-00000000000{number}" for number in (1, 2))
PROGRAM = """
import json, sys
from dataclasses import asdict
from runner import gpus
from runner.errors import GpuError
try:
    found = getattr(gpus, sys.argv[1])(*sys.argv[2:])
except GpuError as error:
    print(json.dumps(str(error)))
else:
    print(json.dumps(found, default=asdict))
"""


def ask(function: str, *arguments: str, **environment: str) -> Any:
    """What a function of `runner.gpus` gives, as JSON; the message of its error, if it raises one."""
    paths = {"PYTHONPATH": f"{FAKE}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-c", PROGRAM, function, *arguments]
    done = subprocess.run(command, env={**os.environ, **paths, **environment}, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_cards_are_listed_and_one_that_is_divided_with_its_parts() -> None:
    whole = ask("discover")
    *others, divided = ask("discover", FAKE_NVML_DIVIDED="2")

    assert others == whole
    assert [(one["index"], one["memory_gb"], one["part"], one["parts"]) for one in whole] == [(0, 80.0, None, None), (1, 24.0, None, None)]
    assert (divided["index"], divided["uuid"], divided["memory_gb"]) == (2, CARD, 10.0)
    assert divided["parts"] == [
        {
            "index": 2, "uuid": uuid, "name": "Imaginary 40 GB MIG 1g.5gb", "memory_gb": 5.0, "minor": 2, "part": {"number": number, "card": CARD},
            "parts": None,
        }
        for number, uuid in ((1, FIRST), (2, SECOND))
    ]  # fmt: skip
    assert ask("discover", FAKE_NVML_DIVIDED="0")[2]["parts"] == []


@pytest.mark.parametrize(
    ("called", "uuid"),
    [("0", "GPU-00000000-0000-0000-0000-000000000000"), ("GPU-00000000-0000-0000-0000-000000000001",) * 2, ("2:1", FIRST), (SECOND, SECOND)],
)
def test_a_gpu_is_picked_by_index_part_or_uuid(called: str, uuid: str) -> None:
    assert ask("pick", called, FAKE_NVML_DIVIDED="2")["uuid"] == uuid


@pytest.mark.parametrize("called", ["2", CARD])
def test_a_card_that_is_divided_is_refused_with_its_parts(called: str) -> None:
    said = "GPU 2 (Imaginary 40 GB) is divided, so nothing computes on the whole of it; "

    assert ask("pick", called, FAKE_NVML_DIVIDED="2") == (
        said + "name one of its parts: 2:1 (Imaginary 40 GB MIG 1g.5gb), 2:2 (Imaginary 40 GB MIG 1g.5gb)"
    )
    assert ask("pick", called, FAKE_NVML_DIVIDED="0") == said + "it has no parts yet: an admin makes them with `nvidia-smi mig -cgi`"


@pytest.mark.parametrize("called", ["3", "2:0", "0:0", "MIG-1", "GPU-00000000"])
def test_one_that_is_not_there_is_refused_with_what_is(called: str) -> None:
    assert ask("pick", called, FAKE_NVML_DIVIDED="1") == (
        f"there is no GPU {called}; this machine has: 0 (Imaginary 80 GB), 1 (Imaginary 24 GB), 2:1 (Imaginary 40 GB MIG 1g.5gb)"
    )


def test_a_runs_gpu_is_found_again_unless_it_was_divided_anew() -> None:
    assert ask("find", FIRST, FAKE_NVML_DIVIDED="1")["part"]["number"] == 1
    for uuid in (SECOND, CARD):
        assert ask("find", uuid, FAKE_NVML_DIVIDED="1") == f"GPU {uuid} is no longer in this machine, or it was divided anew"


def test_memory_and_processes_are_a_parts_own_and_clocks_its_cards() -> None:
    assert ask("reading", FIRST, FAKE_NVML_DIVIDED="2") == {"memory_bytes": 2 << 20, "processes": [], "slowed": None}
    assert ask("reading", FIRST, FAKE_NVML_DIVIDED="2", FAKE_NVML_BUSY="2:1", FAKE_NVML_SLOW="2") == {
        "memory_bytes": 2 << 20, "processes": [4242], "slowed": "heat",
    }  # fmt: skip
    assert ask("reading", FIRST, FAKE_NVML_DIVIDED="2", FAKE_NVML_SLOW="0")["slowed"] is None
    assert ask("reading", SECOND, FAKE_NVML_DIVIDED="1") is None


@pytest.mark.parametrize(
    ("busy", "found"),
    [
        ("2:1", ["process 4242 with 300 MiB"]),
        ("2", ["process 4242 with 300 MiB"]),  # on the card, and on none of its parts
        ("2:2", []),
        ("0", []),
        ("root alone", []),
        ("unsupported", []),
    ],
)
def test_whoever_computes_on_a_part_or_on_its_whole_card_is_named_and_nobody_else(busy: str, found: list[str]) -> None:
    assert ask("foreign_processes", FIRST, FAKE_NVML_DIVIDED="2", FAKE_NVML_BUSY=busy) == found


def test_a_whole_card_is_asked_for_itself_alone() -> None:
    uuid = "GPU-00000000-0000-0000-0000-000000000001"

    assert ask("foreign_processes", uuid, FAKE_NVML_BUSY="1") == ["process 4242 with 300 MiB"]
    assert ask("reading", uuid, FAKE_NVML_SLOW="1") == {"memory_bytes": 1 << 20, "processes": [], "slowed": "heat"}
