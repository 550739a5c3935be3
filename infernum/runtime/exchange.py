"""The memory by which the kernels of several ranks exchange words: inboxes, and a record of each rank's."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress

import numpy as np

from infernum import dims
from infernum.errors import BundleError, DeviceError
from infernum.manifest import Launch, Manifest
from infernum.runtime.device import Device
from infernum.runtime.layout import block_variant, largest_symbols, step_limits

MOST_RANKS = 8
"""Inboxes that a record has room for."""

_RECORD = np.dtype(
    [("begun", "<u4", 2), ("rank", "<u4"), ("capacity", "<u4"), ("inboxes", "<u8", MOST_RANKS)]
)
"""`Exchange` of templates/include/exchange.cuh."""

_WORD_BYTES = 8
_TURNS = 2


def words_exchanged(manifest: Manifest) -> int:
    """Most words that a kernel of a rank sends to another rank in one step, an even number."""
    limits = step_limits(manifest, None)
    most = 0
    for variant in manifest.variants:
        symbols = largest_symbols(variant, limits)
        blocks = [block_variant(manifest, stage.block, variant.name) for stage in manifest.program]
        steps = [step for block in blocks for step in block.steps if isinstance(step, Launch)]
        most = max(most, *(dims.evaluate(step.exchanged, symbols) for step in steps))
    return most + most % 2


class Exchange:
    """Inboxes and records of all ranks, each on the GPU of its rank. `records` has the addresses of the records."""

    def __init__(self, devices: Sequence[Device], words: int) -> None:
        """Let each GPU write the memory of all others, and allocate inboxes of `words` words.

        Several ranks may have one GPU. Raises DeviceError where a GPU cannot reach another, or memory is short.
        """
        assert 1 <= len(devices) <= MOST_RANKS, f"{len(devices)} ranks"
        self.records: list[int] = []
        self._stack = ExitStack()
        try:
            for device in devices:
                self._stack.callback(device.retained().close)  # who closes `devices` may do so first
            for device in devices:
                for other in devices:
                    device.reach(other)
            nbytes = _TURNS * len(devices) * words * _WORD_BYTES
            inboxes = [self._zeroed(device, nbytes, "what ranks exchange") for device in devices]
            for rank, device in enumerate(devices):
                self.records.append(self._zeroed(device, _RECORD.itemsize, "the record of an exchange"))
                record = np.zeros(1, _RECORD)
                record["rank"], record["capacity"] = rank, words
                record["inboxes"][0, : len(inboxes)] = inboxes
                device.write(self.records[-1], record)
        except BaseException:
            with suppress(DeviceError):  # the first error is the one to report
                self.close()
            raise

    def close(self) -> None:
        """Free the memory. No kernel of any rank may be running."""
        self._stack.close()

    def _zeroed(self, device: Device, nbytes: int, what: str) -> int:
        device.activate()
        memory = device.alloc(nbytes, what)
        self._stack.callback(memory.free)
        self._stack.callback(device.activate)
        device.write(memory.address, np.zeros(nbytes, np.uint8))
        return memory.address


def check_ranks(manifest: Manifest, ranks: int, where: str) -> None:
    """Raises BundleError unless the bundle was compiled for so many GPUs."""
    if manifest.ranks != ranks:
        raise BundleError(
            f"{where}: was compiled for --tensor-parallel-size {manifest.ranks}, and runs on {ranks} GPU(s) here;"
            f" run `infernum compile {manifest.model.name} --tensor-parallel-size {ranks}`"
        )
