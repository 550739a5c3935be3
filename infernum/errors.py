"""The ways a user's request can fail; each prints as one line saying what, where and what to do."""

from __future__ import annotations


class InfernumError(Exception):
    """Base of every mistake a user can mend. The CLI prints its message on one line and exits with code 2."""


class ShapeError(InfernumError):
    """Shapes that do not fit, found while a block is traced."""


class DTypeError(InfernumError):
    """Element types that do not fit, found while a block is traced."""


class ConfigError(InfernumError):
    """A model's config.json asks for something missing, malformed or not implemented."""


class CheckpointError(InfernumError):
    """A missing, extra, misshapen or unreadable tensor or safetensors file."""


class BundleError(InfernumError):
    """A bundle that is corrupt, of another schema or architecture, or made for another model."""


class CompileError(InfernumError):
    """A rule, template or kernel that cannot be compiled as asked."""


class DeviceError(InfernumError):
    """No GPU, no driver, a missing CUDA library, or too little device memory."""


class RequestError(InfernumError):
    """A prompt or sampling parameter that cannot be served."""
