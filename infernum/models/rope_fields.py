"""Reads the rotary embedding of a model from config.json, in both spellings of transformers."""

from __future__ import annotations

from infernum.errors import ConfigError
from infernum.models.fields import Fields, Unsupported
from infernum.rope import KINDS, Rope

_REASONS = {
    "dynamic": "its frequencies change with the length of the sequence, which a compiled model cannot follow",
    "yarn": "YaRN scaling is not implemented",
    "longrope": "LongRoPE scaling is not implemented",
}
_PARTIAL = {"partial_rotary_factor": Unsupported("every element of a head must be rotated", (1,))}


def read_rope(fields: Fields, default_theta: float = 10000.0) -> Rope:
    """The rotary embedding that `fields` define.

    transformers 4 writes `rope_theta` and `rope_scaling` (its kind is `type` or `rope_type`), transformers 5
    puts all of it into `rope_parameters`. Raises ConfigError for other kinds of scaling, for a partial
    rotation and for two spellings that contradict each other.
    """
    fields.refuse(_PARTIAL)
    theta = fields.number("rope_theta", default_theta)
    spellings = [
        (name, _read(child, fields, theta))
        for name in ("rope_scaling", "rope_parameters")
        if (child := fields.child(name)) is not None
    ]
    if not spellings:
        return Rope(theta=theta)
    name, rope = spellings[-1]
    if any(other != rope for _, other in spellings):
        raise fields.error("rope_scaling", "contradicts rope_parameters; keep only the right one")
    if fields.get("rope_theta") is not None and rope.theta != theta:
        raise fields.error("rope_theta", f"contradicts {name}.rope_theta; keep only the right one")
    return rope


def _read(child: Fields, parent: Fields, theta: float) -> Rope:
    """The rotary embedding of one object of rope parameters. Its unknown fields become warnings of `parent`."""
    nested = child.first_object()
    if nested is not None:
        raise child.error(nested, "is not supported: all layers must share one rotary embedding")
    child.refuse(_PARTIAL)
    kind = _kind(child)
    theta = child.number("rope_theta", theta)
    match kind:
        case "linear":
            rope = Rope(kind, theta, factor=child.number("factor"))
        case "llama3":
            rope = _llama3(child, parent, theta)
        case _:
            rope = Rope(kind, theta)
    child.warn_unread(to=parent)
    return rope


def _kind(child: Fields) -> str:
    names = [name for name in ("rope_type", "type") if child.get(name) is not None]
    if not names and child.get("factor") is not None:
        raise child.error("rope_type", "is missing; it says what the factor means")
    kinds = [child.text(name) for name in names] or ["default"]
    if len(set(kinds)) > 1:
        raise child.error("rope_type", f"contradicts type = {kinds[1]!r}; keep only the right one")
    if kinds[0] not in KINDS:
        reason = _REASONS.get(kinds[0], "this kind of scaling is not known")
        raise child.error(names[0], f"is not supported: {reason} (supported: {', '.join(KINDS)})")
    return kinds[0]


def _llama3(child: Fields, parent: Fields, theta: float) -> Rope:
    """Llama 3's scaling. `original_max_position_embeddings` beside the object wins, as in transformers."""
    name = "original_max_position_embeddings"
    original = parent.integer(name) if parent.get(name) is not None else child.integer(name)
    if child.get(name) is not None and child.integer(name) != original:
        raise child.error(name, f"contradicts {name} = {original} beside it; keep only the right one")
    factors = {name: child.number(name) for name in ("factor", "low_freq_factor", "high_freq_factor")}
    try:
        return Rope("llama3", theta, **factors, original_max_position=original)
    except ConfigError as error:
        raise ConfigError(f"{parent.where}: {error}") from None
