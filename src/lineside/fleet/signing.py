"""Ed25519 signatures (RFC 8032) in the envelope of DSSE, which other tools can check too.

DSSE (github.com/secure-systems-lab/dsse) signs the type of a payload together with its bytes, and the bytes are read
only after the signature holds. Keys are PEM files, as OpenSSL writes them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BeforeValidator, Field, ValidationError

from lineside.errors import LinesideError
from lineside.files import flush, make_folder, write_atomic
from lineside.strict import Strict, Tuple

PAYLOAD = "application/vnd.lineside.state+json"
PUBLIC = ".pub"  # what the name of the public key's file ends with


def _from_base64(text: object) -> bytes:
    if not isinstance(text, str):
        raise ValueError("expected base64")
    return base64.b64decode(text, validate=True)


Base64 = Annotated[bytes, BeforeValidator(_from_base64)]


class _Signature(Strict):
    keyid: Annotated[str, Field(max_length=64)] = ""
    sig: Base64


class _Envelope(Strict):
    payloadType: str
    payload: Base64
    signatures: Annotated[Tuple[_Signature], Field(min_length=1, max_length=8)]


def make_keys(path: Path) -> Path:
    """Write a new private key, which only its owner may read, and its public key beside it; returns the latter's path.

    Raises LinesideError if one of the files is there already, or cannot be written.
    """
    public = path.with_name(path.name + PUBLIC)
    if found := next((one for one in (path, public) if one.exists()), None):
        raise LinesideError(f"{found} is there already: a key is never overwritten; give another name")
    key = Ed25519PrivateKey.generate()
    pem, raw = serialization.Encoding.PEM, serialization.NoEncryption()
    try:
        make_folder(path.parent)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(handle, "wb") as file:
                file.write(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, raw))
                file.flush()
                os.fsync(file.fileno())
            flush(path.parent)
            write_atomic(public, key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
        except BaseException:
            path.unlink()  # half a pair would be in the way of the next
            raise
    except OSError as error:
        raise LinesideError(f"{path}: cannot be written ({error.strerror or error})") from None
    return public


def read_private(path: Path) -> Ed25519PrivateKey:
    """Raises LinesideError for a file that is none, or that others may read. The message holds nothing of the file."""
    data = _read(path)
    if b"PUBLIC KEY" in data:
        raise LinesideError(f"{path}: a public key, which is for machines; home signs with the private one")
    if path.stat().st_mode & 0o077:
        raise LinesideError(f"{path}: others may read this private key: chmod 600 {path}")
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise LinesideError(f"{path}: no private key of Ed25519; `lineside registry keys FILE` makes one")
    return key


def read_public(path: Path) -> Ed25519PublicKey:
    """Raises LinesideError for a file that is none."""
    data = _read(path)
    if b"PRIVATE KEY" in data:
        raise LinesideError(f"{path}: a private key, which stays at home; a machine needs {path.name}{PUBLIC}")
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise LinesideError(f"{path}: no public key of Ed25519; `lineside registry keys FILE` writes FILE{PUBLIC}")
    return key


def key_id(key: Ed25519PublicKey) -> str:
    """What a public key is known by, for people: the first digits of its SHA-256."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def signed(payload: bytes, key: Ed25519PrivateKey) -> bytes:
    """The envelope (JSON) of a payload."""
    signature = {"keyid": key_id(key.public_key()), "sig": _base64(key.sign(_encoded(payload)))}
    return json.dumps({"payloadType": PAYLOAD, "payload": _base64(payload), "signatures": [signature]}).encode()


def opened(envelope: bytes, trusted: Sequence[Ed25519PublicKey]) -> bytes:
    """The payload, if one of the trusted keys has signed it. Raises LinesideError."""
    try:
        found = _Envelope.model_validate_json(envelope)
    except ValidationError:
        raise LinesideError("what home sends is no signed state") from None
    if found.payloadType != PAYLOAD:
        raise LinesideError(f"what home sends is signed as {found.payloadType[:80]!r}; expected {PAYLOAD!r}")
    for one in found.signatures:
        for key in trusted:
            try:
                key.verify(one.sig, _encoded(found.payload))
            except InvalidSignature:
                continue
            return found.payload
    by = ", ".join(one.keyid[:16] for one in found.signatures)
    raise LinesideError(
        f"the signature of what home sends does not hold: it says it is of the key {by}, and trusted are "
        f"{', '.join(map(key_id, trusted))}"
    )


def _encoded(payload: bytes) -> bytes:
    """What is signed: DSSE's pre-authentication encoding, so that no payload can pass as one of another type."""
    kind = PAYLOAD.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise LinesideError(f"{path}: {error.strerror or error}") from None
