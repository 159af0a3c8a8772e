"""What trials run in: built from pinned parts, recorded by engine id, and never built twice.

A kind is a Debian base with a few packages plus the wheels of a lock.  The base comes from a registry by
digest where one answers, otherwise from Debian packages; the wheels are downloaded and checked here, on the
host, and installed in a build without network.

What trials run in exists three times, once for each phase of a trial, with no layer in common: containers of
one layer share its inodes, and with them the page cache and the dentry cache, through which the claim could
tell the audit and the next training what it saw.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runner.errors import EngineError, StateError, UsageError
from runner.resources import resource
from runner.sandbox.build import Builder, Built
from runner.setup.engine import keep_out_of_git
from runner.setup.steps import CommandError, Say, Stopwatch, apt_install, run
from runner.trial import PhaseImages as PhaseImages  # noqa: PLC0414 - what `image_ids` gives
from runner.wheels import PYTHON, Wheels, sha256_of

SUITE = "bookworm"
REGISTRY_BASE = "debian:bookworm-slim"
BASE_VARIABLE = "AUTORESEARCH_BASE"
"""`registry` or `packages`: where the base comes from; unset: a registry if one answers."""
CONTENT_LABEL = "autoresearch.content"
BASE_LABEL = "autoresearch.base"
BASE_REPOSITORY = "autoresearch/base"
BASE_NAME_LABEL = "autoresearch.base.name"
KIND_LABEL = "autoresearch.kind"
COPY_LABEL = "autoresearch.copy"
"""On a copy: the id of the image it was made from."""
PHASE_LABEL = "autoresearch.phase"
COPIED_PHASES = ("claim", "audit")
"""Training runs from the image as it was built."""
TORCH_LABEL = "autoresearch.torch.sha256"
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
CUDA_FREE_BYTES = 24 << 30
"""Wheels 3 GB, installed twice while building; afterwards the image and its two copies."""
PROBE = """\
import importlib.util, json, platform
facts = {"python": platform.python_version(), "torch": None, "cuda": None}
if importlib.util.find_spec("torch"):
    import torch
    facts["torch"], facts["cuda"] = torch.__version__, torch.version.cuda
print(json.dumps(facts))
"""


@dataclass(frozen=True)
class Kind:
    """What an image is made of."""

    name: str
    packages: tuple[str, ...]
    """Debian packages."""
    torch: str | None
    """`cpu`, `cuda` or None."""
    keep_wheels: bool = True

    @property
    def copied(self) -> bool:
        """Whether trials run in it, and so each phase in one of its own."""
        return self.torch is not None


_PYTHON_PACKAGES = ("python3", "libstdc++6", "libgomp1")
KINDS = {
    kind.name: kind
    for kind in (
        Kind("cpu", _PYTHON_PACKAGES, "cpu"),
        # Triton compiles C against Python.h at run time.
        Kind("cuda", (*_PYTHON_PACKAGES, "gcc", "libc6-dev", "python3-dev"), "cuda", keep_wheels=False),
        # The only image that has the text of the data set `kjv`; trials never run in it.
        Kind("prepare", (*_PYTHON_PACKAGES, "ca-certificates", "bible-kjv", "bible-kjv-text"), None),
    )
}


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """What was built; trials run by `id` only."""

    kind: str
    id: str
    """The engine's id, `sha256:...`; of a kind with copies: the one for training."""
    base: str
    """A registry's digest, or the id of the base made from packages."""
    torch: str | None
    torch_sha256: str | None
    """Of the wheel, which no lock fixes for the CPU build."""
    python: str
    built_at: str
    lock_hash: str
    content: str
    """Hash of everything it is made from; another one means: build again."""
    size_bytes: int
    """With the copies."""
    built_here: bool
    """False: it was in the engine already, so it is not ours to remove."""
    claim_id: str | None = None
    audit_id: str | None = None
    """Ids of the copies for these phases; None where there are none: `prepare`, and before they are made."""
    copied_here: bool = False
    """A copy was made for this record, or was about to be: those of `id` are ours to remove."""


# ------------------------------------------------------------------------------------------------- records


def list_images(state: Path) -> list[ImageRecord]:
    """What is recorded, by kind."""
    path = state / "images.json"
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
        return [ImageRecord(**recorded[kind]) for kind in KINDS if kind in recorded]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        message = f"{path} is damaged ({error}); remove it and run `autoresearch images build` again"
        raise StateError(message) from error


