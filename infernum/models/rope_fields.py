"""Reads the rotary embedding of a model from config.json, in both spellings of transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

from infernum.errors import ConfigError
from infernum.models.fields import Fields, Unsupported, number_problem
from infernum.rope import KINDS, Rope, longrope_attention_factor, yarn_attention_factor

_ORIGINAL = "original_max_position_embeddings"
_PARTIAL = {"partial_rotary_factor": Unsupported("every element of a head must be rotated", (1,))}
_BETA = {"llama_4_scaling_beta": Unsupported("queries are not scaled by position in this model type", (0,))}


def read_rope(
    fields: Fields,
    head_dim: int,
    context: int,
    *,
    layer_type: str = "full_attention",
    theta: str = "rope_theta",
    default_theta: float = 10000.0,
    scaled: bool = True,
    default_partial: float | None = None,
    interleaved: bool = False,
    scaled_queries: bool = False,
) -> Rope:
    """The rotary embedding that `fields` define for the layers of one type.

    transformers 4 writes `rope_theta` and `rope_scaling` (its kind is `type` or `rope_type`), transformers 5
    puts all of it into `rope_parameters`, which may hold an object for each type of layers.

    head_dim         elements of a head
    context          positions of the longest sequence, max_position_embeddings
    layer_type       the type of layers, as in `layer_types`
    theta            the field beside `rope_scaling` that holds theta
    scaled           False: `rope_scaling`, and `rope_parameters` not by layer type, are of the other layers
    default_partial  the part of a head that is turned where `partial_rotary_factor` is absent; None: the model type
                     turns whole heads, and nothing else is supported
    interleaved      neighbouring elements pair up
    scaled_queries   queries may be scaled by position, with `llama_4_scaling_beta`

    A non-empty `rope_scaling` replaces `rope_parameters` that are not scaled. Raises ConfigError for unknown kinds,
    for missing or wrong numbers, and for two spellings that contradict each other.
    """
    if default_partial is None:
        fields.refuse(_PARTIAL)
    top = fields.number(theta, default_theta)
    part = fields.number("partial_rotary_factor", default_partial or 1.0)
    unscaled = _suited(Rope, fields, head_dim, theta=top, partial=part, interleaved=interleaved)
    spellings: dict[str, Rope] = {}
    for name in ("rope_parameters", "rope_scaling"):
        child = fields.child(name)
        by_type = child is not None and child.first_object() is not None
        if child is not None and by_type:
            child = child.child(layer_type)
            if child is None:
                raise fields.error(name, f"has no {layer_type}; add it from the original model")
        if child is None or not (scaled or by_type):
            continue
        reader = _Reader(child, fields, by_type, head_dim, context, unscaled)
        child.refuse(({} if scaled_queries else _BETA) | (_PARTIAL if default_partial is None else {}))
        spellings[child.path("").rstrip(".")] = reader.rope()
        child.warn_unread(frozenset({"max_position_embeddings"}), to=fields)
    return _the_one(spellings, unscaled, fields, theta)


def _suited(make: Callable[..., Rope], fields: Fields, head_dim: int, **settings: Any) -> Rope:
    """The rotary embedding with these settings, which must suit the model's head size. Errors name the file."""
    try:
        rope = make(**settings)
        if head_dim % 2 == 0:
            rope.rotary(head_dim)
        return rope
    except ConfigError as error:
        raise ConfigError(f"{fields.where}: {error}") from None


def _the_one(spellings: dict[str, Rope], unscaled: Rope, fields: Fields, theta: str) -> Rope:
    """The rotary embedding that all spellings agree on. `rope_scaling`, the last, may scale what the other does not."""
    if not spellings:
        return unscaled
    *others, (name, rope) = spellings.items()
    for _, other in others:
        if other not in (rope, replace(unscaled, theta=rope.theta, partial=rope.partial)):
            raise fields.error("rope_scaling", "contradicts rope_parameters; keep only the right one")
    if fields.get(theta) is not None and rope.theta != unscaled.theta:
        raise fields.error(theta, f"contradicts {name}.rope_theta; keep only the right one")
    return rope


