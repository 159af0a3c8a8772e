"""Where an agent's sandbox comes from."""

from __future__ import annotations

import pytest

from runner.setup.bubblewrap import Means, provide


class Machine:
    """Has the program, or gets it when it is installed, or never."""

    def __init__(self, *, there: bool = False, installable: bool = True) -> None:
        self.there, self.installable, self.installed = there, installable, 0

    def find(self) -> str | None:
        return "/usr/bin/bwrap" if self.there else None

    def install(self) -> None:
        self.installed += 1
        self.there = self.installable


def test_nothing_is_installed_where_it_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    machine = Machine(there=True)

    assert provide(Means(machine.find, root=True, apt=True, install=machine.install)) is None
    assert machine.installed == 0
    assert capsys.readouterr().out == "bubblewrap: /usr/bin/bwrap\n"


def test_root_with_a_package_manager_installs_it() -> None:
    machine = Machine()

    assert provide(Means(machine.find, root=True, apt=True, install=machine.install)) is None
    assert machine.installed == 1


@pytest.mark.parametrize(("root", "apt", "installable"), [(False, True, True), (True, False, True), (True, True, False)])
def test_who_cannot_is_told_what_to_do(root: bool, apt: bool, installable: bool) -> None:  # noqa: FBT001 - a parameter
    machine = Machine(installable=installable)

    told = provide(Means(machine.find, root=root, apt=apt, install=machine.install))

    assert told is not None
    assert "apt-get install bubblewrap" in told
    assert machine.installed == (1 if root and apt else 0)
