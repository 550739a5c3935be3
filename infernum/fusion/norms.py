"""Rules for normalisation: into the product that reads it, or together with the addition before it."""

from __future__ import annotations

from infernum.fusion.linear import is_product, needs_gemv, rows_slot
from infernum.ir.block import Tensor
from infernum.ir.graph import Value
from infernum.ir.rewrite import Site, absorb, fusion
from infernum.ops import add, rms_norm
from infernum.ops.linear import STAGED_LIMIT


def _is_read_as_rows(site: Site) -> str | None:
    """A residual or a weight is not read row by row, so it cannot be normalised on the way."""
    (norm,) = site.match.names
    reads = site.graph.users(Value(norm))
    host = site.graph.node(reads[0][0])
    if [slot for _, slot in reads] == [rows_slot(host)]:
        return None
    readers = ", ".join(dict.fromkeys(user for user, _ in reads))
    return f"%{norm} is read by {readers} otherwise than as the rows that {host.name} multiplies"


def _can_be_staged(site: Site) -> str | None:
    refusal = _is_read_as_rows(site)
    if refusal:
        return refusal
    rows, x = site.target.max_tokens, site.type("x")
    needed = rows * x.width * x.dtype.bytes
    if needed > STAGED_LIMIT:
        sizes = f"{needed // 1024} KiB of shared memory, over {STAGED_LIMIT // 1024} KiB"
        return (
            f"{rows} normalised rows of {x.width} need {sizes}: room for {STAGED_LIMIT // (needed // rows)}"
        )
    return None


@absorb(
    "prologue",
    why="Each block of the GEMV normalises the few rows itself, which is cheaper than a kernel and a round trip.",
    is_host=is_product,
    host=needs_gemv,
    when=_can_be_staged,
)
def norm_into_gemv(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    return rms_norm(x, weight, eps=eps)


def _same_type(site: Site) -> str | None:
    x, residual = site.type("x"), site.type("residual")
    return None if x == residual else f"x is {x} and the residual {residual}: they are added row by row"


@fusion(why="The sum is normalised while it is still in registers; both are written.", when=_same_type)
def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    total = add(x, residual)
    return total, rms_norm(total, weight, eps=eps)
