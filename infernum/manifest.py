"""The records that a bundle's manifest is made of: what the compiler knows and the runtime needs."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from infernum.recipes import Recipe

SCHEMA = 13
"""Raised with every change that an older version could not read."""

Formula = int | str
"""An integer, or arithmetic over the symbols of `infernum.dims`, evaluated when a step is launched."""

ANY = "any"
"""The variant of a block, such as a sampler, that is compiled once for steps of every class."""


EXCHANGE = "exchange"
"""What the steps call the record by which kernels of several ranks exchange words (templates/include/exchange.cuh)."""


def check_file_name(name: str) -> str:
    """`name`, which a bundle may call one of its files: it lies in the bundle's folder, on every system.

    Raises ValueError for a path, a drive, an empty name, or characters that cannot be printed.
    """
    if name in ("", ".", "..") or not name.isprintable() or set(name) & set("/\\:"):
        raise ValueError(f"{name!r} is not the name of a file in a bundle")
    return name


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of everything stored in a manifest."""


class TensorSpec(Record, frozen=True):
    """A named tensor: `shape` holds integers and symbols, `dtype` a short name of `infernum.dtypes`."""

    name: str
    dtype: str
    shape: list[Formula]

    @property
    def type_text(self) -> str:
        """The type as graphs print it: "bf16[tokens, 512]"."""
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


class State(TensorSpec, frozen=True):
    """A tensor that outlives the step, the KV cache. A step reads the last `window` positions of it; 0: all of them.

    The block's `page_table` is that of the cache group of this window (`infernum.cache_groups`).
    """

    window: int = 0


class Buffer(Record, frozen=True):
    """An intermediate tensor at a fixed byte offset of the block's arena."""

    spec: TensorSpec
    offset: int


class Weight(Record, frozen=True):
    """A tensor filled when a checkpoint is loaded, as its recipe says; names of tensors may hold `{layer}`.

    `added`: the number that a norm adds to it. Random weights leave it out, so that they are near 1 with it.
    """

    spec: TensorSpec
    recipe: Recipe
    added: float = 0.0


class Pointer(Record, frozen=True, tag="pointer"):
    """A kernel argument: the address of a tensor plus `offset` bytes.

    `tensor` names a buffer, a weight, a stream, a batch input or a state of the same block variant, or is `EXCHANGE`.
    """

    tensor: str
    offset: int = 0


class SymbolArg(Record, frozen=True, tag="symbol"):
    """A kernel argument: the value of a symbol, passed as a 32-bit int."""

    symbol: str


Arg = Pointer | SymbolArg


class Launch(Record, frozen=True, tag="launch"):
    """One kernel launch.

    shared_bytes  dynamic shared memory of a block
    cluster       blocks, side by side along z, that run at the same time and share their shared memory; 1: none do
    programmatic  the kernel waits by itself for the one before (griddepcontrol)
    exchanged     words that the kernel sends to each other rank
    """

    kernel: str
    args: list[Arg]
    grid: list[Formula]
    block: list[int]
    shared_bytes: int = 0
    cluster: Formula = 1
    programmatic: bool = False
    exchanged: Formula = 0


class Gemm(Record, frozen=True, tag="gemm"):
    """One library matrix product: out[m, n] = x[m, k] · weight[n, k]ᵀ (+ bias[n]) (+ residual[m, n]).

    Row-major; `*_stride` is the distance in elements between rows. Products are accumulated in float32.
    """

    name: str
    x: Pointer
    weight: Pointer
    out: Pointer
    m: Formula
    n: int
    k: int
    x_stride: int
    out_stride: int
    dtype: str
    out_dtype: str
    bias: Pointer | None = None
    residual: Pointer | None = None
    residual_stride: int = 0


Step = Launch | Gemm


def named_tensors(step: Step) -> list[str]:
    """The tensors that a step names, in order of first use."""
    match step:
        case Launch():
            pointers = [arg for arg in step.args if isinstance(arg, Pointer)]
        case Gemm():
            pointers = [p for p in (step.x, step.weight, step.bias, step.residual, step.out) if p is not None]
    return list(dict.fromkeys(pointer.tensor for pointer in pointers))


class Cost(Record, frozen=True):
    """Kernels, and the bytes and FLOPs they take together, as formulas over symbols."""

    kernels: int
    bytes: Formula
    flops: Formula


class Parameters(Record, frozen=True):
    """The parameters of a kernel that may be tuned.

    key         what `infernum tune` knows the choice by
    values      what was chosen, by name; `default`: what the architecture has without tuning
    candidates  how many combinations there are to try
    why         where the values come from, such as "default for sm_90a"
    """

    key: str
    values: dict[str, int]
    default: dict[str, int]
    candidates: int
    why: str


class Kernel(Record, frozen=True):
    """What is known of one step: an emitted kernel, or a library product (`template` is then "cublaslt").

    `bytes` and `flops` are formulas per launch, over the symbols of a step and those of `infernum.dims.COSTS`.
    node         the node of the block's graph that it computes, alone or with the step before or after it
    ops, where   the primitive ops of that node, and the lines of Python (`file:line`) that called them
    rules        the rules that made the node: rewrites, and what fused them
    origin       the nodes of the block's traced graph whose work it does
    before       what those nodes cost as kernels of their own; of several steps of one node, the first one has it
    passed_over  kernels that would have been preferred, and why each could not serve
    parameters   what was chosen of the parameters that may be tuned; None: there are none
    source_hash  SHA-256 of its part of the `.cu` file as emitted; "" for a library product
    """

    name: str
    node: str
    template: str
    ops: list[str]
    rules: list[str]
    where: list[str]
    origin: list[str]
    before: Cost
    bytes: Formula
    flops: Formula
    passed_over: list[str] = []
    parameters: Parameters | None = None
    source_hash: str = ""
    registers: int = 0
    stack_bytes: int = 0
    spill_bytes: int = 0
    static_shared_bytes: int = 0


