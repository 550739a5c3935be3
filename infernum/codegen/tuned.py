"""Tuned parameters of kernels by key, in the user's cache: one file for each GPU and model (`infernum tune`)."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from infernum import logs
from infernum.cache import cache_folder, locked, write_whole
from infernum.codegen.templates import FOLDERS
from infernum.errors import RequestError
from infernum.ir.kernel import Tuned
from infernum.resources import templates_folder

log = logging.getLogger(__name__)
cache_log = logs.channel("cache")


class _Kept(msgspec.Struct, forbid_unknown_fields=True):
    """The file. `gpu` and `model` are for people: they are part of its name already."""

    gpu: str
    model: str
    kernels: dict[str, Tuned]


def tuned_path(gpu: str, model: str) -> Path:
    """Where the choices for a GPU, by its name, and a model, by the hash of its config, are kept.

    They hold for the templates as they are now: when one of them changes, plugins' ones included, so does the path.
    """
    digest = hashlib.sha256(f"{gpu}\n{model}\n".encode())
    for folder in (templates_folder(), *FOLDERS):
        for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in (".j2", ".cuh")):
            digest.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    name = re.sub(r"[^A-Za-z0-9]+", "-", gpu).strip("-")
    return cache_folder() / "tuned" / f"{name}-{digest.hexdigest()[:16]}.json"


def load_tuned(gpu: str, model: str) -> dict[str, Tuned]:
    """Tuned parameters of a model on GPUs of this name; empty if there are none or the file is damaged."""
    path = tuned_path(gpu, model)
    try:
        kernels = msgspec.json.decode(path.read_bytes(), type=_Kept).kernels
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError) as error:
        log.warning("%s: cannot be read (%s); tune the model again", path, error)
        return {}
    cache_log.info("%s: %d tuned kernels", path, len(kernels))
    return kernels


def store_tuned(gpu: str, model: str, tuned: Mapping[str, Tuned]) -> Path:
    """Store tuned parameters, beside those of the model's other kernels. Raises RequestError."""
    path = tuned_path(gpu, model)
    with locked(path):
        kernels = dict(sorted({**load_tuned(gpu, model), **tuned}.items()))
        content = msgspec.json.format(msgspec.json.encode(_Kept(gpu, model, kernels)), indent=1) + b"\n"
        try:
            write_whole(path, content)
        except OSError as error:
            raise RequestError(
                f"{path}: cannot be written ({error.strerror}); set INFERNUM_CACHE to another folder"
            ) from error
    return path
