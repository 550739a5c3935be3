"""What a model family's file declares: its configuration and the blocks a model of it is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from infernum.ir.block import Block


@dataclass(frozen=True)
class Family:
    """A model family: `first`, then `layer(cfg, i)` for each of `cfg.num_hidden_layers` layers, then `last`."""

    config: type[Any]
    first: Block
    layer: Callable[[Any, int], Block]
    last: Block

    def program(self, cfg: Any) -> list[tuple[Block, int | None]]:
        """The blocks in the order they run, each with its layer."""
        layers: list[tuple[Block, int | None]] = [
            (self.layer(cfg, i), i) for i in range(cfg.num_hidden_layers)
        ]
        return [(self.first, None), *layers, (self.last, None)]
