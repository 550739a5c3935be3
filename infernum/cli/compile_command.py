"""`infernum compile`: compiles a model into a bundle."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from infernum.cli import options

if TYPE_CHECKING:
    from infernum.bundle import Bundle
    from infernum.manifest import BlockVariant
    from infernum.models.presets import ModelSource

NUMPY = "numpy"
"""The `--arch` of a bundle that holds graphs and no kernels."""


@click.command("compile", short_help="Compile a model into a bundle.")
@click.argument("model")
@click.option("--fuse/--no-fuse", default=None, help="Apply the fusion rules.  [default: fuse]")
@options.rules
@click.option(
    "--arch",
    metavar="ARCH",
    help="sm_80, sm_86, sm_89, sm_90a, sm_100a or native. Default: native, or sm_90a without a GPU."
    " numpy compiles only graphs, for --device cpu.",
)
@options.dtype
@click.option(
    "--max-batch-tokens",
    type=int,
    default=4096,
    show_default=True,
    help="Largest number of tokens in one step.",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Folder of the bundle. Default: build/MODEL."
)
@click.option(
    "--dump-passes",
    is_flag=True,
    help="Write the graph after each pass, the changes and the time of the pass to OUTPUT-passes.",
)
@click.option(
    "--tuned/--no-tuned",
    default=True,
    show_default=True,
    help="Use the parameters that `infernum tune` chose for this model on this GPU.",
)
@options.deterministic
@options.tensor_parallel_size
@options.as_json
@options.plugin
@options.verbose
def command(
    model: str,
    fuse: bool | None,
    rules: str,
    arch: str | None,
    dtype: str,
    max_batch_tokens: int,
    output: Path | None,
    dump_passes: bool,
    deterministic: bool,
    tensor_parallel_size: int,
    tuned: bool,
    as_json: bool,
) -> None:
    """Compile MODEL, a preset or a folder in Hugging Face's format, into a bundle."""
    from infernum.cli.console import print_json, progress_bar, warn
    from infernum.errors import CompileError
    from infernum.machine import default_arch, native_arch, tuned_here
    from infernum.models.config import config_hash
    from infernum.models.presets import resolve
    from infernum.opening import check_folder

    if max_batch_tokens < 1:
        raise CompileError(f"--max-batch-tokens is {max_batch_tokens}; it must be 1 or more")
    source = resolve(model)
    warn(source.warnings)
    check_folder(source)
    if arch == NUMPY:
        if fuse or rules or dump_passes or deterministic:
            raise CompileError(
                f"--arch {NUMPY}: takes no --fuse, --rules, --dump-passes or --deterministic; its graphs stay as they"
                " were traced, and are deterministic"
            )
        folder = output or Path("build") / f"{source.name}-numpy"
        _trace(source, folder, dtype, max_batch_tokens, tensor_parallel_size, as_json=as_json)
        return
    from infernum.compiler import Options, compile_model

    out = output or Path("build") / (f"{source.name}-nofuse" if fuse is False else source.name)
    if dump_passes and not out.name:
        raise CompileError(f"-o {out}: --dump-passes writes beside that folder, by its name; name the folder")
    compiled_for = default_arch() if arch is None else native_arch() if arch == "native" else arch
    chosen = Options(
        arch=compiled_for,
        dtype=dtype,
        fuse=fuse is not False,
        rules=options.split_rules(rules),
        max_batch_tokens=max_batch_tokens,
        dump=out.with_name(f"{out.name}-passes") if dump_passes else None,
        tuned=tuned_here(config_hash(source.config), compiled_for) if tuned else {},
        deterministic=deterministic,
        ranks=tensor_parallel_size,
    )
    block_seconds: dict[str, float] = {}
    begin = time.perf_counter()
    with progress_bar() as progress:
        bundle = compile_model(source, chosen, out, progress=progress, seconds=block_seconds)
    seconds = time.perf_counter() - begin
    spilling = [
        f"{v.block}.{v.variant}: {k.name}" for v in _variants(bundle) for k in v.kernels if k.spill_bytes
    ]
    warn([f"{name} spills registers to memory" for name in spilling])
    if as_json:
        passes = {"passes": str(chosen.dump)} if chosen.dump else {}
        print_json(_summary(bundle, block_seconds, seconds) | passes)
        return
    _print_summary(bundle, block_seconds, seconds)
    if chosen.dump:
        click.echo(f"{chosen.dump}: what each pass changed, and how long it took")


