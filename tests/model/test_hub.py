"""Models by name: what cannot be found is refused at once, with one request at most."""

import socket
from pathlib import Path

import pytest

from lineside.errors import LinesideError
from lineside.model import hub
from lineside.model.parts import load_language_model, load_tower


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The requests to a hub that cannot be reached."""
    requests: list[str] = []

    class Session:
        def head(self, url: str, timeout: float) -> None:
            requests.append(url)
            raise OSError("no network")

    hub.hub_answers.cache_clear()
    monkeypatch.setattr(hub, "get_session", Session)
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: requests.append(str(address)))
    yield requests
    hub.hub_answers.cache_clear()


def test_without_a_network_the_hub_is_asked_once_and_the_reason_is_told(asked: list[str]) -> None:
    with pytest.raises(LinesideError, match=r"vision tower 'google/siglip-x': no such folder, .* cannot be reached"):
        load_tower("google/siglip-x")
    with pytest.raises(LinesideError, match=r"language model 'gpt-x': no such folder, .* cannot be reached"):
        load_language_model("gpt-x")
    assert asked == [hub.constants.ENDPOINT]


@pytest.mark.parametrize("name", ["/no/such/folder", "a/b/c", "./encoder", "encoder/", "two words", "~/m"])
def test_a_name_that_cannot_be_on_the_hub_needs_no_request(asked: list[str], name: str) -> None:
    with pytest.raises(LinesideError, match="neither a folder nor a hub id"):
        load_tower(name)
    assert not asked


def test_a_folder_is_read_without_a_request(asked: list[str], tmp_path: Path) -> None:
    with pytest.raises(LinesideError, match=r"config\.json"):
        load_tower(str(tmp_path))
    assert not asked
