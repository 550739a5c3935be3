"""What each pass did to a block and how long it took: the log channel `passes`, and the folder of --dump-passes.

    OUTPUT-passes/
      passes.json               everything below, for tools
      decoder.t1/
        passes.txt              a table of all passes, then what each one changed, as a diff of the graph's text
        00-traced.ir            the graph as traced
        01-merge_products.ir    the graph after the first rule that fired, below what the rule did

Graphs are written as they come, the rest at the end, also when the compilation fails.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path

import msgspec

from infernum import logs
from infernum.cache import write_whole
from infernum.errors import CompileError
from infernum.ir.apply import Pass
from infernum.ir.graph import Graph
from infernum.ir.text import print_graph
from infernum.manifest import Firing, RuleRefusal
from infernum.rule_phrases import fired, refusal, replacement

SUMMARY = "passes.json"
TABLE = "passes.txt"

log = logs.channel("passes")


@dataclass(frozen=True)
class PassRecord:
    """One pass over a block. `nodes_*` count calls; `file` is the graph after a pass that changed it, `diff` how."""

    name: str
    why: str
    ms: float
    nodes_before: int
    nodes_after: int
    firings: tuple[Firing, ...] = ()
    refused: tuple[RuleRefusal, ...] = ()
    file: str | None = None
    diff: str = ""


class BlockPasses:
    """The passes over one block for one variant, in the order they ran; without a folder they are only logged."""

    def __init__(self, traced: Graph, variant: str, trace_seconds: float, folder: Path | None) -> None:
        self.block, self.variant = traced.name, variant
        self.stem = f"{self.block}.{variant}"
        self.folder = folder
        self.done: list[PassRecord] = []
        self.kernels: int | None = None
        self._files: list[str] = []
        if folder is not None:
            why = "The block's function, run once over values without contents; all variants share it."
            ms, nodes = 1000 * trace_seconds, len(traced.calls)
            file = self._write("traced", [f"{self.stem}: {why}", f"{ms:.2f} ms, {nodes} nodes"], traced)
            self.done.append(PassRecord("trace", why, ms, nodes, nodes, file=file))

    def rule(self, done: Pass) -> None:
        """Note what a rule did."""
        ms, before, after = 1000 * done.seconds, len(done.before.calls), len(done.after.calls)
        if done.firings:
            log.info("%s: %s %.1f ms, %d -> %d nodes", self.stem, done.rule, ms, before, after)
        if self.folder is None:
            return
        file, diff = None, ""
        if done.firings:
            last = self._files[-1]
            heading = [
                f"{self.stem}: {done.rule}: {done.why}",
                f"{fired(len(done.firings))}, {ms:.2f} ms, {before} -> {after} nodes",
                *(f"  at {replacement(firing.at, firing.made)}" for firing in done.firings),
            ]
            file = self._write(done.rule, heading, done.after)
            diff = _diff(done.before, done.after, last, file)
        self.done.append(
            PassRecord(done.rule, done.why, ms, before, after, done.firings, done.refused, file, diff)
        )

    @contextmanager
    def timed(self, name: str, why: str) -> Generator[None]:
        """Note a pass that leaves the graph as it is."""
        begin = time.perf_counter()
        yield
        self.took(name, why, time.perf_counter() - begin)

    def took(self, name: str, why: str, seconds: float) -> None:
        """Note how long a pass took that leaves the graph as it is."""
        log.info("%s: %s %.1f ms", self.stem, name, 1000 * seconds)
        if self.folder is not None:
            nodes = self.done[-1].nodes_after
            self.done.append(PassRecord(name, why, 1000 * seconds, nodes, nodes))

    def _write(self, name: str, heading: list[str], graph: Graph) -> str:
        assert self.folder is not None, "there is a folder to write to"
        file = f"{len(self._files):02}-{name}.ir"
        self._files.append(file)
        comment = "".join("# {}\n".format(line.replace("\n", " ")) for line in heading)
        _write(self.folder / self.stem / file, comment + print_graph(graph))
        return file


class Passes:
    """The passes of a whole compilation."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.blocks: dict[str, BlockPasses] = {}
        self._traced: dict[str, float] = {}

    def traced(self, graph: Graph, seconds: float) -> None:
        """Note that a block was traced."""
        log.info("%s: trace %.1f ms, %d nodes", graph.name, 1000 * seconds, len(graph.calls))
        self._traced[graph.name] = seconds

    def over(self, traced: Graph, variant: str) -> BlockPasses:
        """Begin with the passes over a block for one variant."""
        passes = BlockPasses(traced, variant, self._traced.get(traced.name, 0.0), self.folder)
        self.blocks[passes.stem] = passes
        return passes

    def write(self) -> None:
        """Write the tables and the summary. Raises CompileError."""
        if self.folder is None:
            return
        for block in self.blocks.values():
            _write(self.folder / block.stem / TABLE, "\n".join(_table(block)) + "\n")
        summary = {
            "blocks": [
                {
                    "block": b.block,
                    "variant": b.variant,
                    "kernels": b.kernels,
                    "passes": msgspec.to_builtins(b.done),
                }
                for b in self.blocks.values()
            ]
        }
        _write(self.folder / SUMMARY, json.dumps(summary, indent=1, ensure_ascii=False) + "\n")


