"""The inputs of a step: the table of all inputs, the arrays of a step, and the protocol of executors.

`INPUTS` is the only list of the inputs of a step. From it follow the inputs that a block may read, the upload to the
GPU, the arrays of the NumPy executor, and the values that `verify` draws. Both executors, CUDA (`infernum.runtime`)
and NumPy (`infernum.cpu`), implement the protocol `Executor`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from infernum import dims
from infernum.dims import Dim
from infernum.dtypes import F32, I32, DType
from infernum.errors import BundleError
from infernum.sampling_params import GREEDY, PARAMETERS, SamplingParams

Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]
Array = NDArray[Any]


@dataclass(frozen=True)
class StepInput:
    """An array of 32-bit numbers that changes from step to step.

    dims       symbols and formulas over them; besides the symbols of `infernum.dims`, `vocab` is the vocabulary's size
    default    value of all elements in a step that does not set the input; None: every step sets it
    updated    True when a sampler overwrites the input in place, for the next step
    ahead      True when a kernel may read the input before the kernel in front of it has ended; a kernel that writes
               the input lets no other start before its own end
    resident   True for a table that outlives the step: the host writes single rows of it (`TableRow`)
    """

    name: str
    dtype: DType
    dims: tuple[Dim, ...]
    default: float | None = None
    updated: bool = False
    ahead: bool = False
    resident: bool = False

    def shape(self, symbols: Mapping[str, int]) -> tuple[int, ...]:
        """The shape in numbers, under the given values of symbols."""
        return tuple(dims.evaluate(dim, symbols) for dim in self.dims)

    def filled(self, symbols: Mapping[str, int]) -> Array:
        """An array of the default value."""
        assert self.default is not None, f"{self.name} has no default"
        return np.full(self.shape(symbols), self.default, self.dtype.numpy)


NO_TOKEN = -2
"""The sampled token of a row whose largest logit is not finite. (−1 is the content of unwritten memory.)"""

LOGPROBS = "logprobs"
"""Name of the block that computes log-probabilities, behind a sampler."""

BATCH_INPUTS = (
    StepInput("token_ids", I32, ("tokens",), updated=True),
    StepInput("positions", I32, ("tokens",), updated=True, ahead=True),
    StepInput("sequence", I32, ("tokens",), ahead=True),
    StepInput("query_start", I32, ("seqs + 1",), ahead=True),
    StepInput("page_table", I32, ("seqs", "max_pages"), ahead=True),
    StepInput("output_rows", I32, ("rows",)),
    StepInput("lengths", I32, ("tokens",), ahead=True),
)
"""The inputs that a `Batch` fills. A `Sampling` fills the others."""

PARAMETER_INPUTS = tuple(
    StepInput(parameter.name, I32 if parameter.kind is int else F32, ("rows",), default=parameter.off)
    for parameter in PARAMETERS
)
"""One input for each sampling parameter."""

TABLES = (
    StepInput("counts", I32, ("min(table_rows, 256)", "vocab"), updated=True, resident=True),
    StepInput("logit_bias", F32, ("min(table_rows, 64)", "vocab"), resident=True),
    StepInput("allowed", I32, ("table_rows", "ceildiv(vocab, 32)"), resident=True),
)
"""What few sequences need of every token, on the device. They are the inputs whose shapes depend on the model.

