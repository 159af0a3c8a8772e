"""Building with a whole fake engine: what is done, what is not done again, what is recorded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pytest

from runner import images
from runner.errors import EngineError, StateError, UsageError
from runner.resources import resource
from runner.sandbox.build import Builder, Built
from runner.setup.steps import Say
from runner.wheels import sha256_of

DIGEST = "sha256:" + "d" * 64
FROM_REGISTRY = {"AUTORESEARCH_BASE": "registry"}


@dataclass
class FakeEngine(Builder):
    """Keeps images in a dictionary; what it is asked to build, it has."""

    architecture_name: str = "amd64"
    digest: str | None = DIGEST
    facts: dict[str, str | None] = field(
        default_factory=lambda: {"python": "3.11.2", "torch": None, "cuda": None}
    )
    has: dict[str, Built] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    built: list[tuple[str, Mapping[str, str], bool]] = field(default_factory=list)
    asked_registry: int = 0
    copied: list[tuple[str, str]] = field(default_factory=list)
    containers: list[Mapping[str, str]] = field(default_factory=list)
    common_layer: bool = False
    broken: str = ""
    """What a copy whose name has this in it says of itself is not true of its image."""

    def close(self) -> None:
        """Nothing to give back."""

    def __enter__(self) -> Self:
        return self

    def architecture(self) -> str:
        return self.architecture_name

    def get(self, image: str) -> Built | None:
        return self.has.get(self.tags.get(image, image))

    def find_all(self, labels: Mapping[str, str]) -> list[Built]:
        return [image for image in self.has.values() if labels.items() <= image.labels.items()]

    def registry_digest(self, reference: str) -> str | None:
        self.asked_registry += 1
        return self.digest

    def build(
        self,
        files: Sequence[tuple[str, Path]],
        *,
        arguments: Mapping[str, str],
        labels: Mapping[str, str],
        name: str,
        network: bool,
        say: Say,
    ) -> Built:
        base = self.get(arguments.get("BASE", ""))
        inherited = dict(base.labels) if base else {}
        self.built.append((name, arguments, network))
        return self._make(name, {**inherited, **labels})

    def copy(
        self,
        image: str,
        marker: str,
        *,
        labels: Mapping[str, str],
        name: str,
        container_labels: Mapping[str, str],
        say: Say,
    ) -> Built:
        assert image in self.has
        self.copied.append((name, marker))
        self.containers.append(container_labels)
        return self._make(name, labels)

    def _make(self, name: str, labels: Mapping[str, str]) -> Built:
        number = f"{len(self.built) + len(self.copied) - 1:064d}"
        layers = ("common", number) if self.common_layer else (number,)
        image = Built(id=f"sha256:{number}", labels=labels, size_bytes=10**9, layers=layers)
        self.has[image.id] = image
        self.tags[name] = image.id
        return image

    def remove(self, image: str) -> bool:
        return self.has.pop(image, None) is not None

    def remove_containers(self, labels: Mapping[str, str]) -> int:
        return 0

    def remove_old_halves(self) -> None:
        """Leaves none."""

    def run(self, image: str, command: Sequence[str], *, say: Say) -> str:
        [name] = [tag for tag, identifier in self.tags.items() if identifier == image]
        return json.dumps(
            {**self.facts, "python": "2.7"} if self.broken and self.broken in name else self.facts
        )


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state folder whose wheels of `prepare` and `cpu` are there already."""
    for kind, torch in (("prepare", None), ("cpu", "a hash")):
        folder = tmp_path / "state" / "wheels" / f"{kind}-x86_64"
        folder.mkdir(parents=True)
        (folder / "pip-1-py3-none-any.whl").write_bytes(b"")
        (folder / "numpy-1-py3-none-any.whl").write_bytes(b"")
        lock = sha256_of(resource("images", f"{kind}.lock"))
        (folder / "complete.json").write_text(json.dumps({"lock": lock, "torch": torch}))
    return tmp_path / "state"


def build(
    state: Path, engine: FakeEngine, environment: Mapping[str, str] = FROM_REGISTRY, kind: str = "prepare"
) -> list[str]:
    said: list[str] = []
    images.build(kind, state, said.append, builder=engine, environment=environment)
    return said