@contextmanager
def record_passes(folder: Path | None) -> Generator[Passes]:
    """Collect what passes do; with a folder, write it there, in place of what an earlier compilation left.

    Raises CompileError for a folder that is not one of ours, or cannot be written.
    """
    passes = Passes(folder)
    if folder is not None:
        _clear(folder)
        passes.write()  # marks the folder as ours from the first moment
    try:
        yield passes
    finally:
        passes.write()


def _clear(folder: Path) -> None:
    if not os.path.lexists(folder):
        return
    try:
        if not folder.is_dir() or (any(folder.iterdir()) and not (folder / SUMMARY).is_file()):
            raise CompileError(
                f"{folder}: not made by --dump-passes, since it has no {SUMMARY}; move it away or choose another -o"
            )
        shutil.rmtree(folder)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _write(path: Path, text: str) -> None:
    try:
        write_whole(path, text.encode(errors="replace"))
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> CompileError:
    return CompileError(
        f"{path}: cannot be written ({error.strerror or error}); choose another folder with -o"
    )


def _diff(before: Graph, after: Graph, old: str, new: str) -> str:
    lines = unified_diff(
        print_graph(before).splitlines(), print_graph(after).splitlines(), old, new, lineterm=""
    )
    return "".join(f"{line}\n" for line in lines)


def _table(block: BlockPasses) -> Iterator[str]:
    """A line for each pass, then what those did that fired or were refused."""
    first, last = block.done[0], block.done[-1]
    kernels = "" if block.kernels is None else f", {block.kernels} kernels"
    yield f"{block.stem}: {first.nodes_after} nodes traced, {last.nodes_after} after the rules{kernels}"
    yield ""
    width = max(len(done.name) for done in block.done)
    yield f"{'pass':<{width}}  {'fired':>5}  {'refused':>7}  {'nodes':>10}  {'ms':>9}"
    for done in block.done:
        nodes = f"{done.nodes_before} -> {done.nodes_after}" if done.firings else f"{done.nodes_after}"
        firings, refusals = len(done.firings) or "", len(done.refused) or ""
        yield f"{done.name:<{width}}  {firings:>5}  {refusals:>7}  {nodes:>10}  {done.ms:>9.2f}"
    yield f"{'in all':<{width}}  {'':>5}  {'':>7}  {'':>10}  {sum(done.ms for done in block.done):>9.2f}"
    for done in block.done:
        if not done.firings and not done.refused:
            continue
        yield ""
        yield f"{done.name}: {done.why}"
        yield from (f"  fired at {replacement(firing.at, firing.made)}" for firing in done.firings)
        yield from (f"  refused at {refusal(each.at, each.reason)}" for each in done.refused)
        yield from done.diff.splitlines()
