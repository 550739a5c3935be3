"""An executor for engine tests: a toy language model whose KV cache holds the tokens themselves.

The next token depends on every token of the context, read back through the page table, so that a wrong page,
position or order changes the text. It checks each batch, and it notes when steps are launched and when their
tokens are read.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from infernum.ops import sampling
from infernum.step import PARAMETER_INPUTS, TABLE_ROW_INPUTS, TABLES, Batch, Logprobs, Sampling

Model = Callable[[list[int]], np.ndarray]
"""Logits of the token after a context."""


def hashed_logits(vocab: int) -> Model:
    """Logits that depend on every token of the context and its place."""

    def model(context: list[int]) -> np.ndarray:
        state = np.uint64(1)
        for token in [*context[-8:], len(context), sum(context)]:
            state = sampling.random_bits(np.array([int(state) & 0x7FFFFFFF]), np.array([token]))[0]
        return np.random.default_rng(int(state)).normal(0, 2, vocab).astype(np.float32)

    return model


def scripted(vocab: int, prompt_length: int, script: Sequence[int]) -> Model:
    """Logits that make the given tokens the most likely ones, one by one, after a prompt of that length."""

    def model(context: list[int]) -> np.ndarray:
        place = len(context) - prompt_length
        return np.eye(vocab, dtype=np.float32)[script[place] if 0 <= place < len(script) else 0] * 50

    return model


@dataclass(frozen=True)
class ToyPending:
    executor: "ToyExecutor"
    step: int
    sampled: np.ndarray
    computed: Logprobs | None = None

    def tokens(self) -> np.ndarray:
        self.executor.log.append(f"read {self.step}")
        return self.sampled

    def logprobs(self) -> Logprobs:
        assert self.computed is not None, "the step computed no log-probabilities"
        return self.computed


class ToyExecutor:
    """Speaks `infernum.step.Executor`. `log` holds `run n`, `advance n` and `read n`, in order.

    With a `short_context`, a position must have been computed as one of a long sequence just when its sequence is long.
    `windowed` are the pages of further cache groups, by their windows: each holds the tokens too, and a step must find
    there all that lie within the window of its tokens.
    """

    def __init__(
        self,
        model: Model,
        vocab: int,
        *,
        pages=16,
        page_size=4,
        max_batch_tokens=32,
        max_rows=8,
        short_context=2**31 - 1,
        windowed: Mapping[int, int] | None = None,
    ):
        self.model = model
        self.vocab = vocab
        self.num_pages = pages
        self.windowed_pages = dict(windowed or {})
        self.page_size = page_size
        self.max_batch_tokens = max_batch_tokens
        self.max_rows = max_rows
        self.dtype = "f16"
        self.cache = np.full((pages, page_size), -1)
        self.windowed_caches = {
            window: np.full((count, page_size), -1) for window, count in self.windowed_pages.items()
        }
        self.short_context = short_context
        self.is_long = np.zeros((pages, page_size), bool)
        self.log: list[str] = []
        self.batches: list[Batch] = []
        self.samplings: list[Sampling] = []
        self.steps = 0
        self.references = 0
        self._next: tuple[Batch, Sampling] | None = None
        self._sampled = np.zeros(0, np.int32)
        sizes = {"table_rows": max_rows, "vocab": vocab}
        self.tables = {table.name: np.full(table.shape(sizes), 99, table.dtype.numpy) for table in TABLES}

    def logits(self, batch: Batch) -> np.ndarray:
        self._next = None
        return self._forward(batch)

    def run(self, batch: Batch, sampling_: Sampling) -> ToyPending:
        self.log.append(f"run {self.steps}")
        self.batches.append(batch)
        unread = batch.token_ids < 0
        if unread.any():
            self.references += int(unread.sum())
            known = np.maximum(self._sampled[-1 - batch.token_ids[unread]], 0)
            token_ids = batch.token_ids.copy()
            token_ids[unread] = known
            batch = replace(batch, token_ids=token_ids)
        self.samplings.append(sampling_)
        for write in sampling_.writes:
            self.tables[write.table][write.row] = write.values
        return self._step(batch, sampling_)

    def advance(self) -> ToyPending:
        assert self._next is not None, "the last step cannot feed itself"
        self.log.append(f"advance {self.steps}")
        return self._step(*self._next)

    def close(self) -> None:
        pass

    def _step(self, batch: Batch, s: Sampling) -> ToyPending:
        logits = self._forward(batch)
        for write in s.late() if s.late is not None else ():
            self.tables[write.table][write.row] = write.values
        for array in s.parameters.values():
            assert len(array) == batch.rows
        if s.greedy:
            tokens = sampling.argmax.meaning(logits)
        else:
            arrays = s.arrays()
            tokens = sampling.sample.meaning(
                logits,
                *self.tables.values(),
                *(arrays[item.name] for item in (*TABLE_ROW_INPUTS, *PARAMETER_INPUTS)),
                batch.positions,
                batch.output_rows,
            )
            sampling.count_tokens.meaning(self.tables["counts"], arrays["counts_row"], tokens)
        self._next = None
        if batch.tokens == batch.seqs == batch.rows:
            ids, positions = sampling.advance.meaning(tokens, batch.token_ids.copy(), batch.positions.copy())
            self._next = replace(batch, token_ids=ids, positions=positions), s
        self._sampled = tokens
        self.steps += 1
        scored = s.arrays()["scored_token"]
        computed = Logprobs(*sampling.logprobs.meaning(logits, tokens, scored)) if s.logprobs else None
        return ToyPending(self, self.steps - 1, tokens, computed)

    def _forward(self, batch: Batch) -> np.ndarray:
        self._check(batch)
        for token, position, row in zip(batch.token_ids, batch.positions, batch.sequence, strict=True):
            page = batch.page_table[row, position // self.page_size]
            assert page >= 0, f"position {position} of sequence {row} has no page"
            self.cache[page, position % self.page_size] = token
        for group, window in enumerate(self.windowed_caches, 1):
            self._write_and_check(batch, group, window)
        page = batch.page_table[batch.sequence, batch.positions // self.page_size]
        self.is_long[page, batch.positions % self.page_size] = batch.lengths > self.short_context
        logits = np.empty((batch.rows, self.vocab), np.float32)
        for out, at in enumerate(batch.output_rows):
            length = batch.positions[at] + 1
            pages = batch.page_table[batch.sequence[at], : -(-length // self.page_size)]
            context = self.cache[pages].ravel()[:length]
            assert np.all(context >= 0), f"sequence {batch.sequence[at]}: positions were skipped: {context}"
            is_long = self.is_long[pages].ravel()[:length]
            assert np.all(is_long == (batch.lengths[at] > self.short_context)), (
                "computed by other frequencies"
            )
            assert is_long[0] == (length > self.short_context) or batch.lengths[at] > length, (
                "not computed anew"
            )
            logits[out] = self.model(context.tolist())
        return logits

    def _write_and_check(self, batch: Batch, group: int, window: int) -> None:
        """Write the tokens to the pages of a cache group; then each step must find there what its tokens attend to."""
        assert batch.windowed is not None, "a batch has the page tables of all cache groups"
        cache, table = self.windowed_caches[window], batch.page_table_of(group)
        pages = table[batch.sequence, batch.positions // self.page_size]
        assert np.all(pages >= 0), "a token has no page of a group with a window"
        cache[pages, batch.positions % self.page_size] = batch.token_ids
        for row, (first, last) in enumerate(
            zip(batch.query_start[:-1], batch.query_start[1:] - 1, strict=True)
        ):
            read = np.arange(max(0, batch.positions[first] + 1 - window), batch.positions[last] + 1)
            column, offset = np.divmod(read, self.page_size)
            assert np.all(table[row, column] >= 0), (
                f"sequence {row} lacks a page within the window of {window}"
            )
            whole = self.cache[batch.page_table[row, column], offset]
            assert np.array_equal(cache[table[row, column], offset], whole), (
                "another sequence has such a page"
            )

    def _check(self, batch: Batch) -> None:
        arrays = (
            batch.token_ids,
            batch.positions,
            batch.sequence,
            batch.query_start,
            batch.page_table,
            batch.output_rows,
        )
        assert all(array.dtype == np.int32 for array in arrays)
        assert 0 < batch.tokens <= self.max_batch_tokens
        assert 0 < batch.rows <= self.max_rows
        assert np.all((batch.token_ids >= 0) & (batch.token_ids < self.vocab))
        assert batch.query_start[0] == 0
        assert batch.query_start[-1] == batch.tokens
        lengths = np.diff(batch.query_start)
        assert np.all(lengths > 0)
        np.testing.assert_array_equal(batch.sequence, np.repeat(np.arange(batch.seqs), lengths))
        for row in range(batch.seqs):
            own = batch.positions[batch.query_start[row] : batch.query_start[row + 1]]
            np.testing.assert_array_equal(own, np.arange(own[0], own[0] + len(own)))
        assert np.all(np.diff(batch.output_rows) > 0)
        owned = batch.page_table[batch.page_table >= 0]
        written = [
            batch.page_table[row, position // self.page_size]
            for row, position in {
                (int(s), int(p) - int(p) % self.page_size)
                for s, p in zip(batch.sequence, batch.positions, strict=True)
            }
        ]
        assert all((owned == page).sum() == 1 for page in written), "two sequences own a page that one writes"
        assert owned.max() < self.num_pages
