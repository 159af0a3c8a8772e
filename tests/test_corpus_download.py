"""Downloads from a server that truncates, stalls, lies and fails: the right bytes, or a clear error in time."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from corpus.download import Downloader, Meter, Patience
from corpus.errors import CorpusError

from tests.faulty_server import (
    Served,
    at_most,
    claiming,
    corrupt,
    dripping,
    rest_from_elsewhere,
    rest_of_another_file,
    server,
    stalled,
    status,
    truncated,
    whole_whatever_was_asked,
)

DATA = bytes(range(256)) * 2000
SHA256 = hashlib.sha256(DATA).hexdigest()
OTHER = DATA[::-1]
PATIENCE = Patience(
    connect_seconds=2,
    read_seconds=0.4,
    slowest=2000,
    retries=3,
    progress_bytes=1 << 30,
    backoff_seconds=0,
    retry_after_seconds=1,
)


class Count(Meter):
    def __init__(self) -> None:
        self.bytes = 0
        self.sizes: list[int] = []

    def sized(self, size: int) -> None:
        self.sizes.append(size)

    def received(self, amount: int) -> None:
        self.bytes += amount


@pytest.fixture
def hub() -> Iterator[Served]:
    with server(Served(DATA)) as served:
        yield served


def fine(_: Path) -> None:
    """Any content will do."""


def fetch(
    hub: Served,
    folder: Path,
    *,
    patience: Patience = PATIENCE,
    token: str | None = None,
    token_host: str = "",
    meter: Meter | None = None,
) -> str:
    downloader = Downloader(token=token, token_host=token_host, patience=patience)
    try:
        return downloader.fetch(
            f"{hub.url}/a/file.bin", folder / "file.bin", check=fine, meter=meter or Meter()
        )
    finally:
        downloader.close()


def assert_whole(folder: Path, data: bytes = DATA) -> None:
    assert (folder / "file.bin").read_bytes() == data
    assert sorted(path.name for path in folder.iterdir()) == ["file.bin", "file.bin.json"]


def test_a_file_arrives_and_its_hash_is_told(hub: Served, tmp_path: Path) -> None:
    meter = Count()
    assert fetch(hub, tmp_path, meter=meter) == SHA256
    assert_whole(tmp_path)
    assert (meter.bytes, meter.sizes) == (len(DATA), [len(DATA)])


@pytest.mark.parametrize("fault", [truncated(100_000), stalled(100_000), claiming(-400_000 - 12_000)])
def test_what_was_cut_is_resumed_on_the_condition_that_it_is_the_same_file(
    hub: Served, tmp_path: Path, fault: object
) -> None:
    hub.headers = {"X-Linked-Size": str(len(DATA))}
    hub.faults = [fault]  # type: ignore[list-item]
    meter = Count()
    with at_most(5):
        fetch(hub, tmp_path, meter=meter)
    assert_whole(tmp_path)
    assert meter.bytes == len(DATA)
    assert (hub.requests[1]["range"], hub.requests[1]["if-range"]) == ("bytes=100000-", '"one"')


def test_a_server_that_drips_has_stalled(hub: Served, tmp_path: Path) -> None:
    hub.faults = [dripping]
    with at_most(5):
        fetch(hub, tmp_path)
    assert_whole(tmp_path)
    assert 0 < int(hub.requests[1]["range"].removeprefix("bytes=").removesuffix("-")) < 100


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_server_that_fails_is_asked_again(hub: Served, tmp_path: Path, code: int) -> None:
    hub.faults = [status(code), status(code)]
    fetch(hub, tmp_path)
    assert_whole(tmp_path)
    assert len(hub.requests) == 3


def test_the_wait_that_a_server_asks_for_is_kept_up_to_a_limit(hub: Served, tmp_path: Path) -> None:
    import time

    hub.faults = [status(429, Retry_After="3600")]
    began = time.monotonic()
    fetch(hub, tmp_path)
    assert 1 <= time.monotonic() - began < 4


@pytest.mark.parametrize(
    "fault", [truncated(0), stalled(0), claiming(5), status(502), status(429, Retry_After="0")]
)
def test_a_server_that_never_does_better_is_given_up_in_time(
    hub: Served, tmp_path: Path, fault: object
) -> None:
    hub.faults = [fault] * 100  # type: ignore[list-item]
    with at_most(8), pytest.raises(CorpusError, match=r"file\.bin from 127\.0\.0\.1"):
        fetch(hub, tmp_path)
    assert not (tmp_path / "file.bin").exists()
    assert len(hub.requests) <= 12


def test_progress_earns_new_chances(hub: Served, tmp_path: Path) -> None:
    hub.faults = [truncated(50_000)] * 9
    fetch(hub, tmp_path, patience=Patience(retries=1, backoff_seconds=0, progress_bytes=10_000))
    assert_whole(tmp_path)


def test_no_server_at_all_is_an_error_in_time(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = Served(url=f"http://127.0.0.1:{free.getsockname()[1]}")
    with at_most(5), pytest.raises(CorpusError, match=r"after 4 attempts: .*refused"):
        fetch(nobody, tmp_path)


def test_what_is_wrong_with_tls_is_said_at_once_with_the_remedy(hub: Served, tmp_path: Path) -> None:
    hub.url = hub.url.replace("http:", "https:")
    with at_most(2), pytest.raises(CorpusError, match=r"over TLS: .*set REQUESTS_CA_BUNDLE"):
        fetch(hub, tmp_path, patience=Patience())


@pytest.mark.parametrize(
    ("code", "advice"), [(401, "HF_TOKEN"), (403, "terms"), (404, "revision"), (410, "mirror")]
)
def test_a_refusal_is_final_and_says_what_to_do(hub: Served, tmp_path: Path, code: int, advice: str) -> None:
    hub.faults = [status(code)]
    with pytest.raises(CorpusError, match=rf"the server answered {code}; .*{advice}"):
        fetch(hub, tmp_path)
    assert len(hub.requests) == 1


def test_a_file_with_the_wrong_hash_is_fetched_anew(hub: Served, tmp_path: Path) -> None:
    hub.headers, hub.faults = {"X-Linked-Etag": f'"{SHA256}"'}, [corrupt]
    meter = Count()
    assert fetch(hub, tmp_path, meter=meter) == SHA256
    assert_whole(tmp_path)
    assert meter.bytes == len(DATA)


def test_a_file_that_stays_wrong_is_an_error_and_is_not_kept(hub: Served, tmp_path: Path) -> None:
    hub.etag, hub.faults = f'"{SHA256}"', [corrupt] * 9
    with pytest.raises(CorpusError, match="fetched 3 times and is wrong each time: its SHA-256 is"):
        fetch(hub, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_body_shorter_than_the_hub_says_is_not_accepted(hub: Served, tmp_path: Path) -> None:
    """The store's Content-Length is too small each time; the hub's size and hash are right."""
    hub.headers = {"X-Linked-Etag": f'"{SHA256}"'}
    hub.faults = [claiming(-7)] * 9
    with pytest.raises(CorpusError, match="wrong each time"):
        fetch(hub, tmp_path)


def test_a_file_that_changed_between_two_attempts_is_fetched_from_the_start(
    hub: Served, tmp_path: Path
) -> None:
    def change(handler: object) -> None:
        truncated(100_000)(handler)  # type: ignore[arg-type]
        hub.data, hub.etag = OTHER, '"two"'

    hub.faults = [change]
    fetch(hub, tmp_path)
    assert_whole(tmp_path, OTHER)
    assert hub.requests[1]["if-range"] == '"one"'


@pytest.mark.parametrize(
    "fault", [whole_whatever_was_asked, rest_of_another_file, rest_from_elsewhere, status(416)]
)
def test_an_answer_that_is_not_the_rest_is_not_appended(hub: Served, tmp_path: Path, fault: object) -> None:
    hub.faults = [truncated(100_000), fault]  # type: ignore[list-item]
    fetch(hub, tmp_path)
    assert_whole(tmp_path)


def test_without_a_name_for_the_content_nothing_is_resumed(hub: Served, tmp_path: Path) -> None:
    hub.etag, hub.faults = None, [truncated(100_000)]
    fetch(hub, tmp_path)
    assert_whole(tmp_path)
    assert "range" not in hub.requests[1]


def test_what_an_ended_process_left_is_resumed(hub: Served, tmp_path: Path) -> None:
    hub.faults = [truncated(100_000)] * 9
    with pytest.raises(CorpusError):
        fetch(hub, tmp_path, patience=Patience(retries=0, backoff_seconds=0))
    hub.faults.clear()
    meter = Count()
    fetch(hub, tmp_path, meter=meter)
    assert_whole(tmp_path)
    assert hub.requests[-1]["range"] == "bytes=100000-"
    assert meter.bytes == len(DATA)


def test_what_is_there_is_not_fetched_again(hub: Served, tmp_path: Path) -> None:
    assert fetch(hub, tmp_path) == fetch(hub, tmp_path) == SHA256
    assert len(hub.requests) == 1


@pytest.mark.parametrize("seal", ["{}", "not json", json.dumps({"sha256": "0" * 64})])
def test_what_was_damaged_in_the_cache_is_fetched_again(hub: Served, tmp_path: Path, seal: str) -> None:
    fetch(hub, tmp_path)
    (tmp_path / "file.bin.json").write_text(seal)
    assert fetch(hub, tmp_path) == SHA256
    assert len(hub.requests) == 2


def test_the_token_goes_to_the_hub_and_not_where_the_hub_points(hub: Served, tmp_path: Path) -> None:
    with server(Served(DATA)) as store:
        hub.faults = [status(302, Location=f"{store.url}/signed?key=abc", X_Linked_Etag=f'"{SHA256}"')]
        fetch(hub, tmp_path, token="hf_secret", token_host=urlsplit(hub.url).netloc)
        assert hub.requests[0]["authorization"] == "Bearer hf_secret"
        assert [request for request in store.requests if "hf_secret" in str(request)] == []
        assert len(store.requests) == 1
    assert_whole(tmp_path)


def test_the_token_does_not_go_to_a_mirror(hub: Served, tmp_path: Path) -> None:
    fetch(hub, tmp_path, token="hf_secret", token_host="huggingface.co")
    assert "authorization" not in hub.requests[0]


def test_an_error_does_not_show_a_signed_address(hub: Served, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}/x?signature=abc"
    hub.faults = [status(302, Location=closed)] * 9
    with pytest.raises(CorpusError) as caught:
        fetch(hub, tmp_path)
    assert "signature" not in str(caught.value)
