"""A connection to the engine, found exactly as `make engine` finds it; its errors become ours."""

from __future__ import annotations

import os
from collections.abc import Mapping

import docker
import docker.tls

from runner.sandbox.translate import engine_errors
from runner.setup.engine import require

TIMEOUT_SECONDS = 60
UNIX = "http+docker://localhost"
"""What the client calls every unix socket."""


def connect(
    environment: Mapping[str, str] | None = None, *, timeout: int = TIMEOUT_SECONDS
) -> docker.DockerClient:
    """A client of the engine that DOCKER_HOST, the docker context or the default socket names.

    `timeout` bounds every wait for the engine.  Raises `EngineError` that tells apart: not installed, not
    running, permission denied, too old.
    """
    endpoint, _ = require(os.environ if environment is None else environment)
    tls: docker.tls.TLSConfig | bool = False
    if endpoint.tls is not None:
        tls = docker.tls.TLSConfig(
            client_cert=(str(endpoint.tls / "cert.pem"), str(endpoint.tls / "key.pem")),
            ca_cert=str(endpoint.tls / "ca.pem"),
            verify=True,
        )
    with engine_errors():
        return docker.DockerClient(base_url=endpoint.url, version="auto", timeout=timeout, tls=tls)


def is_local(client: docker.DockerClient) -> bool:
    """Whether the engine is asked through a unix socket, so that its files and programs are this machine's.

    A socket that ssh forwards looks the same.
    """
    return bool(client.api.base_url == UNIX)
