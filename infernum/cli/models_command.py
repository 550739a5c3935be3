"""`infernum models`: the model types that can be compiled, and the presets with their sizes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from infernum.cli import options

if TYPE_CHECKING:
    from collections.abc import Iterator

_NUMBERS = ("parameters", "weights", "KV cache a token", "context", "memory")


@click.command("models", short_help="List model types and presets, with sizes and memory.")
@options.tensor_parallel_size
@options.as_json
@options.plugin
@options.verbose
def command(tensor_parallel_size: int, as_json: bool) -> None:
    """List the model types that can be compiled, and the presets: models that need no folder.

    A preset is a model's shape, for measurements with random weights; the demos have weights too. Memory is that of
    the weights in the preset's dtype, and of the KV cache of one sequence as long as the context. With
    --tensor-parallel-size it is that of each GPU, and presets that do not divide are left out.
    """
    from infernum.cli.console import print_json, print_table, say, size_text
    from infernum.program import check_number_of_ranks

    check_number_of_ranks(tensor_parallel_size)
    types, presets = list(_model_types()), list(_presets(tensor_parallel_size))
    if as_json:
        print_json({"model_types": types, "presets": presets})
        return
    print_table(
        "Model types", ("model_type", "declared in", "what it is"), [tuple(t.values()) for t in types]
    )
    rows = [
        (
            preset["name"],
            preset["model_type"],
            f"{preset['parameters'] / 1e9:.3g} B",
            preset["dtype"],
            size_text(preset["weight_bytes"]),
            size_text(preset["kv_bytes_per_token"]),
            f"{preset['context']:,}",
            size_text(preset["memory_bytes"]),
        )
        for preset in presets
    ]
    columns = ("preset", "model_type", "parameters", "dtype", *_NUMBERS[1:])
    title = "Presets" if tensor_parallel_size == 1 else f"Presets, on each of {tensor_parallel_size} GPUs"
    print_table(title, columns, rows, numbers=_NUMBERS)
    say(
        "A folder of any of these model types can be given in place of a preset; `infernum doctor FOLDER` checks it."
    )


def _model_types() -> Iterator[dict[str, str]]:
    """Each model type, its module, and the first sentence of its configuration's docstring."""
    from infernum.models.config import families, find_family

    for model_type in families():
        config = find_family(model_type).config_of(model_type)
        about = (config.__doc__ or "").strip().split("\n\n")[0]
        yield {
            "model_type": model_type,
            "module": config.__module__.removeprefix("infernum."),
            "about": re.split(r": |(?<=\))\. ", " ".join(about.split()))[0],
        }


def _presets(ranks: int) -> Iterator[dict[str, Any]]:
    """Each preset that divides among so many ranks, with the sizes of a rank in bytes."""
    from infernum.errors import CompileError
    from infernum.graph_bundle import describe_graphs
    from infernum.models.presets import PRESETS, resolve
    from infernum.runtime.kv_cache import plan_cache, sequence_bytes
    from infernum.weights.plan import plan_weights

    for name in PRESETS:
        source = resolve(name)
        try:
            manifest = describe_graphs(source, ranks=ranks)
        except CompileError:
            continue
        weights = plan_weights(manifest)
        token, context = plan_cache(manifest).total_page_bytes // manifest.page_size, manifest.model.context
        yield {
            "name": name,
            "model_type": source.config.model_type,
            "parameters": sum(weight.size for weight in weights.stored),
            "dtype": manifest.dtype,
            "weight_bytes": weights.total_bytes,
            "kv_bytes_per_token": token,
            "context": context,
            "memory_bytes": weights.total_bytes + sequence_bytes(manifest, context),
            "has_weights": source.folder is not None,
        }