def image_id(kind: str, state: Path) -> str:
    """The id of the image of this kind.  Raises `EngineError` if it was not built yet."""
    for record in list_images(state):
        if record.kind == kind:
            return record.id
    message = f"no {kind} image was built yet; run: autoresearch images build {kind}"
    raise EngineError(message)


def image_ids(kind: str, state: Path) -> PhaseImages:
    """The ids of the images of this kind by phase.  Raises `EngineError` if they were not all made yet."""
    for record in list_images(state):
        if record.kind == kind and record.claim_id is not None and record.audit_id is not None:
            return PhaseImages(train=record.id, claim=record.claim_id, audit=record.audit_id)
    message = f"no {kind} images for every phase of a trial yet; run: autoresearch images build {kind}"
    raise EngineError(message)


def copying_labels(state: Path) -> dict[str, str]:
    """Labels of the containers that copies are read from for this state folder."""
    place = hashlib.sha256(str(state.resolve()).encode()).hexdigest()[:12]
    return {
        "autoresearch.role": "copy",
        "autoresearch.owner": str(os.getuid()),
        "autoresearch.copying": place,
    }


def copies(engine: Builder, record: ImageRecord) -> list[Built]:
    """The copies that the engine has of the record's image, recorded or not."""
    return engine.find_all({COPY_LABEL: record.id})


def _write(record: ImageRecord, state: Path) -> None:
    records = {known.kind: asdict(known) for known in list_images(state)}
    records[record.kind] = asdict(record)
    text = json.dumps(records, indent=1) + "\n"
    with tempfile.NamedTemporaryFile("w", dir=state, prefix="images.", delete=False) as part:
        part.write(text)
        part.flush()
        os.fsync(part.fileno())
    Path(part.name).replace(state / "images.json")


# ------------------------------------------------------------------------------------------------ building


def build(
    kind: str,
    state: Path,
    say: Say,
    *,
    builder: Builder | None = None,
    environment: Mapping[str, str] = os.environ,
) -> ImageRecord:
    """See to it that the image of this kind is in the engine and recorded.

    Nothing is done if the recorded image is there and made from what it would be made from now; an image of
    that content that is already in the engine is taken as it is.  Raises `EngineError`, `StateError` (disk)
    or `UsageError` (no such kind).
    """
    if kind not in KINDS:
        message = f"no image kind {kind!r}; there are: {', '.join(KINDS)}"
        raise UsageError(message)
    watch = Stopwatch()
    keep_out_of_git(state)
    with _one_at_a_time(state, say), builder or Builder.connect(environment) as engine:
        work = _Work(KINDS[kind], state, engine, say, environment)
        record, done = work.run()
    say(f"images: {kind} {done}: {record.id[:19]}, {record.size_bytes / 1e9:.2f} GB ({watch})")
    return record


