"""A connection to the engine, found exactly as `make engine` finds it; its errors become ours."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from runner.errors import EngineError
from runner.setup.engine import require

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import docker

TIMEOUT_SECONDS = 60


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Whatever goes wrong between us and the engine leaves as `EngineError`."""
    import docker.errors
    import requests

    try:
        yield
    except docker.errors.APIError as error:
        message = f"{doing}: {error.explanation or error}"
        raise EngineError(message) from error
    except docker.errors.DockerException as error:
        message = f"{doing}: {error}"
        raise EngineError(message) from error
    except (requests.RequestException, OSError) as error:
        message = f"{doing}: lost the engine ({error})"
        raise EngineError(message) from error


def connect(
    environment: Mapping[str, str] | None = None, *, timeout: int = TIMEOUT_SECONDS
) -> docker.DockerClient:
    """A client of the engine that DOCKER_HOST, the docker context or the default socket names.

    `timeout` bounds every wait for the engine.  Raises `EngineError` that tells apart: not installed, not
    running, permission denied, too old.
    """
    endpoint, _ = require(os.environ if environment is None else environment)
    import docker
    import docker.tls

    tls: docker.tls.TLSConfig | bool = False
    if endpoint.tls is not None:
        tls = docker.tls.TLSConfig(
            client_cert=(str(endpoint.tls / "cert.pem"), str(endpoint.tls / "key.pem")),
            ca_cert=str(endpoint.tls / "ca.pem"),
            verify=True,
        )
    with translated(f"connecting to {endpoint.url}"):
        return docker.DockerClient(base_url=endpoint.url, version="auto", timeout=timeout, tls=tls)