counts      twice the number of times that a token is in the output, and 1 more where it is in the prompt
logit_bias  what is added to the token's logit
allowed     bit t % 32 of word t // 32: token t may be sampled
"""

TABLE_ROW_INPUTS = tuple(StepInput(f"{table.name}_row", I32, ("rows",), default=-1) for table in TABLES)
"""The row of each table that holds for a row of logits; −1: none does."""

SCORED_TOKEN = StepInput("scored_token", I32, ("rows",), default=-1)
"""The token of which a row gives the log-probability; −1: the token that it samples."""

INPUTS = (*BATCH_INPUTS, *PARAMETER_INPUTS, *TABLE_ROW_INPUTS, SCORED_TOKEN, *TABLES)
"""Every input of a step."""

_BY_NAME = {item.name: item for item in INPUTS}


def check_input(name: str, dtype: DType, block: str) -> None:
    """Raises BundleError when `block` reads an unknown input, or reads an input with another type of element."""
    item = _BY_NAME.get(name)
    if item is None:
        raise BundleError(f"{block}: no batch array {name!r}; this runtime has {sorted(_BY_NAME)}")
    if dtype.bytes != item.dtype.bytes or dtype.is_float != item.dtype.is_float:
        raise BundleError(f"{block}: batch array {name!r} is {item.dtype}, not {dtype}")


@dataclass(slots=True)
class Batch:
    """One ragged step over several sequences; all arrays are int32. It does not change once it is made.

    Every step makes one, and a frozen dataclass takes four times as long to make: it sets each field by a call.

    token_ids    [tokens]            the new tokens, sequence after sequence; −1 − r is the token that row r of the step
                                     before has sampled, which the host need not know
    positions    [tokens]            position of each within its sequence, from 0
    sequence     [tokens]            row of `page_table` that each belongs to
    query_start  [seqs + 1]          sequence s owns tokens query_start[s] … query_start[s+1] − 1
    page_table   [seqs, max_pages]   KV cache page of positions 64·j … 64·j+63 of sequence s in column j; −1: none
    output_rows  [rows]              tokens whose logits the step computes, ascending
    lengths      [tokens]            length of the token's sequence, for LongRoPE: the same for all chunks of a prompt.
                                     Default: the length after the step
    windowed     [groups − 1, seqs, max_pages]
                                     the page tables of the other cache groups, where −1 also stands for pages that lie
                                     behind the window. Default: all groups have the pages of `page_table`
    """

    token_ids: Int32
    positions: Int32
    sequence: Int32
    query_start: Int32
    page_table: Int32
    output_rows: Int32
    lengths: Int32 = field(default_factory=lambda: np.empty(0, np.int32))
    windowed: Int32 | None = None

    def __post_init__(self) -> None:
        if len(self.lengths) == 0:
            ends = self.positions[self.query_start[1:] - 1] + 1
            self.lengths = ends[self.sequence].astype(np.int32)

    @property
    def tokens(self) -> int:
        return len(self.token_ids)

    @property
    def seqs(self) -> int:
        return len(self.page_table)

    @property
    def rows(self) -> int:
        return len(self.output_rows)

    @property
    def decodes(self) -> bool:
        """True when every sequence has one token."""
        return self.tokens == self.seqs

    @property
    def longest(self) -> int:
        """Number of positions of the longest sequence after the step."""
        return int(self.positions.max(initial=-1)) + 1

    def page_table_of(self, group: int) -> Int32:
        """The page table of a cache group, int32 [seqs, max_pages]."""
        return self.page_table if group == 0 or self.windowed is None else self.windowed[group - 1]

    def room(self, page_size: int) -> int:
        """Number of further positions for which every sequence of a decode has pages."""
        numbers = np.arange(1, self.page_table.shape[1] + 1, dtype=np.int32)
        columns = ((self.page_table >= 0) * numbers).max(axis=1, initial=0)
        return int((columns[self.sequence] * page_size - 1 - self.positions).min())

    def arrays(self) -> dict[str, Array]:
        """The inputs of the step that a batch fills, by name."""
        return {item.name: getattr(self, item.name) for item in BATCH_INPUTS}


@dataclass(frozen=True)
class TableRow:
    """New values of row `row` of the table of that name. An executor writes them before its next step reads the row."""

    table: str
    row: int
    values: Array


LateRows = Callable[[], Iterable[TableRow]]
"""Gives rows of tables that are made while the model runs."""


_PARAMETERS = {item.name for item in PARAMETER_INPUTS}
_TABLE_ROWS = {item.name for item in TABLE_ROW_INPUTS}


@dataclass(slots=True)
class Sampling:
    """The sampling of each row of logits. It does not change once it is made, as a `Batch`.

    parameters  an array [rows], float32 or int32, for each sampling parameter
    table_rows  an array [rows], int32, for each of `TABLE_ROW_INPUTS`. Tables without one hold for no row
    writes      rows of tables that have changed since the last step
    late        called once the model is launched: gives further rows, such as masks, for which the sampler waits
    logprobs    True where the step also computes log-probabilities
    scored      an array [rows], int32, for `SCORED_TOKEN`. Default: every row gives that of the token that it samples
    """

    parameters: Mapping[str, Array]
    table_rows: Mapping[str, Int32] = field(default_factory=dict[str, Int32])
    writes: tuple[TableRow, ...] = ()
    late: LateRows | None = None
    logprobs: bool = False
    scored: Int32 | None = None

    def __post_init__(self) -> None:
        assert self.parameters.keys() == _PARAMETERS, f"sampling by {sorted(self.parameters)}"
        assert self.table_rows.keys() <= _TABLE_ROWS, f"rows of {sorted(self.table_rows)}"

    @classmethod
    def of(cls, rows: Iterable[tuple[SamplingParams, int]]) -> Sampling:
        """The sampling of rows with these parameters and seeds, by no table. The parameters' own seed is not used."""
        chosen = list(rows)
        parameters: dict[str, Array] = {
            item.name: np.array([getattr(params, item.name) for params, _ in chosen], item.dtype.numpy)
            for item in PARAMETER_INPUTS
            if item.name != "seed"
        }
        seeds = np.array([seed for _, seed in chosen], np.uint32)
        return cls(parameters | {"seed": seeds.view(np.int32)})

    @classmethod
    def off(cls, rows: int) -> Sampling:
        """Every parameter off: each row takes its most likely token."""
        return cls({item.name: item.filled({"rows": rows}) for item in PARAMETER_INPUTS})

    @property
    def greedy(self) -> bool:
        """True when every row takes its most likely token."""
        plain = all(bool(np.all(self.parameters[name] == value)) for name, value in GREEDY.items())
        return plain and all(bool(np.all(rows < 0)) for rows in self.table_rows.values())

    def arrays(self) -> dict[str, Array]:
        """The inputs of the step that a sampling fills, by name."""
        rows = {"rows": len(self.parameters["seed"])}
        tables = {item.name: self.table_rows.get(item.name) for item in TABLE_ROW_INPUTS}
        inputs = {**tables, SCORED_TOKEN.name: self.scored}
        default = SCORED_TOKEN.filled(rows)
        return {**self.parameters, **{name: default if own is None else own for name, own in inputs.items()}}


