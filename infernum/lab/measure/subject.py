"""What a measurement is made of: a bundle, given or compiled for the GPU at hand, and weights for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from infernum.bundle import Bundle, open_bundle
from infernum.errors import DeviceError, RequestError
from infernum.llm import Progress, check_bundle, check_checkpoint, check_claims, compile_for, open_checkpoint
from infernum.models.presets import ModelSource, resolve
from infernum.runtime.driver import describe
from infernum.runtime.layout import check_arch
from infernum.weights.source import TensorSource


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
    """The bundle in `folder`, which must be one of `model` where both are given, or `model` compiled now.

    Raises DeviceError where there is no GPU for `command`; RequestError, BundleError or CheckpointError when what is
    given does not fit together.
    """
    try:
        gpu = describe().gpus[0]
    except DeviceError as error:
        raise DeviceError(f"{command} measures a GPU: {error}; see `infernum doctor`") from error
    if folder is None and model is None:
        raise RequestError(f"{command} needs something to measure; give a BUNDLE, or a model by --model")
    if folder is not None and (fuse is not None or dtype != "auto"):
        raise RequestError(
            "--fuse and --dtype are for compiling; the bundle that is given is compiled already"
        )
    if model is None and load_format == "auto":
        raise RequestError("--load-format auto takes a model's weights; say which by --model, or use dummy")
    source: ModelSource | None = None if model is None else resolve(model)
    checkpoint = None if source is None else open_checkpoint(source, load_format)
    if folder is None:
        assert source is not None, "either a bundle or a model is given"
        if checkpoint is not None:
            check_claims(source, checkpoint)
        bundle = compile_for(source, "cuda", dtype, fuse is not False, (), progress)
    else:
        bundle = open_bundle(folder)
        check_arch(bundle, gpu.arch, gpu.name)
        if source is not None:
            check_bundle(bundle, source)
    if source is None:
        return Subject(bundle, None)
    if checkpoint is not None:
        check_checkpoint(bundle, checkpoint)
    return Subject(bundle, checkpoint, tuple(source.warnings))
