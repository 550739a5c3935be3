"""The declaration of a model family: its configurations, and the blocks of its models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import InitVar, dataclass
from typing import Any, cast

from infernum.errors import CompileError, ConfigError
from infernum.ir.block import Block
from infernum.models.config_fields import declared
from infernum.models.family_config import FamilyConfig

MOST_LAYERS = 4096
"""Most layers of a model. Planning that many takes seconds; the deepest models have some hundreds."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A model family: `first`, then `layer(cfg, i)` for each of `cfg.num_hidden_layers` layers, then `last`.

    `configs` has a class for each model_type of the family. Layers with different settings are one block with the
    settings bound: `layer=lambda cfg, i: decoder.of(kind=cfg.kind(i))`.
    """

    configs: tuple[type[FamilyConfig], ...] = ()
    first: Block
    layer: Callable[[Any, int], Block]
    last: Block
    config: InitVar[object] = None
    """The former name of `configs`, for one configuration; passing it raises an error with the new form."""

    def __post_init__(self, config: object) -> None:
        if config is not None:
            name = getattr(config, "__name__", "Config")
            raise CompileError(f"Family(config={name}) is now Family(configs=({name},)): a tuple of classes")
        _check_configs(self.configs)

    @property
    def model_types(self) -> tuple[str, ...]:
        """The model types of this family."""
        return tuple(config.model_type for config in self.configs)

    def config_of(self, model_type: str) -> type[FamilyConfig]:
        """The class that reads a config.json of this model_type."""
        return next(config for config in self.configs if config.model_type == model_type)

    def program(self, cfg: Any) -> list[tuple[Block, int | None]]:
        """The blocks in order, each with its layer or None. Raises ConfigError for more than `MOST_LAYERS` layers."""
        if cfg.num_hidden_layers > MOST_LAYERS:
            raise ConfigError(
                f"num_hidden_layers = {cfg.num_hidden_layers} is more than can be compiled; it must be at most"
                f" {MOST_LAYERS}"
            )
        layers: list[tuple[Block, int | None]] = [
            (self.layer(cfg, i), i) for i in range(cfg.num_hidden_layers)
        ]
        return [(self.first, None), *layers, (self.last, None)]


def _check_configs(configs: object) -> None:
    """Raise CompileError unless `configs` is a tuple of valid configuration classes."""
    if not isinstance(configs, tuple) or not configs:
        raise CompileError("Family(configs=…): give a tuple of classes, one for each model_type")
    for config in cast("tuple[object, ...]", configs):
        if not (isinstance(config, type) and issubclass(config, FamilyConfig)):
            raise CompileError(
                f"Family(configs=…): {config!r} is no subclass of FamilyConfig (infernum.models.family_config)"
            )
        if not isinstance(getattr(config, "model_type", None), str):
            raise CompileError(
                f"Family(configs=…): {config.__name__} does not say what it reads;"
                ' write model_type: ClassVar[str] = "…"'
            )
        declared(config)