@dataclass(frozen=True)
class Logprobs:
    """Log-probabilities of a step, of raw logits (`infernum.ops.sampling.logprobs`), [rows, 1 + MOST_LOGPROBS].

    tokens  int32: the sampled token or that of `Sampling.scored`, then the most likely ones; `NO_TOKEN`: none
    values  float32: their log-probabilities
    """

    tokens: Int32
    values: Float32


class Pending(Protocol):
    """Tokens of a step that may still be running."""

    def tokens(self) -> Int32:
        """The sampled token of each row, int32 [rows], or `NO_TOKEN`; waits for the step."""
        ...

    def logprobs(self) -> Logprobs:
        """The log-probabilities of each row, of a step whose sampling has `logprobs`; waits for the step."""
        ...


class Executor(Protocol):
    """Runs steps of one model over a paged KV cache."""

    @property
    def page_size(self) -> int: ...

    @property
    def num_pages(self) -> int:
        """Pages of the layers without a window, whose page table is `Batch.page_table`."""
        ...

    @property
    def windowed_pages(self) -> Mapping[int, int]:
        """Pages of each other cache group, by its window, in the order of `Batch.windowed`."""
        ...

    @property
    def max_batch_tokens(self) -> int: ...

    @property
    def max_rows(self) -> int: ...

    @property
    def dtype(self) -> str:
        """The element type that the model computes in, such as "bf16"."""
        ...

    def logits(self, batch: Batch) -> Float32:
        """Run a step and return its logits, float32 [rows, vocab]."""
        ...

    def run(self, batch: Batch, sampling: Sampling) -> Pending:
        """Run a step and sample one token for each row."""
        ...

    def advance(self) -> Pending:
        """Run the next step of the last batch, which must have one token and one row for each sequence.

        The input of each sequence is the token that it sampled last, at the next position; nothing is uploaded. After
        a `run` or `advance` that raised, the next step must be a `run`.
        """
        ...

    def close(self) -> None:
        """Free device memory; the executor cannot be used afterwards."""
        ...
