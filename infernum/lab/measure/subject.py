"""The subject of a measurement: a GPU, a bundle, opened or compiled for that GPU, and weights for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from infernum.bundle import Bundle, open_bundle
from infernum.checkpoint import Checkpoint
from infernum.errors import DeviceError, RequestError
from infernum.machine import Device
from infernum.models.presets import ModelSource, resolve
from infernum.opening import (
    Progress,
    check_bundle,
    check_checkpoint,
    check_claims,
    compile_for,
    open_checkpoint,
)
from infernum.runtime.driver import GpuFacts, describe
from infernum.runtime.layout import check_arch
from infernum.weights.source import TensorSource


def require_gpu(command: str) -> GpuFacts:
    """The GPU at hand. Raises DeviceError, which names the command, where there is none."""
    try:
        return describe().gpus[0]
    except DeviceError as error:
        raise DeviceError(f"{command} measures a GPU: {error}; see `infernum doctor`") from error


@dataclass(frozen=True)
class ModelRequest:
    """A model that is compiled for the GPU at hand, or traced for NumPy, and measured there.

    load_format  "auto": the model's weights; "dummy": random ones
    seed         of random weights, of prompts, and of sampling
    """

    source: ModelSource
    load_format: str = "dummy"
    dtype: str = "auto"
    fuse: bool = True
    rules: tuple[str, ...] = ()
    seed: int = 0
    device: Device = "cuda"
    deterministic: bool = False

    def checkpoint(self) -> Checkpoint | None:
        """The weights, which have the tensors that config.json claims; None: random ones. Raises CheckpointError."""
        checkpoint = open_checkpoint(self.source, self.load_format)
        if checkpoint is not None:
            check_claims(self.source, checkpoint)
        return checkpoint

    def bundle(self, progress: Progress | None) -> Bundle:
        """The bundle, from the cache or compiled now. Raises CompileError."""
        return compile_for(
            self.source,
            self.device,
            self.dtype,
            self.fuse,
            self.rules,
            progress,
            deterministic=self.deterministic,
        )


@dataclass(frozen=True)
class Subject:
    """A bundle for the GPU at hand, and its weights (None: random ones). `warnings` are for the user."""

    bundle: Bundle
    checkpoint: TensorSource | None
    warnings: tuple[str, ...] = ()


def open_subject(
    command: str,
    folder: Path | None,
    model: str | None,
    *,
    load_format: str,
    fuse: bool | None = None,
    dtype: str = "auto",
    progress: Progress | None = None,
) -> Subject:
    """The bundle in `folder`, which must have been compiled from `model`, if any; without a folder, `model` compiled.

    Raises DeviceError where there is no GPU for `command`; RequestError, BundleError or CheckpointError when bundle,
    model and weights do not fit together.
    """
    gpu = require_gpu(command)
    if folder is None and model is None:
        raise RequestError(f"{command} needs something to measure; give a BUNDLE, or a model by --model")
    if folder is not None and (fuse is not None or dtype != "auto"):
        raise RequestError(
            "--fuse and --dtype are for compiling; the bundle that is given is compiled already"
        )
    if model is None and load_format == "auto":
        raise RequestError("--load-format auto takes a model's weights; say which by --model, or use dummy")
    source = None if model is None else resolve(model)
    if folder is None:
        assert source is not None, "either a bundle or a model is given"
        request = ModelRequest(source, load_format, dtype, fuse is not False)
        checkpoint, bundle = request.checkpoint(), request.bundle(progress)
    else:
        checkpoint = None if source is None else open_checkpoint(source, load_format)
        bundle = open_bundle(folder)
        check_arch(bundle, gpu.arch, gpu.name)
        if source is not None:
            check_bundle(bundle, source)
    if checkpoint is not None:
        check_checkpoint(bundle, checkpoint)
    return Subject(bundle, checkpoint, () if source is None else tuple(source.warnings))
