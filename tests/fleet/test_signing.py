"""Keys and signatures: what holds, what is refused, and that a private key is told nobody."""

from __future__ import annotations

import base64
import errno
import json
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lineside.errors import LinesideError
from lineside.fleet import signing
from lineside.fleet.signing import make_keys, opened, read_private, read_public, signed


def test_a_private_key_is_for_its_owner_alone_and_never_overwritten(tmp_path: Path) -> None:
    before = os.umask(0)  # however loose the user's is
    try:
        public = make_keys(tmp_path / "deep" / "owner")
    finally:
        os.umask(before)
    private = tmp_path / "deep" / "owner"
    assert private.stat().st_mode & 0o777 == 0o600 and public.name == "owner.pub"
    kept = private.read_bytes()
    with pytest.raises(LinesideError, match="is there already: a key is never overwritten"):
        make_keys(private)
    assert private.read_bytes() == kept
    assert opened(signed(b"x", read_private(private)), [read_public(public)]) == b"x"
    private.chmod(0o640)
    with pytest.raises(LinesideError, match="others may read this private key: chmod 600"):
        read_private(private)


def test_a_full_disk_leaves_no_half_of_a_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("flush", "write_atomic"):
        with (
            monkeypatch.context() as patched,
            pytest.raises(LinesideError, match=r"owner: cannot be written \(No space"),
        ):
            patched.setattr(signing, name, full)
            make_keys(tmp_path / "owner")
        assert not list(tmp_path.iterdir())
    make_keys(tmp_path / "owner")


def test_files_that_are_no_keys_are_named_and_nothing_of_them_is_told(tmp_path: Path) -> None:
    make_keys(tmp_path / "owner")
    with pytest.raises(LinesideError, match=r"a private key, which stays at home; a machine needs owner\.pub"):
        read_public(tmp_path / "owner")
    with pytest.raises(LinesideError, match="a public key, which is for machines"):
        read_private(tmp_path / "owner.pub")
    (tmp_path / "other").write_text("secret-of-somebody")
    (tmp_path / "other").chmod(0o600)
    for read in (read_private, read_public):
        with pytest.raises(LinesideError, match=r"no (private|public) key of Ed25519") as told:
            read(tmp_path / "other")
        assert "secret" not in str(told.value)
        with pytest.raises(LinesideError, match="No such file"):
            read(tmp_path / "none")


def test_the_envelope_is_that_of_dsse() -> None:
    """Worked by hand from the specification: "DSSEv1" SP length SP type SP length SP payload."""
    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    found = json.loads(signed(b"hello", key))
    kind = found["payloadType"]
    assert base64.b64decode(found["payload"]) == b"hello"
    said = f"DSSEv1 {len(kind)} {kind} 5 hello".encode()
    key.public_key().verify(base64.b64decode(found["signatures"][0]["sig"]), said)


def test_what_nobody_trusted_has_signed_is_refused() -> None:
    owner, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    trusted = [owner.public_key()]
    whole = signed(b'{"serial": 1}', owner)
    assert opened(whole, [other.public_key(), *trusted])  # while keys change a machine trusts two
    with pytest.raises(LinesideError, match="the signature of what home sends does not hold"):
        opened(signed(b'{"serial": 1}', other), trusted)
    envelope = json.loads(whole)
    for change in (
        {"payload": base64.b64encode(b'{"serial": 2}').decode()},
        {"signatures": [{**envelope["signatures"][0], "sig": base64.b64encode(bytes(64)).decode()}]},
        {"signatures": [{**envelope["signatures"][0], "sig": ""}]},
        {"payloadType": "application/json"},
        {"signatures": []},
        {"signatures": envelope["signatures"] * 9},
    ):
        with pytest.raises(LinesideError, match=r"does not hold|no signed state|is signed as"):
            opened(json.dumps({**envelope, **change}).encode(), trusted)
    for bad in (b"", b"[]", b"{}", b"\xff", b"[" * 100_000, whole[:-1], b'{"payload": 1}'):
        with pytest.raises(LinesideError, match="no signed state"):
            opened(bad, trusted)
