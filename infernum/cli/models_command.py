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
@options.as_json
@options.plugin
@options.verbose
def command(as_json: bool) -> None:
    """List the model types that can be compiled, and the presets: models that need no folder.

    A preset is a model's shape, for measurements with random weights; the demos have weights too. Memory is that of
    the weights in the preset's dtype, and of the KV cache of one sequence as long as the context.
    """
    from infernum.cli.console import print_json, print_table, say, size_text

    types, presets = list(_model_types()), list(_presets())
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
    print_table("Presets", columns, rows, numbers=_NUMBERS)
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


def _presets() -> Iterator[dict[str, Any]]:
    """Each preset, with sizes in bytes."""
    from infernum.graph_bundle import describe_graphs
    from infernum.models.presets import PRESETS, resolve
    from infernum.runtime.kv_cache import plan_cache, sequence_bytes
    from infernum.weights.plan import plan_weights

    for name in PRESETS:
        source = resolve(name)
        manifest = describe_graphs(source)
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
