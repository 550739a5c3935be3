"""A model as a program: its blocks in the order of a step, their element type, and the classes of steps they serve."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import infernum.ops  # noqa: F401  # pyright: ignore[reportUnusedImport]  # fills the registry
from infernum import __version__, logs, plugins
from infernum.dtypes import DType
from infernum.dtypes import dtype as dtype_named
from infernum.errors import CompileError, ShapeError
from infernum.ir.block import PAGE, Block
from infernum.ir.graph import Graph
from infernum.ir.interface import weights_of
from infernum.ir.op import Op
from infernum.manifest import SCHEMA, BlockVariant, Manifest, ModelInfo, Plugin, Stage, VariantSpec
from infernum.models import sampler
from infernum.models.config import config_hash, find_family
from infernum.models.presets import ModelSource
from infernum.recipes import Recipe, filled

pass_log = logs.channel("passes")

MAX_BATCH_TOKENS = 4096
"""Most tokens in one step, unless another number is given."""

MOST_RANKS = 8
"""Largest number of GPUs that a model is divided among: the GPUs of one host."""


@dataclass(frozen=True)
class Program:
    """What is known of a model before a block is traced. `stages`: blocks, and the layers they are applied for.

    ranks  number of GPUs that the model is divided among
    """

    source: ModelSource
    dtype: DType
    stages: list[tuple[Block, int | None]]
    max_tokens: int
    ranks: int = 1

    @property
    def blocks(self) -> list[Block]:
        """The blocks of the model and the samplers, each once, in order of first use."""
        return distinct_blocks([*(block for block, _ in self.stages), *sampler.BEHIND_THE_MODEL])

    def trace(self, block: Block) -> Graph:
        """The graph of a block, which each rank runs."""
        return block.trace(self.source.config, self.dtype, self.ranks)


def read_program(source: ModelSource, dtype: str, max_batch_tokens: int, ranks: int = 1) -> Program:
    """The program of a model in `dtype`; "auto": as its weights are stored. Raises CompileError or ConfigError.

    `ranks`: number of GPUs that the model is divided among; each axis that is divided must be a multiple of it.
    """
    element = dtype_named(source.config.dtype if dtype == "auto" else dtype)
    if not element.is_float:
        raise CompileError(f"--dtype {dtype}: use float32, float16 or bfloat16")
    reason = source.dtype_reason if dtype == "auto" else "as --dtype says"
    pass_log.info("%s is compiled for %s, %s", source.name, element.long_name, reason)
    max_tokens = max(1, min(max_batch_tokens, source.config.max_position_embeddings))
    program = Program(source, element, find_family(source.family).program(source.config), max_tokens, ranks)
    if ranks != 1:
        _check_ranks(program)
    return program


def _check_ranks(program: Program) -> None:
    """Raises CompileError unless the blocks divide among the ranks, and says among how many they do."""
    check_number_of_ranks(program.ranks)
    try:
        graphs = [program.trace(block) for block in program.blocks]
    except ShapeError as error:
        fitting = [
            str(ranks) for ranks in range(2, MOST_RANKS + 1) if _divides(replace(program, ranks=ranks))
        ]
        fits = f"divides among {', '.join(fitting)} GPUs" if fitting else "cannot be divided"
        raise CompileError(
            f"--tensor-parallel-size {program.ranks}: {error}; {program.source.name} {fits}"
        ) from error
    if not any(isinstance(node.op, Op) and node.op.collective for graph in graphs for node in graph.calls):
        raise CompileError(
            f"--tensor-parallel-size {program.ranks}: no block of the family {program.source.family!r} says how its"
            ' products are divided; give them shard="rows" or "columns"'
        )


def check_number_of_ranks(ranks: int) -> None:
    """Raises CompileError for a number of ranks that no model can have."""
    if not 1 <= ranks <= MOST_RANKS:
        raise CompileError(
            f"--tensor-parallel-size {ranks}: a model is divided among 1 to {MOST_RANKS} GPUs of one host"
        )


def _divides(program: Program) -> bool:
    try:
        return all(map(program.trace, program.blocks))
    except ShapeError:
        return False


def needed_weights(source: ModelSource) -> Iterator[tuple[int | None, list[Recipe]]]:
    """The weights of each part of a model, as (layer, recipes): the last layer first, which shows how many there are.

    Each distinct block is traced once, and nothing is built of all layers: who stops at the first missing weight takes
    no longer for a million layers than for one.
    """
    family, cfg = find_family(source.family), source.config
    dtype = dtype_named(cfg.dtype)
    by_block: dict[str, list[Recipe]] = {}

    def recipes(block: Block) -> list[Recipe]:
        if block.name not in by_block:
            by_block[block.name] = [weight.recipe for weight in weights_of(block.trace(cfg, dtype)).values()]
        return by_block[block.name]

    for layer in reversed(range(cfg.num_hidden_layers)):
        yield layer, [filled(recipe, "layer", layer) for recipe in recipes(family.layer(cfg, layer))]
    for block in (family.first, family.last):
        yield None, recipes(block)


def distinct_blocks(blocks: Iterable[Block]) -> list[Block]:
    """Each block once, in order of first use. Raises CompileError for two different blocks of one name."""
    by_name: dict[str, Block] = {}
    for block in blocks:
        first = by_name.setdefault(block.name, block)
        if first != block:
            raise CompileError(
                f"two different blocks are called {block.name}: {_definition(first)} and {_definition(block)};"
                " rename one, or bind what differs by Block.of, which names a block after its settings"
            )
    return list(by_name.values())


def _definition(block: Block) -> str:
    """Where a block was declared, and with which settings: `models/llama.py:31 (kind='sliding')`."""
    settings = ", ".join(f"{name}={value!r}" for name, value in block.settings.items())
    return f"{block.where} ({settings})" if settings else block.where


def describe_program(
    program: Program,
    blocks: Mapping[str, Mapping[str, BlockVariant]],
    variants: Sequence[VariantSpec],
    *,
    arch: str | None,
    nvrtc: str | None,
    fuse: bool,
    rules: Sequence[str],
    deterministic: bool = False,
) -> Manifest:
    """The manifest of a program whose blocks were compiled, or only traced: then `arch` and `nvrtc` are None."""
    source = program.source
    return Manifest(
        schema=SCHEMA,
        infernum=__version__,
        nvrtc=nvrtc,
        arch=arch,
        dtype=program.dtype.name,
        fuse=fuse,
        rules=list(rules),
        deterministic=deterministic,
        ranks=program.ranks,
        page_size=PAGE,
        model=ModelInfo(
            family=source.family,
            name=source.name,
            config=source.config.to_json(),
            config_hash=config_hash(source.config),
            vocab_size=source.config.vocab_size,
            context=source.config.max_position_embeddings,
            num_layers=source.config.num_hidden_layers,
            short_context=source.config.short_context,
        ),
        variants=list(variants),
        program=[Stage(block=block.name, layer=layer) for block, layer in program.stages],
        samplers=[block.name for block in sampler.SAMPLERS],
        plugins=[Plugin(name=p.name, sha256=p.sha256) for p in plugins.loaded()],
        edits={},
        blocks={name: dict(compiled) for name, compiled in blocks.items()},
    )
