"""Drawings of a block's graph: complete, the same every time, and without overlaps."""

from __future__ import annotations

import random
import xml.etree.ElementTree as ET
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest
from conftest import Outcome

from infernum.bundle import Bundle
from infernum.lab.explain.graphs import graphs_of
from infernum.lab.report.drawing import dot_of, picture_of, svg_of
from infernum.lab.report.layout import lay_out

SVG = "{http://www.w3.org/2000/svg}"


def texts_of(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("draw", [svg_of, dot_of])
def test_every_node_is_drawn_with_what_it_reads(
    dante_bundle: Bundle, draw: Callable[..., str], before: bool
) -> None:
    for variants in dante_bundle.manifest.blocks.values():
        for variant in variants.values():
            graph = graphs_of(dante_bundle, variant)[0 if before else 1]
            text = draw(picture_of(graph, variant, before=before))
            assert draw(picture_of(graph, variant, before=before)) == text
            for node in graph.nodes:
                assert node.name in text
            if not before:
                assert all(kernel.name in text for kernel in variant.kernels)


def test_svg_is_well_formed_and_has_an_arrow_for_each_value_read(dante_bundle: Bundle) -> None:
    variant = dante_bundle.manifest.blocks["decoder"]["t1"]
    picture = picture_of(graphs_of(dante_bundle, variant)[1], variant, before=False)
    root = ET.fromstring(svg_of(picture))
    arrows = [path for path in root.iter(f"{SVG}path") if path.get("marker-end")]
    assert len(arrows) == len(picture.edges) > 10
    assert len(list(root.iter(f"{SVG}rect"))) == len(picture.boxes)


def test_boxes_do_not_overlap_and_edges_lead_down_past_them() -> None:
    rng = random.Random(5)
    sizes = {f"n{i}": (40.0 + rng.randrange(150), 20.0 + rng.randrange(40)) for i in range(60)}
    edges = sorted({(f"n{rng.randrange(max(0, i - 9), i)}", f"n{i}") for i in range(1, 60) for _ in range(2)})
    layout = lay_out(sizes, edges)

    def sides(name: str) -> tuple[float, float, float, float]:
        (x, y), (width, height) = layout.centres[name], sizes[name]
        return x - width / 2, x + width / 2, y - height / 2, y + height / 2

    for a, b in combinations(sizes, 2):
        (left, right, top, bottom), (left_b, right_b, top_b, bottom_b) = sides(a), sides(b)
        assert right < left_b or right_b < left or bottom < top_b or bottom_b < top, f"{a} and {b} overlap"
    assert set(layout.paths) == set(edges)
    for points in layout.paths.values():
        heights = [y for _, y in points]
        assert heights == sorted(heights)
        for x, y in points[1:-1]:
            inside = [a < x < b and c < y < d for a, b, c, d in map(sides, sizes)]
            assert not any(inside), "an edge crosses a box"
    left, right = (pick(sides(n)[i] for n in sizes) for pick, i in ((min, 0), (max, 1)))
    assert left >= 0 and right <= layout.width


def test_a_chain_is_drawn_straight_and_what_passes_it_by_goes_around() -> None:
    sizes = dict.fromkeys("abcd", (80.0, 30.0))
    layout = lay_out(sizes, [("a", "b"), ("b", "c"), ("c", "d"), ("a", "d")])
    assert len({layout.centres[name][0] for name in "abcd"}) == 1
    bends = [x for x, _ in layout.paths["a", "d"][1:-1]]
    assert len(set(bends)) == 1
    assert abs(bends[0] - layout.centres["b"][0]) > 40


def test_the_command_writes_a_drawing_or_prints_it(
    infernum: Callable[..., Outcome], dante_bundle: Bundle, tmp_path: Path
) -> None:
    printed = infernum("graph", dante_bundle.folder, "decoder", "--variant", "t1", "--before")
    assert printed.code == 0
    assert "silu" in texts_of(printed.out)
    file = tmp_path / "decoder.dot"
    written = infernum("graph", dante_bundle.folder, "decoder", "-o", file)
    assert (written.code, written.out) == (0, f"{file}: decoder.t1, after fusion\n")
    assert file.read_text().startswith('digraph "decoder.t1, after fusion" {')


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["encoder"], "has no block 'encoder'; it has embed, decoder"),
        (["decoder", "--variant", "t2"], "decoder has no variant 't2'; it has t1, t8"),
        (["decoder", "-o", "/nowhere/x.svg"], "/nowhere/x.svg: cannot be written"),
    ],
)
def test_what_is_not_there_is_named(
    infernum: Callable[..., Outcome], dante_bundle: Bundle, args: list[str], complaint: str
) -> None:
    outcome = infernum("graph", dante_bundle.folder, *args)
    assert outcome.code == 2
    assert complaint in outcome.err
    assert outcome.err.count("\n") == 1