def build_cpu(state: Path, engine: FakeEngine) -> list[str]:
    return build(state, engine, kind="cpu")


def test_builds_once_and_records_the_id(state: Path) -> None:
    engine = FakeEngine()
    assert "built" in build(state, engine)[-1]
    assert [network for _, _, network in engine.built] == [True, False], (
        "only the base's packages come over a network"
    )
    record = images.list_images(state)[0]
    assert images.image_id("prepare", state) == record.id == engine.tags[engine.built[1][0]]
    assert record.base == f"debian:bookworm-slim@{DIGEST}"
    assert (record.python, record.torch, record.built_here) == ("3.11.2", None, True)

    assert "is up to date" in build(state, engine)[-1]
    assert len(engine.built) == 2
    assert not list(state.glob("images.*[!nk]")), "no half-written file stays"


def test_an_image_that_the_engine_lost_is_built_again_on_the_same_digest(state: Path) -> None:
    build(state, FakeEngine())
    later = FakeEngine(digest="sha256:" + "e" * 64)
    build(state, later)
    assert later.asked_registry == 0
    assert later.built[0][1]["DEBIAN"] == f"debian:bookworm-slim@{DIGEST}"


def test_an_image_of_the_same_content_is_adopted(state: Path, tmp_path: Path) -> None:
    engine = FakeEngine()
    build(state, engine)
    said: list[str] = []
    record = images.build("prepare", tmp_path / "other", said.append, builder=engine, environment={})
    assert "was in the engine already" in said[-1]
    assert (record.id, record.built_here) == (images.image_id("prepare", state), False)
    assert len(engine.built) == 2


def test_the_base_is_the_base_and_not_an_image_built_on_it(state: Path) -> None:
    """What is built on a base inherits its labels."""
    engine = FakeEngine()
    build(state, engine)
    base, final = (engine.tags[name] for name, _, _ in engine.built)
    engine.has[final] = Built(
        id=final, labels={**engine.has[final].labels, images.CONTENT_LABEL: "old"}, size_bytes=1, layers=()
    )
    build(state, engine)
    assert [arguments.get("BASE") for _, arguments, _ in engine.built] == [None, base, base]


def test_an_image_that_is_not_what_its_lock_says_is_not_recorded(state: Path) -> None:
    engine = FakeEngine(facts={"python": "3.12.1", "torch": None, "cuda": None})
    with pytest.raises(EngineError, match="not what its lock says"):
        build(state, engine)
    assert images.list_images(state) == []


def test_no_registry_where_one_is_demanded(state: Path) -> None:
    with pytest.raises(EngineError, match="no registry gives debian:bookworm-slim"):
        build(state, FakeEngine(digest=None))


def test_proxies_reach_the_base_build_only(state: Path) -> None:
    engine = FakeEngine()
    build(state, engine, {**FROM_REGISTRY, "https_proxy": "http://proxy:3128", "HF_TOKEN": "secret"})
    base, final = (arguments for _, arguments, _ in engine.built)
    assert base["https_proxy"] == "http://proxy:3128"
    assert "HF_TOKEN" not in base
    assert "https_proxy" not in final


def test_unknown_kind_wrong_base_and_wrong_machine(state: Path) -> None:
    with pytest.raises(UsageError, match="there are: cpu, cuda, prepare"):
        images.build("gpu", state, print, builder=FakeEngine())
    with pytest.raises(UsageError, match="AUTORESEARCH_BASE"):
        build(state, FakeEngine(), {"AUTORESEARCH_BASE": "anything"})
    for machine, kind in (("arm64", "cuda"), ("riscv64", "cpu")):
        with pytest.raises(EngineError, match="cannot be built for an engine on"):
            images.build(kind, state, print, builder=FakeEngine(architecture_name=machine))


def test_each_phase_has_an_image_of_its_own_made_once(state: Path) -> None:
    engine = FakeEngine()
    assert "built and copied for each phase" in build_cpu(state, engine)[-1]
    [record] = images.list_images(state)
    ids = images.image_ids("cpu", state)
    assert ids == images.PhaseImages(
        train=record.id, claim=record.claim_id or "", audit=record.audit_id or ""
    )
    assert ids.train == images.image_id("cpu", state)
    assert len({ids.train, ids.claim, ids.audit}) == 3
    assert [marker for _, marker in engine.copied] == ["autoresearch-claim", "autoresearch-audit"]
    assert engine.has[ids.audit].labels[images.PHASE_LABEL] == "audit"
    assert record.size_bytes == 3 * 10**9
    assert engine.containers == [images.copying_labels(state)] * 2

    said = build_cpu(state, engine)
    assert said[-1].startswith("images: cpu is up to date:")
    assert len(engine.copied) == 2


