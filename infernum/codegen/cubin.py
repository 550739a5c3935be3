"""A compiled `.cu` file: its cubin, the resources of each of its kernels, and the folder that stores both."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from infernum.cache import write_whole

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KernelResources:
    """Resources of one kernel, as ptxas reports them.

    `registers` and `stack_bytes` are per thread, `static_shared_bytes` per thread block. `spill_bytes` are
    the bytes of stores and loads of registers that did not fit, in the kernel and in the functions it calls;
    0 is expected.
    """

    registers: int
    stack_bytes: int
    spill_bytes: int
    static_shared_bytes: int


@dataclass(frozen=True)
class Cubin:
    """Machine code for one architecture, and the resources of each of its kernels by name."""

    data: bytes
    kernels: Mapping[str, KernelResources]


_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_STACK = re.compile(r"(\d+) bytes cumulative stack size")
_SHARED = re.compile(r"(\d+)(?:\+\d+)? bytes smem")


def parse_resources(log_text: str) -> dict[str, KernelResources]:
    """The resources of every kernel in a log of `--ptxas-options=-v`, by name.

    What ptxas says of functions that were not inlined follows the kernel that calls them and counts as
    its own.
    """
    resources: dict[str, KernelResources] = {}
    _, *sections = _ENTRY.split(log_text)
    for name, section in zip(sections[::2], sections[1::2], strict=True):
        frames = [tuple(map(int, frame.groups())) for frame in _FRAME.finditer(section)]
        cumulative = _STACK.search(section)
        resources[name] = KernelResources(
            registers=_first(_USED, section),
            stack_bytes=int(cumulative[1])
            if cumulative
            else max((frame for frame, _, _ in frames), default=0),
            spill_bytes=sum(stores + loads for _, stores, loads in frames),
            static_shared_bytes=_first(_SHARED, section),
        )
    return dict(sorted(resources.items()))


def _first(pattern: re.Pattern[str], text: str) -> int:
    match = pattern.search(text)
    return int(match[1]) if match else 0


def load(folder: Path, key: str) -> Cubin | None:
    """The cubin kept under `key`; None when there is none or its bytes are not those that were stored."""
    try:
        digest, _, body = (folder / f"{key}.cubin").read_bytes().partition(b"\n")
    except OSError:
        return None
    if digest.decode(errors="replace") != hashlib.sha256(body).hexdigest():
        log.warning("%s/%s.cubin is damaged; compiling again", folder, key)
        return None
    kernels, _, data = body.partition(b"\n")
    return Cubin(data, {name: KernelResources(**fields) for name, fields in json.loads(kernels).items()})


def store(folder: Path, key: str, cubin: Cubin) -> None:
    """Keep `cubin` under `key`. A folder that cannot be written is a warning: the cache only saves time.

    An entry is the SHA-256 of the rest, a line of JSON with the kernels' resources, and the cubin. It appears
    whole or not at all, whoever else compiles the same file.
    """
    kernels = json.dumps(
        {name: asdict(resources) for name, resources in cubin.kernels.items()}, sort_keys=True
    )
    body = kernels.encode() + b"\n" + cubin.data
    try:
        write_whole(folder / f"{key}.cubin", hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    except OSError as error:
        _warn_unwritable(folder, error.strerror)


@lru_cache
def _warn_unwritable(folder: Path, reason: str | None) -> None:
    log.warning(
        "%s: compiled kernels cannot be kept there (%s); set INFERNUM_CACHE to another folder", folder, reason
    )
