"""Creates containers, and believes the engine only as far as what it made is what was asked.

Engines accept options that they do not apply, with a warning or without a word.  So every container of ours is read back
before it is started, and one that is not as asked is removed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from runner.errors import EngineError
from runner.sandbox.container import Body
from runner.sandbox.translate import engine_errors, remove_container

if TYPE_CHECKING:
    from docker import DockerClient

EXCUSED: Mapping[str, str | None] = {
    # Without swap accounting the limit of memory alone can be had.
    "does not support swap limit capabilities": "MemorySwap",
    # Said of every container.
    "IPv4 forwarding is disabled": None,
}
"""Parts of warnings that are no error for a container without a network, and the setting that may differ then.  Whether memory
without swap accounting is limited enough, the probe finds out: where there is no swap it is."""
NEVER_ASKED: Mapping[str, tuple[object, ...]] = {
    "Privileged": (False,),
    "PublishAllPorts": (False,),
    "AutoRemove": (False,),
    "OomKillDisable": (False, None),
    "CgroupParent": ("",),
    "PidMode": ("", "private"),
    "UTSMode": ("", "private"),
    "UsernsMode": ("", "private"),
}
"""What no body of ours sets, and what an engine may say then."""
NOTHING: tuple[object, ...] = (None, [], {}, "")
EMPTY = (
    "Binds", "PortBindings", "VolumesFrom", "CapAdd", "GroupAdd", "Links", "Devices", "DeviceCgroupRules", "DeviceRequests",
    "ExtraHosts", "Sysctls",
)  # fmt: skip
"""Of these there is nothing unless a body asks for it."""
PINNED = re.compile(r"sha256:[0-9a-f]{64}")
"""What names one image for ever; a tag names whatever was tagged last."""


def create_container(client: DockerClient, body: Body, name: str | None = None) -> str:
    """A container as `body` asks, not started; its id.

    Raises `EngineError` if the image is not named by its id, or if the engine made something else, or warns that it would; that
    container is removed.
    """
    if not PINNED.fullmatch(str(body["Image"])):
        message = (
            f"the image {body['Image']!r} is a name, which may mean another image tomorrow; containers run by an engine id alone "
            "(sha256:...). `autoresearch images build` records it"
        )
        raise EngineError(message)
    api: Any = client.api  # this one method has no types
    with engine_errors(str(body["Image"])):
        made = api.create_container_from_config(body, name)
        identifier = str(made["Id"])
        try:
            wrong = differences(body, api.inspect_container(identifier), made.get("Warnings") or ())
        except BaseException:
            remove_container(client, identifier)
            raise
        if wrong:
            remove_container(client, identifier)
            message = (
                f"the container engine does not apply what isolates a trial: {'; '.join(wrong)}. Nothing was started. "
                "`autoresearch doctor` tries each limit; docs/security.md says which engines hold them"
            )
            raise EngineError(message)
    return identifier


def differences(body: Body, made: Mapping[str, Any], warnings: Sequence[str] = ()) -> list[str]:
    """Every setting of the create call `body` that `made`, the engine's own description, does not have, in words.

    And everything that the engine warned of, unless it is known to be harmless.
    """
    known = EXCUSED if body["HostConfig"]["NetworkMode"] == "none" else {}
    excused = {setting for part, setting in known.items() if any(part in one for one in warnings)}
    host = {key: value for key, value in body["HostConfig"].items() if key not in excused}
    warned = [f"it warns: {one.strip()}" for one in warnings if not any(part in one for part in known)]
    return [*warned, *_of_image(body, made), *_of_config(body, made["Config"]), *_of_host(host, made["HostConfig"]), *_of_mounts(body, made)]


def _of_image(body: Body, made: Mapping[str, Any]) -> Iterator[str]:
    # Podman leaves the name of the hash away.
    if str(made.get("Image")).removeprefix("sha256:") != str(body["Image"]).removeprefix("sha256:"):
        yield _spell("Image", body["Image"], made.get("Image"))


def _of_config(body: Body, config: Mapping[str, Any]) -> Iterator[str]:
    for key in ("User", "Cmd", "WorkingDir"):
        if key in body and config.get(key) != body[key]:
            yield _spell(key, body[key], config.get(key))
    if config.get("Entrypoint"):
        yield _spell("Entrypoint", [], config["Entrypoint"])
    missing = set(body["Env"]) - set(config.get("Env") or ())
    if missing:
        yield f"Env lacks {', '.join(sorted(missing))}"
    labels = config.get("Labels") or {}
    gone = sorted(name for name, value in body["Labels"].items() if labels.get(name) != value)
    if gone:
        yield f"Labels lack {', '.join(gone)}"


def _of_host(asked: Body, host: Mapping[str, Any]) -> Iterator[str]:
    for key, wanted in asked.items():
        if key == "Mounts":
            continue
        found = host.get(key)
        if not _same(key, wanted, found):
            yield _spell(key, wanted, found)
    for key, allowed in NEVER_ASKED.items():
        if key not in asked and host.get(key, allowed[0]) not in allowed:
            yield _spell(key, allowed[0], host[key])
    for key in EMPTY:
        if key not in asked and host.get(key) not in NOTHING:
            yield _spell(key, "nothing", host[key])


def _same(key: str, wanted: Any, found: Any) -> bool:
    match key:
        case "SecurityOpt" | "CapDrop" | "MaskedPaths":
            return sorted(wanted) == sorted(found or ())
        case "Ulimits":
            # The engine adds its own defaults for others.
            return set(map(_limit, wanted)) <= set(map(_limit, found or ()))
        case "LogConfig":
            # So it does here.
            return bool(found) and found.get("Type") == wanted["Type"] and wanted["Config"].items() <= (found.get("Config") or {}).items()
        case "RestartPolicy":
            return bool(found) and found.get("Name") in (wanted["Name"], "")
        case "DeviceRequests":
            have = found or []
            return len(wanted) == len(have) and all(map(_same_request, wanted, have))
        case _:
            return bool(wanted == found)


def _same_request(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """An engine may add what it takes for granted (a count of zero, no options), and nothing else: a count may mean all."""
    return wanted.items() <= found.items() and not any(found[key] for key in found.keys() - wanted.keys())


def _limit(value: Mapping[str, Any]) -> tuple[str, int, int]:
    return str(value["Name"]), int(value["Soft"]), int(value["Hard"])


def _of_mounts(body: Body, made: Mapping[str, Any]) -> Iterator[str]:
    """Each volume where it was asked for, writable only where that was; nothing else, as an image's own volumes are."""
    asked = {one["Target"]: (one["Source"], not one["ReadOnly"]) for one in body["HostConfig"].get("Mounts", ())}
    tmpfs = body["HostConfig"].get("Tmpfs", {})
    found = {one["Destination"]: (one.get("Name") or one.get("Source"), one["RW"]) for one in made.get("Mounts", ()) if one["Destination"] not in tmpfs}
    for target in sorted(asked.keys() | found.keys()):
        if asked.get(target) != found.get(target):
            yield f"mount {target}: asked {_mount(asked.get(target))}, made {_mount(found.get(target))}"


def _mount(value: tuple[str, bool] | None) -> str:
    return "none" if value is None else f"{value[0]} {'writable' if value[1] else 'read-only'}"


def _spell(key: str, wanted: object, found: object) -> str:
    return f"{key}: asked {_short(wanted)}, made {_short(found)}"


def _short(value: object, most: int = 80) -> str:
    text = str(value)
    return text if len(text) <= most else f"{text[:most]}..."
