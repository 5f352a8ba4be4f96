"""Encoders and language models by name: a folder, or an id on the model hub (Hugging Face).

The libraries that load them repeat the request for each missing file for half a minute if the hub cannot be reached.
Here one short request decides first whether to look on this machine only.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

from huggingface_hub import constants, get_session, snapshot_download

from lineside.errors import LinesideError

WAIT = 5.0  # seconds for the hub to answer
_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)  # owner/name; a few old ones have no owner


def only_local(name: str) -> bool:
    """Whether a model can only be found on this machine: it is a folder, or the hub cannot be reached.

    Raises LinesideError for a name that is neither a folder nor a possible hub id.
    """
    if Path(name).is_dir():
        return True
    if not _ID.fullmatch(name):
        raise LinesideError("neither a folder nor a hub id (owner/name)")
    return not hub_answers()


OWN_CODE = (
    "it brings Python code of its own (auto_map), which lineside never runs: take a checkpoint whose classes are those "
    "of transformers"
)


def folder_of(name: str) -> Path:
    """The folder of a whole model: `name` itself, or what was downloaded for a hub id. Raises the hub's errors."""
    local = only_local(name)
    kinds = ["*.json", "*.jinja", "*.txt", "*.model", "*.safetensors"]
    found = name if Path(name).is_dir() else snapshot_download(name, allow_patterns=kinds, local_files_only=local)
    return Path(found)


def why_not(name: str, error: Exception) -> str:
    """Why a model by this name cannot be loaded, in one line."""
    if isinstance(error, LinesideError):
        return str(error)
    if "trust_remote_code" in str(error):
        return OWN_CODE
    if not Path(name).is_dir() and not hub_answers():
        return (
            f"no such folder, and the model hub ({constants.ENDPOINT}) cannot be reached from here; nor is it among "
            "the models that were downloaded before"
        )
    # The first line of a message of transformers: a list of a hundred models may follow.
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return reason if Path(name).is_dir() else f"neither a folder nor a hub id with a config.json ({reason})"


@functools.cache
def hub_answers() -> bool:
    """Whether the hub can be reached; asked once in a process."""
    try:
        get_session().head(constants.ENDPOINT, timeout=WAIT)
    except Exception:  # whatever the reason, there is no answer
        return False
    return True
