"""What GPU tests share: compiled bundles, checkpoints of the oracle's models, and a bench to run kernels on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
from oracle.checkpoints import write_checkpoint
from oracle.configs import case
from oracle.weights import random_weights, rounded

from gpu.recipes import Bundles, Recipe
from infernum.errors import DeviceError
from infernum.lab.verify.bench import Bench, open_bench
from infernum.machine import default_arch
from infernum.runtime.device import Device

os.environ.setdefault("CUDA_MODULE_LOADING", "EAGER")  # as several ranks need it, before CUDA is started


@pytest.fixture(scope="session", autouse=True)
def open_gpu() -> Iterator[None]:
    """Keeps the GPU's context from test to test: to make one takes long where many processes do so at once."""
    device = Device.open(0)
    yield
    with suppress(DeviceError):  # a kernel that fails takes the context with it
        device.close()


@pytest.fixture(scope="session")
def bundles(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundles]:
    """Bundles by recipe. Those that selected tests name by their parameter `recipe` are begun at once.

    They are kept in a folder of this session, so that nothing that was compiled before is tested. Several processes
    (`pytest -n`) share the folder. Each of them has to collect all tests: there, a bundle is compiled when a test asks
    for it.
    """
    folder, apart = tmp_path_factory.mktemp("gpu-bundles"), "PYTEST_XDIST_WORKER" in os.environ
    cache = (tmp_path_factory.getbasetemp().parent if apart else folder) / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INFERNUM_CACHE", str(cache))
        made = Bundles(folder, default_arch())
        named = [
            item.callspec.params.get("recipe") for item in request.session.items if hasattr(item, "callspec")
        ]
        if not apart:
            made.prepare(recipe for recipe in named if isinstance(recipe, Recipe))
        yield made
        made.close()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """The folder of an oracle case's checkpoint: as it is stored, or ("bfloat16") rounded to that as well."""

    @cache
    def write(name: str, dtype: str) -> Path:
        found, folder = case(name), tmp_path_factory.mktemp(f"{name}-{dtype}") / name
        weights = random_weights(found.config)
        if dtype == "bfloat16":
            return write_checkpoint(folder, found.config, rounded(weights, found.dtype), dtype="bfloat16")
        return write_checkpoint(folder, found.config, weights, dtype=found.dtype, shards=found.shards)

    return write


@pytest.fixture(scope="session")
def bench() -> Iterator[Bench]:
    """The first GPU, with a stream and cuBLASLt."""
    with open_bench() as made:
        yield made
        made.device.activate()
