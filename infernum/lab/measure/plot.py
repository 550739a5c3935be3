"""A picture of latencies: results of `bench latency` and `bench throughput` as bars, a group for each model and size.

Of `bench throughput` it has the steps of equal requests: a step gives one token of each sequence.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, cast

from infernum.errors import RequestError

WIDTH = 700
LEFT, LONGEST = 196, 290
"""Where bars begin, and the length of a group's longest; pixels, as all sizes here."""

BAR, ROW, TITLE, HEADER, FOOTER = 20, 28, 30, 34, 34
BASELINE = 15
"""From the top of a bar to the baseline of its text."""

STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328 }
.head { font-weight: 600; font-size: 15px } .group { font-weight: 600 } .quiet { fill: #59636e; font-size: 12px }
.page { fill: #ffffff } .line { stroke: #59636e; stroke-dasharray: 3 3 }
.bound { fill: #aeb6bf } .fused { fill: #0969da } .unfused { fill: #80b8f5 } .other { fill: #d08a45 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .quiet { fill: #9aa4af } .page { fill: #0d1117 } .line { stroke: #9aa4af }
  .bound { fill: #57606a } .fused { fill: #3d8bfd } .unfused { fill: #265a9e } .other { fill: #b5712f }
}
"""

Result = Mapping[str, Any]

NEEDED: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("date", "gpu", "model", "dtype"), str),
    **dict.fromkeys(("batch", "prompt_tokens", "output_tokens"), int),
    **dict.fromkeys(("ms_per_token", "floor_ms_per_token", "fraction_of_bound"), (int, float)),
    "fuse": bool,
}
"""The fields of a result that the picture shows."""


@dataclass(frozen=True)
class Bar:
    """One time: milliseconds per token, with a label before the bar and a note behind it. `kind` decides its colour."""

    kind: str
    label: str
    milliseconds: float
    note: str


@dataclass(frozen=True)
class BarGroup:
    """Bars of one scale: the times of one model at one size. `origin`: GPU, dtype and date of the measurement."""

    title: str
    origin: str
    bars: tuple[Bar, ...]


def read_results(paths: Sequence[Path]) -> list[Result]:
    """The results in files of `bench latency --output` or `bench throughput --output`, several of the latter.

    Raises RequestError naming the file that is something else.
    """
    return [result for path in paths for result in _read_results(path)]


def _read_results(path: Path) -> list[Result]:
    hint = "give what `bench latency --output` or `bench throughput --output` has written on a GPU"
    try:
        content: object = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise RequestError(f"{path}: is no JSON; {hint}") from error
    result = cast("Result", content if isinstance(content, dict) else {})
    match result.get("benchmark"):
        case "latency":
            results = [result]
        case "throughput":
            results = _steps(result)
        case _:
            raise RequestError(f"{path}: is no result of `bench latency` or `bench throughput`; {hint}")
    for each in results:
        for name, kind in NEEDED.items():
            if not isinstance(each.get(name), kind):
                raise RequestError(f"{path}: its {name} is {each.get(name)!r}; {hint}")
    if not results:
        raise RequestError(f"{path}: has no step of equal requests; measure some by --batch")
    return results


def _steps(throughput: Result) -> list[Result]:
    """The steps of equal requests as results of `bench latency`."""
    return [
        {
            **throughput,
            **scenario,
            "ms_per_token": scenario.get("ms_per_step"),
            "floor_ms_per_token": scenario.get("floor_ms_per_step"),
        }
        for scenario in throughput.get("scenarios", ())
        if scenario.get("scenario") == "equal"
    ]


def groups_of(results: Sequence[Result]) -> list[BarGroup]:
    """The groups in the order of the results. Raises RequestError when one bar has two results."""
    by_title: dict[str, dict[bool, Result]] = {}
    for result in results:
        title = _title(result)
        how = "fused" if result["fuse"] else "not fused"
        if by_title.setdefault(title, {}).setdefault(bool(result["fuse"]), result) is not result:
            raise RequestError(f"two results are of {title}, {how}; give one of them")
    return [_group(title, by_fuse) for title, by_fuse in by_title.items()]


def _title(result: Result) -> str:
    unit = "request" if result["benchmark"] == "throughput" else "sequence"
    sequences = f"one {unit}" if result["batch"] == 1 else f"{result['batch']} {unit}s"
    chosen = ", sampled" if result.get("sampling") else ""
    return (
        f"{result['model']}, {sequences}, {result['prompt_tokens']} in, {result['output_tokens']} out{chosen}"
    )


def _group(title: str, by_fuse: Mapping[bool, Result]) -> BarGroup:
    main = by_fuse.get(True) or by_fuse[False]
    bars = [Bar("bound", "bound", main["floor_ms_per_token"], "weights and cache, read once")]
    for fused, kind, label in ((True, "fused", "Infernum"), (False, "unfused", "Infernum, --no-fuse")):
        if result := by_fuse.get(fused):
            note = f"{result['fraction_of_bound']:.0%} of the bound"
            bars.append(Bar(kind, label, result["ms_per_token"], note))
    if theirs := main.get("against"):
        name = "transformers + compile" if theirs["name"] == "transformers" else str(theirs["name"])
        ratio = theirs["ms_per_token"] / main["ms_per_token"]
        bars.append(Bar("other", name, theirs["ms_per_token"], f"{ratio:.2f}× as long"))
    return BarGroup(title, f"{main['gpu']}, {main['dtype']}, {str(main['date'])[:10]}", tuple(bars))


def draw(groups: Sequence[BarGroup]) -> str:
    """The picture as SVG text, which depends on nothing but `groups`."""
    height = HEADER + sum(TITLE + ROW * len(group.bars) for group in groups) + FOOTER
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}"'
        f' viewBox="0 0 {WIDTH} {height}" role="img">',
        "<title>Milliseconds per token</title>",
        f"<desc>{escape(_description(groups))}</desc>",
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{WIDTH}" height="{height}" rx="6"/>',
        _text(16, 24, "Milliseconds per token, shorter is better", "head"),
    ]
    top = HEADER
    for group in groups:
        lines += _draw_group(group, top)
        top += TITLE + ROW * len(group.bars)
    origins = dict.fromkeys(group.origin for group in groups)
    lines.append(_text(16, top + 22, "; ".join(origins), "quiet"))
    return "\n".join([*lines, "</svg>", ""])


def _draw_group(group: BarGroup, top: int) -> list[str]:
    scale = LONGEST / max(bar.milliseconds for bar in group.bars)
    lines = [_text(16, top + 20, group.title, "group")]
    for number, bar in enumerate(group.bars):
        y = top + TITLE + number * ROW
        width = bar.milliseconds * scale
        lines += [
            _text(LEFT - 10, y + BASELINE, bar.label, "label", end=True),
            f'<rect class="{bar.kind}" x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR}" rx="2"/>',
            _text(LEFT + width + 8, y + BASELINE, f"{bar.milliseconds:.3f}", "value"),
            _text(LEFT + width + 52, y + BASELINE, bar.note, "quiet"),
        ]
    bound = next(bar.milliseconds for bar in group.bars if bar.kind == "bound") * scale + LEFT
    first, last = top + TITLE + BAR, top + TITLE + ROW * (len(group.bars) - 1) + BAR
    lines.append(f'<line class="line" x1="{bound:.1f}" y1="{first}" x2="{bound:.1f}" y2="{last}"/>')
    return lines


def _text(x: float, y: float, text: str, kind: str, *, end: bool = False) -> str:
    anchor = ' text-anchor="end"' if end else ""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}"{anchor}>{escape(text)}</text>'


def _description(groups: Sequence[BarGroup]) -> str:
    """All numbers as a sentence, for readers who do not see the picture."""
    return "; ".join(
        f"{group.title}: " + ", ".join(f"{bar.label} {bar.milliseconds:.3f} ms" for bar in group.bars)
        for group in groups
    )