class Firing(Record, frozen=True):
    """One time that a rule was applied: the calls it removed (`at`), and those in their place (`made`)."""

    rule: str
    at: str
    made: str


class RuleRefusal(Record, frozen=True):
    """A place where a rule matched and was not applied, and why."""

    rule: str
    at: str
    reason: str


class Edit(Record, frozen=True):
    """A `.cu` file that was changed by hand and compiled again: its kernels that differ from what was emitted."""

    emitted_sha256: str
    kernels: list[str]


class Plugin(Record, frozen=True):
    """A plugin that was loaded when the bundle was compiled, and the SHA-256 of its code and templates."""

    name: str
    sha256: str


class BlockVariant(Record, frozen=True):
    """One block compiled for one class of steps, or once for all of them (`variant` is then ANY).

    `kernels[i]` describes `steps[i]`. `fired` counts every rule that was tried, `firings` tells them one by one.
    `traced` and `graph` name the files of the graph before and after the rules; `shared_hash` is that of the code which
    the kernels of `source` share, as emitted.

    Tensors named by `steps` are found in `buffers`, `weights`, `stream_in`/`stream_out` (what flows from block to
    block), `batch` (inputs of the step, such as `token_ids`) or `state` (what outlives the step: the KV cache).
    """

    block: str
    variant: str
    traced: str
    graph: str
    stream_in: list[TensorSpec]
    stream_out: list[TensorSpec]
    batch: list[TensorSpec]
    state: list[State]
    weights: dict[str, Weight]
    source: str = ""
    shared_hash: str = ""
    cubin: str = ""
    buffers: dict[str, Buffer] = {}
    arena_bytes: int = 0
    steps: list[Step] = []
    kernels: list[Kernel] = []
    kernels_before_fusion: int = 0
    fired: dict[str, int] = {}
    firings: list[Firing] = []
    refused: list[RuleRefusal] = []

    def __post_init__(self) -> None:
        compiled = (self.source, self.cubin) if self.has_kernels else ()
        for name in (self.traced, self.graph, *compiled):
            check_file_name(name)

    @property
    def has_kernels(self) -> bool:
        """False in a bundle for NumPy: then `source` and `cubin` are empty, as all that follows them."""
        return bool(self.source or self.cubin or self.steps)

    def serves(self, variant: str | None) -> bool:
        """Whether steps of the class `variant` run this block variant; None stands for any class."""
        return variant in (None, self.variant) or self.variant == ANY


class VariantSpec(Record, frozen=True):
    """A class of steps: of `min_tokens` to `max_tokens` tokens, and up to `max_rows` rows of logits.

    `decodes`: only of steps in which every sequence has one token. Other classes serve such steps too.
    """

    name: str
    min_tokens: int
    max_tokens: int
    max_rows: int
    decodes: bool = False

    def serves(self, tokens: int, decodes: bool) -> bool:
        """Whether steps of `tokens` tokens belong to the class. `decodes`: every sequence has one token."""
        return self.min_tokens <= tokens <= self.max_tokens and (decodes or not self.decodes)


def any_step(variants: Sequence[VariantSpec]) -> VariantSpec:
    """The class ANY: the steps of all classes together."""
    return VariantSpec(
        name=ANY,
        min_tokens=min(v.min_tokens for v in variants),
        max_tokens=max(v.max_tokens for v in variants),
        max_rows=max(v.max_rows for v in variants),
    )


def spec_of(variants: Sequence[VariantSpec], name: str) -> VariantSpec:
    """The class of steps of that name: one of `variants`, or ANY."""
    return next(spec for spec in (*variants, any_step(variants)) if spec.name == name)


class Stage(Record, frozen=True):
    """One step of the program: a block, and the layer it is applied for (None: it belongs to no layer)."""

    block: str
    layer: int | None = None


class ModelInfo(Record, frozen=True):
    """The model a bundle was compiled for. `config` holds every field that decides the mathematics.

    A sequence that grows beyond `short_context` tokens is computed anew from its start; None: none is.
    """

    family: str
    name: str
    config: dict[str, object]
    config_hash: str
    vocab_size: int
    context: int
    num_layers: int
    short_context: int | None = None


class Manifest(Record, frozen=True):
    """The whole bundle, but for the contents of its files.

    `variants` are the classes of steps; every step belongs to one of them. `blocks[block]` holds a block variant for
    each class, or a single one for ANY. `edits` tells, by file, what a person changed by hand. A bundle for NumPy holds
    graphs only: `arch` and `nvrtc` are None, and the block variants have neither source nor steps.
    """

    schema: int
    infernum: str
    nvrtc: str | None
    arch: str | None
    dtype: str
    fuse: bool
    rules: list[str]
    page_size: int
    model: ModelInfo
    variants: list[VariantSpec]
    program: list[Stage]
    samplers: list[str]
    plugins: list[Plugin]
    edits: dict[str, Edit]
    blocks: dict[str, dict[str, BlockVariant]]
    deterministic: bool = False
    """The bits of a token's result do not depend on what else is in the step (`infernum compile --deterministic`)."""
    ranks: int = 1
    """Number of GPUs that the model is divided among (`--tensor-parallel-size`). Each runs these blocks."""


def variant_names(manifest: Manifest) -> list[str]:
    """The variants that blocks are compiled for, ANY among them where some block is compiled once."""
    return list(dict.fromkeys(name for compiled in manifest.blocks.values() for name in compiled))


def every_variant(manifest: Manifest) -> list[BlockVariant]:
    """Every block for every variant that it is compiled for."""
    return [v for compiled in manifest.blocks.values() for v in compiled.values()]