@contextmanager
def _one_at_a_time(state: Path, say: Say) -> Iterator[None]:
    with (state / "images.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("images: waiting for another build")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class _Work:
    """One call of `build`."""

    def __init__(
        self, kind: Kind, state: Path, engine: Builder, say: Say, environment: Mapping[str, str]
    ) -> None:
        self._kind = kind
        self._state = state
        self._engine = engine
        self._say = say
        self._environment = environment
        self._machine = self._look_at_machine()
        self._lock = resource("images", f"{kind.name}.lock")
        self._lock_hash = sha256_of(self._lock)
        base_files = [resource("images", name) for name in ("base.Dockerfile", "base.sh")]
        self._base_hash = _digest(
            SUITE, REGISTRY_BASE, self._machine, *kind.packages, *map(sha256_of, base_files)
        )
        dockerfile = sha256_of(resource("images", "Dockerfile"))
        self._content = _digest(kind.name, self._base_hash, dockerfile, self._lock_hash)

    def _look_at_machine(self) -> str:
        architecture = self._engine.architecture()
        machine = MACHINES.get(architecture, architecture)
        if machine not in MACHINES.values() or (self._kind.torch == "cuda" and machine != "x86_64"):
            message = f"the {self._kind.name} image cannot be built for an engine on {architecture}"
            raise EngineError(message)
        return machine

    def run(self) -> tuple[ImageRecord, str]:
        """The record, and what was done."""
        old = next((known for known in list_images(self._state) if known.kind == self._kind.name), None)
        record, done = self._current(old)
        if self._kind.copied:
            whole = self._with_copies(record)
            if whole != record:
                done += " and copied for each phase"
            record = whole
        if old is not None and old.id != record.id and old.copied_here:
            for copy in copies(self._engine, old):
                self._engine.remove(copy.id)
        return record, done

    def _current(self, old: ImageRecord | None) -> tuple[ImageRecord, str]:
        """The record of the image itself, and what was done."""
        if old is not None:
            image = self._engine.get(old.id)
            if image is not None and image.labels.get(CONTENT_LABEL) == self._content == old.content:
                return old, "is up to date"
        found = self._engine.find({CONTENT_LABEL: self._content})
        record = self._record(found or self._build(), built_here=found is None)
        _write(record, self._state)
        return record, "was in the engine already" if found else "built"

    def _with_copies(self, record: ImageRecord) -> ImageRecord:
        """The record with an image for each phase, those made now that the engine lacks."""
        found = {
            phase: self._engine.find({COPY_LABEL: record.id, PHASE_LABEL: phase}) for phase in COPIED_PHASES
        }
        if None in found.values():
            # Before the first is made: whatever happens then, `clean` removes it.
            record = replace(record, copied_here=True)
            _write(record, self._state)
            self._engine.remove_containers(copying_labels(self._state))  # of a build that was killed
        claim, audit = (found[phase] or self._copy(record, phase) for phase in COPIED_PHASES)
        made = [image for image in (self._engine.get(record.id), claim, audit) if image is not None]
        layers = [set(image.layers) for image in made]
        if len(set().union(*layers)) < sum(map(len, layers)):
            message = (
                f"the engine did not keep the {record.kind} images of the phases apart: they share a layer"
            )
            raise EngineError(message)
        size = sum(image.size_bytes for image in made)
        whole = replace(record, claim_id=claim.id, audit_id=audit.id, size_bytes=size)
        if whole != record:
            _write(whole, self._state)
        return whole

    def _copy(self, record: ImageRecord, phase: str) -> Built:
        watch = Stopwatch()
        copy = self._engine.copy(
            record.id,
            f"autoresearch-{phase}",
            labels={KIND_LABEL: record.kind, COPY_LABEL: record.id, PHASE_LABEL: phase},
            name=f"autoresearch/{record.kind}-{phase}:{record.id.partition(':')[2][:12]}",
            container_labels=copying_labels(self._state),
            say=self._say,
        )
        try:
            self._try_copy(record, phase, copy)
        except EngineError:
            self._engine.remove(copy.id)
            raise
        self._say(f"images: copied for {phase}, with no layer in common ({watch})")
        return copy

    def _try_copy(self, record: ImageRecord, phase: str, copy: Built) -> None:
        facts = self._facts(copy)
        if (facts["python"], facts["torch"]) != (record.python, record.torch):
            message = f"the copy of the {record.kind} image for {phase} is not what it was made from: {facts}"
            raise EngineError(message)

    def _build(self) -> Built:
        self._engine.remove_old_halves()
        if self._kind.torch == "cuda":
            self._need_room()
        wheels = Wheels(
            self._state / "wheels" / f"{self._kind.name}-{self._machine}",
            lock=self._lock,
            machine=self._machine,
            say=self._say,
            environment=self._environment,
        )
        torch_hash = wheels.fetch()
        base = self._base()
        watch = Stopwatch()
        files = [("Dockerfile", resource("images", "Dockerfile")), *wheels.files()]
        labels = {
            KIND_LABEL: self._kind.name,
            CONTENT_LABEL: self._content,
            TORCH_LABEL: torch_hash or "",
            BASE_NAME_LABEL: base.labels.get(BASE_NAME_LABEL, base.id),
        }
        image = self._engine.build(
            files,
            arguments={"BASE": base.id},
            labels=labels,
            name=f"autoresearch/{self._kind.name}:{self._content[:12]}",
            network=False,
            say=self._say,
        )
        self._say(f"images: installed the wheels ({watch})")
        if not self._kind.keep_wheels:
            wheels.remove()
        return image

    def _need_room(self) -> None:
        free = shutil.disk_usage(self._state).free
        if free < CUDA_FREE_BYTES:
            message = f"building the cuda image takes {CUDA_FREE_BYTES >> 30} GiB; {free >> 30} GiB are free"
            raise StateError(message)

    def _record(self, image: Built, *, built_here: bool) -> ImageRecord:
        watch = Stopwatch()
        facts = self._facts(image)
        has_cuda = facts["cuda"] is not None
        if not str(facts["python"]).startswith(f"{PYTHON}.") or has_cuda != (self._kind.torch == "cuda"):
            message = f"the {self._kind.name} image is not what its lock says: {facts}"
            raise EngineError(message)
        self._say(f"images: tried it: Python {facts['python']}, torch {facts['torch']} ({watch})")
        return ImageRecord(
            kind=self._kind.name,
            id=image.id,
            base=image.labels.get(BASE_NAME_LABEL, ""),
            torch=facts["torch"],
            torch_sha256=image.labels.get(TORCH_LABEL) or None,
            python=facts["python"],
            built_at=datetime.now(UTC).isoformat(timespec="seconds"),
            lock_hash=self._lock_hash,
            content=self._content,
            size_bytes=image.size_bytes,
            built_here=built_here,
        )

    def _facts(self, image: Built) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(
            self._engine.run(image.id, ["python3", "-c", PROBE], say=self._say)
        )
        return facts

    # -------------------------------------------------------------------------------------------- the base

    def _base(self) -> Built:
        # By name: what is built on a base inherits its labels.
        name = f"{BASE_REPOSITORY}:{self._base_hash[:12]}"
        found = self._engine.get(name)
        if found is not None and found.labels.get(BASE_LABEL) == self._base_hash:
            return found
        wanted = self._environment.get(BASE_VARIABLE, "")
        if wanted not in {"", "registry", "packages"}:
            message = f"{BASE_VARIABLE} is {wanted!r}; it may be `registry` or `packages`"
            raise UsageError(message)
        digest = None if wanted == "packages" else self._digest()
        if digest is not None:
            return self._base_from_registry(digest, name)
        if wanted == "registry":
            message = f"no registry gives {REGISTRY_BASE}, and {BASE_VARIABLE} allows nothing else"
            raise EngineError(message)
        return self._base_from_packages(name)

    def _digest(self) -> str | None:
        """The digest that was used before, so that a rebuild has the same base; else the registry's word."""
        for record in list_images(self._state):
            name, _, digest = record.base.partition("@")
            if name == REGISTRY_BASE and digest:
                return digest
        return self._engine.registry_digest(REGISTRY_BASE)

    def _base_from_registry(self, digest: str, tag: str) -> Built:
        watch = Stopwatch()
        name = f"{REGISTRY_BASE}@{digest}"
        proxies = {
            key: value
            for key, value in self._environment.items()
            if key.lower() in {"http_proxy", "https_proxy", "no_proxy"}
        }
        image = self._engine.build(
            [("Dockerfile", resource("images", "base.Dockerfile"))],
            arguments={"DEBIAN": name, "PACKAGES": " ".join(self._kind.packages), **proxies},
            labels={BASE_LABEL: self._base_hash, BASE_NAME_LABEL: name},
            name=tag,
            network=True,
            say=self._say,
        )
        self._say(f"images: base from {name} ({watch})")
        return image

    def _base_from_packages(self, tag: str) -> Built:
        watch = Stopwatch()
        self._provide_mmdebstrap()
        with tempfile.TemporaryDirectory(dir=self._state, prefix="base.") as folder:
            archive = Path(folder) / "base.tar"
            script = [str(resource("images", "base.sh")), str(archive), SUITE, *self._kind.packages]
            try:
                run(["sh", *script], what="making a base from Debian packages", say=self._say)
            except CommandError as error:
                message = (
                    f"no registry can be reached and no base can be made from packages: {error}\n{error.tail}"
                    f"\nNeeded: a registry, or a machine whose package sources are Debian {SUITE}'s"
                )
                raise EngineError(message) from error
            name = f"packages:{SUITE}@sha256:{sha256_of(archive)}"
            labels = {BASE_LABEL: self._base_hash, BASE_NAME_LABEL: name}
            image = self._engine.import_base(archive, name=tag, labels=labels, say=self._say)
        self._say(f"images: base from Debian packages, no registry answers ({watch})")
        return image

    def _provide_mmdebstrap(self) -> None:
        if shutil.which("mmdebstrap"):
            return
        if os.geteuid() != 0 or not shutil.which("apt-get"):
            message = (
                "no registry can be reached; to make a base from packages: sudo apt-get install mmdebstrap"
            )
            raise EngineError(message)
        try:
            apt_install(["mmdebstrap"], what="installing mmdebstrap", say=self._say)
        except CommandError as error:
            message = f"no registry can be reached, and mmdebstrap cannot be installed: {error}\n{error.tail}"
            raise EngineError(message) from error


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
