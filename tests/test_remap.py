"""Whom of the host an engine takes a container's users for."""

from __future__ import annotations

import pytest

from runner.errors import EngineError
from runner.sandbox.remap import first_uid


def test_an_engine_that_maps_nobody_and_one_that_lives_in_the_map_itself() -> None:
    assert first_uid({"SecurityOptions": ["name=seccomp,profile=default"], "DockerRootDir": "/var/lib/docker"}) == 0
    assert first_uid({"SecurityOptions": ["name=rootless"], "DockerRootDir": "/home/u/1.1"}) == 0
    assert first_uid({}) == 0


def test_a_mapping_engine_tells_by_the_name_of_its_folder() -> None:
    assert first_uid({"SecurityOptions": ["name=userns"], "DockerRootDir": "/var/lib/docker/231072.231072"}) == 231072


@pytest.mark.parametrize("root", ["/var/lib/docker", "/var/lib/docker/1.2", ""])
def test_a_mapping_engine_that_does_not_tell_is_refused(root: str) -> None:
    with pytest.raises(EngineError, match="does not say where to"):
        first_uid({"SecurityOptions": ["name=userns"], "DockerRootDir": root})