def test_what_prepares_data_is_not_copied(state: Path) -> None:
    engine = FakeEngine()
    build(state, engine)
    assert engine.copied == []
    with pytest.raises(EngineError, match="autoresearch images build prepare"):
        images.image_ids("prepare", state)


def test_a_record_from_before_there_were_copies_is_read_and_completed(state: Path) -> None:
    engine = FakeEngine()
    build_cpu(state, engine)
    before = json.loads((state / "images.json").read_text())
    for name in ("claim_id", "audit_id", "copied_here"):
        del before["cpu"][name]
    (state / "images.json").write_text(json.dumps(before))
    for copy in images.copies(engine, images.list_images(state)[0]):
        engine.remove(copy.id)
    with pytest.raises(EngineError, match="for every phase"):
        images.image_ids("cpu", state)

    assert "is up to date and copied for each phase" in build_cpu(state, engine)[-1]
    assert len(engine.built) == 2, "the image itself is not built again"
    assert images.image_ids("cpu", state).audit in engine.has


def test_a_copy_that_the_engine_lost_is_made_again_alone(state: Path) -> None:
    engine = FakeEngine()
    build_cpu(state, engine)
    ids = images.image_ids("cpu", state)
    engine.remove(ids.claim)
    build_cpu(state, engine)
    now = images.image_ids("cpu", state)
    assert (now.train, now.audit) == (ids.train, ids.audit)
    assert [marker for _, marker in engine.copied] == [
        "autoresearch-claim",
        "autoresearch-audit",
        "autoresearch-claim",
    ]


def test_copies_that_are_there_are_adopted_with_their_image(state: Path, tmp_path: Path) -> None:
    engine = FakeEngine()
    build_cpu(state, engine)
    images.build("cpu", tmp_path / "other", print, builder=engine, environment={})
    [record] = images.list_images(tmp_path / "other")
    assert images.image_ids("cpu", tmp_path / "other") == images.image_ids("cpu", state)
    assert (record.built_here, record.copied_here) == (False, False)


def test_copies_of_an_image_that_was_replaced_go(state: Path) -> None:
    engine = FakeEngine()
    build_cpu(state, engine)
    old = images.image_ids("cpu", state)
    engine.remove(old.train)
    build_cpu(state, engine)
    new = images.image_ids("cpu", state)
    assert {old.claim, old.audit}.isdisjoint(engine.has)
    assert {new.train, new.claim, new.audit} <= engine.has.keys()


def test_a_copy_that_does_not_work_is_not_kept(state: Path) -> None:
    engine = FakeEngine(broken="cpu-audit")
    with pytest.raises(EngineError, match="copy of the cpu image for audit is not what it was made from"):
        build_cpu(state, engine)
    [record] = images.list_images(state)
    assert [copy.labels[images.PHASE_LABEL] for copy in images.copies(engine, record)] == ["claim"]
    assert record.copied_here, "so that `clean` removes the one that was made"
    assert record.audit_id is None

    engine.broken = ""
    build_cpu(state, engine)
    assert images.image_ids("cpu", state).audit in engine.has


def test_images_that_share_a_layer_are_refused(state: Path) -> None:
    with pytest.raises(EngineError, match="they share a layer"):
        build_cpu(state, FakeEngine(common_layer=True))
    with pytest.raises(EngineError, match="for every phase"):
        images.image_ids("cpu", state)


def test_a_missing_image_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="autoresearch images build cuda"):
        images.image_id("cuda", tmp_path)


@pytest.mark.parametrize("damage", ["", "[", '{"cpu": {"kind": "cpu"}}', '{"cpu": 3}'])
def test_a_damaged_record_is_told(tmp_path: Path, damage: str) -> None:
    (tmp_path / "images.json").write_text(damage)
    with pytest.raises(StateError, match="damaged"):
        images.list_images(tmp_path)
