"""Changes to an input that a reader is likely to stumble over. Each takes bytes and a seeded generator."""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

NUMBERS = [0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**9, 10**30, 1e308, -0.0, 0.1, 1e-320]
TEXTS = [
    "", " ", "\0", "\n", "\x1b[2J", "\u202e", "\ud800", "é" * 99, "x" * 5000, "9" * 5000, "1e999", "NaN", "-Infinity",
    "../outside/canary", "/etc/hostname", "..", ".", "~", "\\\\host\\share", "C:\\x", "file:///etc/hostname",
    "a/../../b", "/proc/self/environ", "$HF_TOKEN", "${HF_TOKEN}", "HF_TOKEN",
    "{item}", "{0.__class__}", "%s%n", "<script>", "</think>", "<image>", "null", "none", "yes", "2026-02-30", "24:60",
    "(a+)+$", "[" * 50, "=1+1", "!!python/object/apply:os.system [x]", "evil.Evil",
]  # fmt: skip
WRONG: list[Any] = [None, True, False, [], {}, [[]], {"": None}, [None], *NUMBERS, *TEXTS]
_TOKEN = re.compile(rb'"(?:[^"\\\n]|\\.)*"|[A-Za-z_]+|-?[0-9][0-9.eE+-]*|[^\sA-Za-z0-9]')
_LITERALS = [
    b"null", b"true", b"NaN", b"1e999", b"-1", b"0", b"9" * 400, b'""', b'"\\ud800"', b"[]", b"{}", b"[" * 300,
    b"{" * 300, b'{"a":' * 2000, b"&a [*a]", b"*a", b"!!binary x", b"? ", b"- " * 200, b"\xff", b"\0", b"\xef\xbb\xbf",
    b"\xff\xfe", b",", b'"', b"'", b"\r", b"#", b": ", b"|", b"\xed\xa0\x80", b"\xe2\x80\xa8",
]  # fmt: skip


def mutated(data: bytes, chance: Random, most: int = 1 << 20) -> bytes:
    """One to four changes, of which each fits what the bytes seem to be."""
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        data = chance.choice(_fitting(data))(data, chance)[:most]
    return data


def _fitting(data: bytes) -> list[Callable[[bytes, Random], bytes]]:
    found = [in_bytes]
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        found += [in_png] * 3
    elif len(data) > 9 and data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data) - 8:
        found += [in_safetensors] * 3
    elif b"\0" not in data[:512]:
        found += [in_tokens] * 2
        if data[:1] in (b"{", b"["):
            found += [in_json] * 3
    return found


def in_bytes(data: bytes, chance: Random) -> bytes:
    """Flip, cut, repeat or overwrite a few bytes anywhere."""
    start = chance.randrange(len(data) + 1)
    end = min(len(data), start + chance.choice([1, 2, 4, 8, 64, 1024]))
    number = int(chance.choice([0, 1, 0x7F, 0xFF, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1]))
    packed = struct.pack(chance.choice("<>") + "Q", number)
    packed = packed[: chance.choice([1, 2, 4, 8])]
    kind = chance.randrange(7)
    if kind == 0 and start < len(data):
        return data[:start] + bytes([data[start] ^ 1 << chance.randrange(8)]) + data[start + 1 :]
    if kind == 1:
        return data[:start] + data[end:]
    if kind == 2:
        return data[:start] + data[start:end] * chance.choice([2, 3, 50]) + data[end:]
    if kind == 3:
        return data[:start] + packed + data[start + len(packed) :]
    if kind == 4:
        return data[:start] + packed + data[start:]
    if kind == 5:
        return data[:start]
    other = chance.randrange(len(data) + 1)
    return data[:start] + data[other : other + end - start] + data[end:]


def in_tokens(data: bytes, chance: Random) -> bytes:
    """Replace, drop or repeat a word, number, text or sign."""
    tokens = [match.span() for match in _TOKEN.finditer(data)]
    if not tokens:
        return in_bytes(data, chance)
    start, end = chance.choice(tokens)
    other = chance.choice(tokens)
    new = chance.choice(
        [
            chance.choice(_LITERALS), str(chance.choice(NUMBERS)).encode(), data[slice(*other)], b"",
            data[start:end] * 2,
            chance.choice(TEXTS).encode("utf-8", "surrogatepass"),
            json.dumps(chance.choice(TEXTS)).encode(),
        ]
    )  # fmt: skip
    if chance.random() < 0.1:  # a whole line
        lines = data.split(b"\n")
        lines[chance.randrange(len(lines))] = chance.choice(lines)
        return b"\n".join(lines)
    return data[:start] + new + data[end:]


def in_json(data: bytes, chance: Random) -> bytes:
    """Replace, move, drop or rename a value anywhere in a JSON text, or in a line of it."""
    lines = data.split(b"\n")
    whole = chance.random() < 0.7 or len(lines) < 2
    at = 0 if whole else chance.randrange(len(lines))
    try:
        value = json.loads(data if whole else lines[at])
    except (ValueError, RecursionError):
        return in_tokens(data, chance)
    places: list[tuple[Any, Any]] = []
    nodes = [value]
    while nodes:
        here = nodes.pop()
        inner = here.items() if isinstance(here, dict) else enumerate(here) if isinstance(here, list) else ()
        for key, below in list(inner):
            places.append((here, key))
            nodes.append(below)
    if not places:
        value = chance.choice(WRONG)
    else:
        here, key = chance.choice(places)
        there, name = chance.choice(places)
        kind = chance.randrange(6)
        if kind == 0:
            del here[key]
        elif kind == 1:
            here[key] = there[name]
        elif kind == 2 and isinstance(here, dict):
            here[chance.choice([name, *TEXTS])] = here.pop(key)
        elif kind == 3 and isinstance(here, dict):
            here[chance.choice(TEXTS)] = chance.choice(WRONG)
        else:
            here[key] = chance.choice(WRONG)
    try:
        text = json.dumps(value, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError, TypeError):  # it holds itself now, or keys of several kinds
        return data
    if whole:
        return text
    lines[at] = text
    return b"\n".join(lines)


def in_safetensors(data: bytes, chance: Random) -> bytes:
    """Change the header of a safetensors file, its length kept right."""
    size = int.from_bytes(data[:8], "little")
    header = (in_json if chance.random() < 0.7 else in_tokens)(data[8 : 8 + size], chance)
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


def in_png(data: bytes, chance: Random) -> bytes:
    """Change, repeat, drop or swap a chunk of a PNG, its checksum kept right."""
    chunks, at = [], 8
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    if not chunks:
        return in_bytes(data, chance)
    place = chance.randrange(len(chunks))
    kind, body = chunks[place]
    action = chance.randrange(5)
    if action == 0:
        chunks[place] = (chance.choice([b"iCCP", b"eXIf", b"zTXt", b"tRNS", b"PLTE", b"acTL", b"IDAT"]), body)
    elif action == 1:
        chunks.insert(place, (kind, body))
    elif action == 2:
        del chunks[place]
    else:
        chunks[place] = (kind, in_bytes(body, chance))
    made = [struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks]
    return data[:8] + b"".join(made)