def _trace(
    source: ModelSource, out: Path, dtype: str, max_batch_tokens: int, ranks: int, *, as_json: bool
) -> None:
    """Write a bundle for NumPy, which holds graphs and no kernels."""
    from infernum.cli.console import print_json
    from infernum.graph_bundle import trace_model

    begin = time.perf_counter()
    bundle = trace_model(source, out, dtype=dtype, max_batch_tokens=max_batch_tokens, ranks=ranks)
    seconds = time.perf_counter() - begin
    if as_json:
        print_json(_summary(bundle, {}, seconds))
        return
    click.echo(
        f"{out}: {len(bundle.manifest.blocks)} graphs for NumPy, traced in {seconds:.1f} s;"
        f" run them with `infernum run PROMPT --model {source.folder or source.name} --bundle {out} --device cpu`"
    )


def _summary(bundle: Bundle, block_seconds: dict[str, float], seconds: float) -> dict[str, object]:
    """What `--json` prints; `block_seconds` is the compile time of each block and variant."""
    manifest, variants = bundle.manifest, _variants(bundle)
    return {
        "bundle": str(bundle.folder),
        "model": manifest.model.name,
        "arch": manifest.arch,
        "dtype": manifest.dtype,
        "fuse": manifest.fuse,
        "seconds": round(seconds, 3),
        "tuned_kernels": _count_tuned(variants),
        "blocks": [
            {
                "block": v.block,
                "variant": v.variant,
                "kernels_before_fusion": v.kernels_before_fusion,
                "kernels": len(v.steps),
                "registers": max((k.registers for k in v.kernels), default=0),
                "spill_bytes": sum(k.spill_bytes for k in v.kernels),
                "seconds": round(block_seconds.get(f"{v.block}.{v.variant}", 0.0), 3),
            }
            for v in variants
        ],
    }


def _variants(bundle: Bundle) -> list[BlockVariant]:
    return [variant for block in bundle.manifest.blocks.values() for variant in block.values()]


def _count_tuned(variants: list[BlockVariant]) -> int:
    """Number of kernels whose parameters differ from the architecture's default."""
    parameters = [k.parameters for v in variants for k in v.kernels if k.parameters is not None]
    return sum(chosen.values != chosen.default for chosen in parameters)


def _print_summary(bundle: Bundle, block_seconds: dict[str, float], seconds: float) -> None:
    from infernum.cli.bundle_tables import sizes_of
    from infernum.cli.console import print_table

    manifest, variants = bundle.manifest, _variants(bundle)
    rows = [(*sizes_of(v), f"{block_seconds[f'{v.block}.{v.variant}']:.2f} s") for v in variants]
    columns = (
        "block",
        "variant",
        "kernels before fusion",
        "after",
        "registers (max)",
        "spilled bytes",
        "time",
    )
    title = f"{manifest.model.name}, {manifest.dtype}, {manifest.arch}, {'fused' if manifest.fuse else 'not fused'}"
    print_table(title, columns, rows, numbers=columns[2:])
    if tuned := _count_tuned(variants):
        click.echo(
            f"{tuned} kernels have parameters that were tuned on this GPU; --no-tuned compiles without them"
        )
    click.echo(
        f"{bundle.folder}: compiled in {seconds:.1f} s; look into it with `infernum inspect {bundle.folder}`"
    )