@dataclass(frozen=True)
class _Reader:
    """Reads one object of rope parameters.

    fields    the object
    parent    the object around it
    by_type   True: the object is of one type of layers, among others
    unscaled  the rotary embedding that an empty object means
    """

    fields: Fields
    parent: Fields
    by_type: bool
    head_dim: int
    context: int
    unscaled: Rope

    def rope(self) -> Rope:
        """The rotary embedding, which must suit the model's head size."""
        theta = self.fields.number("rope_theta", self.unscaled.theta)
        beta = self.fields.number("llama_4_scaling_beta", 0.0, zero=True)
        settings = {"theta": theta, "partial": self._partial(), "beta": beta, **self._scaling()}
        if beta:
            settings["original_max_position"] = self._original()
        return _suited(partial(replace, self.unscaled), self.parent, self.head_dim, **settings)

    def _scaling(self) -> dict[str, Any]:
        """The kind and its settings, by the names of the fields of `Rope`."""
        fields = self.fields
        match kind := self._kind():
            case "linear":
                return {"kind": kind, "factor": fields.number("factor")}
            case "proportional":
                return {"kind": kind, "factor": fields.number("factor", 1.0)}
            case "dynamic":
                # The frequencies change only for sequences beyond the context, and no bundle computes those.
                fields.number("factor")
                fields.refuse({"alpha": Unsupported("a fixed alpha is not implemented")})
                return {}
            case "llama3":
                numbers = {n: fields.number(n) for n in ("factor", "low_freq_factor", "high_freq_factor")}
                return {"kind": kind, "original_max_position": self._original(required=True), **numbers}
            case "yarn":
                return {"kind": kind, **self._yarn()}
            case "longrope":
                return {"kind": kind, **self._longrope()}
            case _:
                return {}

    def _kind(self) -> str:
        fields = self.fields
        names = [name for name in ("rope_type", "type") if fields.get(name) is not None]
        if not names and fields.get("factor") is not None:
            raise fields.error("rope_type", "is missing; it says what the factor means")
        kinds = [fields.text(name) for name in names] or ["default"]
        if len(set(kinds)) > 1:
            raise fields.error("rope_type", f"contradicts type = {kinds[1]!r}; keep only the right one")
        if kinds[0] not in (*KINDS, "dynamic", "su"):
            supported = ", ".join(sorted((*KINDS, "dynamic")))
            raise fields.error(
                names[0], f"is not supported: this kind of scaling is not known (supported: {supported})"
            )
        # The first files of Phi-3 call LongRoPE "su" or "yarn".
        return (
            "longrope" if kinds[0] == "su" or (kinds[0] == "yarn" and "short_factor" in fields) else kinds[0]
        )

    def _partial(self) -> float:
        return self.fields.number("partial_rotary_factor", self.unscaled.partial)

    def _yarn(self) -> dict[str, Any]:
        fields, original = self.fields, self._original()
        factor = fields.number("factor", self.context / original if "factor" in fields else None)
        mscale, mscale_all_dim = (fields.number(n, 0.0, zero=True) for n in ("mscale", "mscale_all_dim"))
        inferred = yarn_attention_factor(factor, mscale, mscale_all_dim)
        truncate = fields.flag("truncate", True)
        return {
            "factor": factor,
            "original_max_position": original,
            "attention_factor": fields.number("attention_factor", inferred),
            "beta_fast": fields.number("beta_fast", 0.0, zero=True) or 32.0,
            "beta_slow": fields.number("beta_slow", 0.0, zero=True) or 1.0,
            "truncate": truncate or self.by_type,  # transformers reads the flag of the object around this one
        }

    def _longrope(self) -> dict[str, Any]:
        fields, original = self.fields, self._original()
        inferred = longrope_attention_factor(fields.number("factor", self.context / original), original)
        return {
            "short_factor": self._numbers("short_factor"),
            "long_factor": self._numbers("long_factor"),
            "original_max_position": original,
            "attention_factor": fields.number("attention_factor", inferred),
        }

    def _numbers(self, name: str) -> tuple[float, ...]:
        """A list of positive numbers, one for each pair of elements that is turned."""
        values = self.fields.get(name)
        if values is None:
            raise self.fields.missing(name)
        if not isinstance(values, list) or any(map(number_problem, cast("list[object]", values))):
            raise self.fields.error(name, "must be a list of numbers, greater than 0")
        pairs = int(self.head_dim * self._partial()) // 2
        if len(cast("list[object]", values)) != pairs:
            raise self.fields.error(
                name, f"must have {pairs} numbers, one for each pair of elements that is turned"
            )
        return tuple(float(value) for value in cast("list[float]", values))

    def _original(self, *, required: bool = False) -> int:
        """The context of the first training. The field beside the object wins, as in transformers."""
        inside = self.fields.get(_ORIGINAL) is not None
        if self.by_type or self.parent.get(_ORIGINAL) is None:
            return self.fields.integer(_ORIGINAL, None if required else self.context)
        original = self.parent.integer(_ORIGINAL)
        if inside and self.fields.integer(_ORIGINAL) != original:
            raise self.fields.error(
                _ORIGINAL, f"contradicts {_ORIGINAL} = {original} beside it; keep only the right one"
            )
        return original
