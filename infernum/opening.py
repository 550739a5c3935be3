"""Opens a model: its weights, its bundle, compiled if necessary, and the executor that runs the bundle.

What is wrong with one of them, or does not fit the others, is an error before any slow work, where that is possible.
This module joins the compile side and the run side. A compiled bundle runs without the compile side.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from infernum import dtypes
from infernum.bundle import Bundle, not_rebuilt
from infernum.checkpoint import Checkpoint
from infernum.engine.request import shown
from infernum.errors import BundleError, CheckpointError, CompileError, DeviceError, RequestError
from infernum.machine import Device, native_arch, tuned_here
from infernum.manifest import Manifest
from infernum.model_folder.folder import find_weights
from infernum.model_folder.weights import FolderWeights
from infernum.models.config import config_hash
from infernum.models.presets import ModelSource
from infernum.recipes import tensors_of
from infernum.sampling_params import is_integer, is_number
from infernum.step import Executor
from infernum.weights.plan import plan_weights
from infernum.weights.values import choose

LOAD_FORMATS = ("auto", "dummy")


class Progress(Protocol):
    """Callback with the name of the work, the amount done, and the total amount."""

    def __call__(self, what: str, done: int, total: int, /) -> None: ...


def open_checkpoint(source: ModelSource, load_format: str) -> Checkpoint | None:
    """The weights of the model; None for random weights. Raises CheckpointError or RequestError."""
    if load_format not in LOAD_FORMATS:
        raise RequestError(f"unknown load format {load_format!r}; use one of {', '.join(LOAD_FORMATS)}")
    if load_format == "dummy":
        return None
    if source.folder is None:
        raise CheckpointError(
            f"{source.name}: is a preset of shapes, without weights; give a model folder, or --load-format dummy"
        )
    return Checkpoint.open(source.folder)


def compile_for(
    source: ModelSource,
    device: Device,
    dtype: str,
    fuse: bool,
    rules: Sequence[str],
    progress: Progress | None,
    *,
    deterministic: bool = False,
    tensor_parallel_size: int = 1,
) -> Bundle:
    """The bundle of the model for this device, from the cache or compiled now, with the parameters tuned on this GPU.

    NumPy runs the graphs as they were traced, deterministic: `fuse` has no effect, and `rules` raise CompileError.
    """
    if device == "cpu":
        from infernum.graph_bundle import cached_graphs

        if rules:
            raise CompileError(
                "--rules: no rule is applied in NumPy, which runs the graphs as they were traced;"
                " `infernum compile MODEL --rules …` and `infernum verify` show what a rule does"
            )
        return cached_graphs(source, dtype, tensor_parallel_size)
    check_ranks(tensor_parallel_size, device)
    from infernum.compiler import Options, cached_bundle

    arch = native_arch()
    tuned = tuned_here(config_hash(source.config), arch)
    options = Options(
        arch=arch, dtype=dtype, fuse=fuse, rules=tuple(rules), tuned=tuned, deterministic=deterministic
    )
    return cached_bundle(source, options, progress=progress)


def check_ranks(ranks: int, device: Device) -> None:
    """Raises DeviceError for several ranks on GPUs, where they have not been verified."""
    if device == "cuda" and ranks != 1:
        raise DeviceError(
            f"--tensor-parallel-size {ranks}: running on several GPUs has not been verified on hardware yet;"
            " --device cpu runs the ranks in NumPy"
        )


def check_bundle(bundle: Bundle, source: ModelSource, dtype: str = "auto") -> None:
    """Raises BundleError unless `bundle` was compiled for a model with this configuration, in this dtype."""
    model, folder = bundle.manifest.model, bundle.folder
    again = f"infernum compile {shlex.quote(str(source.folder or source.name))} -o DIR"
    if model.config_hash != config_hash(source.config):
        raise BundleError(
            f"{folder}: was compiled for {model.name}, whose config differs from that of {source.name};"
            f" name its own model, or run `{again}`"
        )
    if dtype != "auto" and dtypes.dtype(dtype).name != bundle.manifest.dtype:
        raise BundleError(
            f"{folder}: was compiled for {bundle.manifest.dtype}; run `{again} --dtype {dtype}`"
        )


def check_checkpoint(bundle: Bundle, checkpoint: Checkpoint) -> None:
    """Raises CheckpointError unless the checkpoint has exactly the tensors that the bundle reads."""
    check_tensors(bundle.manifest, checkpoint)


def check_tensors(manifest: Manifest, checkpoint: Checkpoint) -> None:
    """Raises CheckpointError unless the checkpoint has exactly the tensors that the manifest names."""
    plan = plan_weights(manifest)
    expected = {tensor.names[0]: tensor.shape for tensor in plan.chosen(checkpoint.names).tensors()}
    alternatives = {name for tensor in plan.tensors() for name in tensor.names}
    checkpoint.check(expected, ignored=alternatives)


def check_claims(source: ModelSource, checkpoint: Checkpoint) -> None:
    """Raises CheckpointError unless the checkpoint has the tensors that config.json implies.

    Reads headers only, so that the check can run before the model is compiled, and stops at the first missing layer.
    """
    from infernum.program import needed_weights

    for layer, recipes in needed_weights(source):
        tensors = [tensor for recipe in recipes for tensor in tensors_of(choose(recipe, checkpoint.names))]
        expected = {tensor.names[0]: tensor.shape for tensor in tensors}
        if layer is not None and not any(name in checkpoint.names for name in expected):
            raise CheckpointError(
                f"{checkpoint.weights.listing}: has no layer {layer}, although config.json says num_hidden_layers ="
                f" {source.config.num_hidden_layers}; correct it, or get the weights that belong to it"
            )
        checkpoint.check_has(expected)


def check_folder(source: ModelSource) -> None:
    """`check_claims` for the weights beside config.json, if they can be read. Raises CheckpointError."""
    weights = None if source.folder is None else find_weights(source.folder)
    if isinstance(weights, FolderWeights) and source.folder is not None:
        check_claims(source, Checkpoint(source.folder, weights))


def edit_warnings(bundle: Bundle, device: Device) -> list[str]:
    """Sentences that warn a user of kernels that were edited by hand and will not run as edited."""
    warnings: list[str] = []
    waiting = not_rebuilt(bundle)
    if waiting:
        warnings.append(
            f"{bundle.folder}: {', '.join(waiting)} differs from what was compiled, which is what runs; "
            f"run `infernum rebuild {bundle.folder}`"
        )
    if device == "cpu" and bundle.manifest.edits:
        warnings.append(
            f"{bundle.folder}: NumPy runs the graphs, not the kernels, of which some were edited by hand"
        )
    return warnings


def check_limits(
    context: int, *, gpu_memory_utilization: float, max_model_len: int | None, max_pages_total: int | None
) -> None:
    """Raises RequestError for a limit that is invalid for a model of this context."""
    if max_model_len is not None and not is_integer(max_model_len, 1, context):
        raise RequestError(
            f"max_model_len is {shown(max_model_len)}; it must be an integer from 1 to {context}, the model's context"
        )
    if gpu_memory_utilization == 0 or not is_number(gpu_memory_utilization, 0, 1):
        raise RequestError(
            f"gpu_memory_utilization is {shown(gpu_memory_utilization)}; it must be a number above 0, at most 1"
        )
    if max_pages_total is not None and not is_integer(max_pages_total, 1):
        raise RequestError(
            f"max_pages_total is {shown(max_pages_total)}; it must be an integer of at least 1"
        )


def load_executor(
    bundle: Bundle,
    checkpoint: Checkpoint | None,
    device: Device,
    *,
    gpu_memory_utilization: float = 0.9,
    max_model_len: int | None = None,
    max_pages_total: int | None = None,
    seed: int = 0,
    warm_graphs: bool = False,
    progress: Progress | None = None,
) -> Executor:
    """Load a bundle and its weights (None: random). Raises CheckpointError, BundleError or DeviceError.

    `warm_graphs`: capture the CUDA graphs of decodes now, rather than at the second step of each size.
    """
    check_ranks(bundle.manifest.ranks, device)
    check_limits(
        bundle.manifest.model.context,
        gpu_memory_utilization=gpu_memory_utilization,
        max_model_len=max_model_len,
        max_pages_total=max_pages_total,
    )
    if checkpoint is not None:
        check_checkpoint(bundle, checkpoint)
    loading: Callable[[int, int], None] | None = partial(progress, "loading weights") if progress else None
    if device == "cuda":
        from infernum.runtime.executor import CudaExecutor

        executor = CudaExecutor.open(
            bundle,
            checkpoint,
            gpu_memory_utilization=gpu_memory_utilization,
            max_model_len=max_model_len,
            max_pages_total=max_pages_total,
            seed=seed,
            progress=loading,
        )
        if warm_graphs:
            executor.warm_graphs(partial(progress, "capturing CUDA graphs") if progress else None)
        return executor
    from infernum.cpu.executor import CpuExecutor

    return CpuExecutor.open(
        bundle,
        checkpoint,
        max_model_len=max_model_len,
        max_pages_total=max_pages_total,
        seed=seed,
        progress=loading,
    )
