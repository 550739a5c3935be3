"""Compares the machine code of Llama's kernels with that of another revision of this repository.

    python tests/compare_sass.py REVISION [--arch sm_90a] [--dtypes bfloat16 …]

Both trees compile the same configurations in every variant; a kernel's code is its section of the cubin. Prints each
kernel that differs, is new or is gone, and exits with 1 if there is one. Needs NVRTC and no GPU; takes some minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llama_shapes import DTYPES, SHAPES

ROOT = Path(__file__).resolve().parents[1]


def code_sections(cubin: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every kernel's code in a cubin (ELF64: `.text.NAME`)."""
    (start,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names_at = struct.unpack_from("<HHH", cubin, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", cubin, start + i * size) for i in range(count)]
    names = headers[names_at][4]
    for name_at, _, _, _, offset, length in headers:
        name = cubin[names + name_at : cubin.index(b"\0", names + name_at)].decode()
        if name.startswith(".text."):
            yield name.removeprefix(".text."), cubin[offset : offset + length]


def compile_here(arch: str, dtypes: list[str]) -> dict[str, str]:
    """SHA-256 of the code of every kernel, by configuration, block and name, of the tree that is imported."""
    from infernum.cache import cache_folder
    from infernum.codegen.nvrtc import compile_cuda
    from infernum.compiler import Options, emit_sources
    from infernum.models.presets import resolve

    hashes: dict[str, str] = {}
    for name, config in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "config.json").write_text(json.dumps(config))
            source = resolve(config if isinstance(config, str) else folder)
        for dtype in dtypes:
            blocks = emit_sources(source, Options(arch=arch, dtype=dtype)).blocks
            with ThreadPoolExecutor() as pool:
                cubins = pool.map(
                    lambda b: compile_cuda(b.source, name=b.stem, arch=arch, cache=cache_folder()), blocks
                )
                for block, cubin in zip(blocks, cubins, strict=True):
                    # Before schema 7 samplers were compiled for each variant, to the same code.
                    stem = block.block if block.block in ("greedy", "sample") else block.stem
                    for kernel, code in code_sections(cubin.data):
                        hashes[f"{name}, {dtype}: {stem}: {kernel}"] = hashlib.sha256(code).hexdigest()
    return hashes


def compile_tree(tree: Path, arch: str, dtypes: list[str]) -> dict[str, str]:
    """What `compile_here` gives for another tree, in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--dump", "--arch", arch, "--dtypes", *dtypes]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    return json.loads(subprocess.run(command, env=environment, cwd=tree, check=True, stdout=-1).stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("revision", nargs="?", default="HEAD")
    parser.add_argument("--arch", default="sm_90a")
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES))
    parser.add_argument("--dump", action="store_true", help="print the hashes of this tree as JSON")
    chosen = parser.parse_args()
    if chosen.dump:
        json.dump(compile_here(chosen.arch, chosen.dtypes), sys.stdout)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", chosen.revision], cwd=ROOT, check=True, stdout=-1).stdout
        subprocess.run(["tar", "-x"], cwd=folder, input=archive, check=True)
        before = compile_tree(Path(folder), chosen.arch, chosen.dtypes)
    after = compile_tree(ROOT, chosen.arch, chosen.dtypes)
    differing = [name for name in before.keys() & after.keys() if before[name] != after[name]]
    for what, names in (
        ("differs", differing),
        ("gone", before.keys() - after.keys()),
        ("new", after.keys() - before.keys()),
    ):
        for name in sorted(names):
            sys.stdout.write(f"{what}: {name}\n")
    equal = len(before.keys() & after.keys()) - len(differing)
    sys.stdout.write(f"{equal} kernels have the same code in both trees\n")
    return int(before != after)


if __name__ == "__main__":
    sys.exit(main())
