"""The report shows all of a bundle, needs nothing but itself, and works in a browser."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Outcome

from infernum.bundle import Bundle, write_bundle
from infernum.errors import BundleError, InfernumError
from infernum.lab.explain.facts import facts_of
from infernum.lab.explain.measurements import read_measurements
from infernum.lab.report.data import report_data
from infernum.lab.report.html import html_of
from infernum.manifest import Gemm

VENDOR = Path(__file__).parents[1] / "infernum/lab/report/web/vendor"
NUMBERS = {"us": 1.0, "bytes": 1, "flops": 1, "floor_us": 1.0, "fraction": 1.0, "gain_us": 0.0}


@pytest.fixture(scope="module")
def data(dante_bundle: Bundle) -> dict[str, Any]:
    return report_data(dante_bundle)


@pytest.fixture(scope="module")
def bench(dante_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result of `bench kernels` with invented times: every kernel of t1 takes twice its floor."""
    kernels = [
        {
            "block": block.block,
            "variant": block.variant,
            "kernel": facts.kernel.name,
            "layers": 2,
            "us": 2 * facts.floor_us,
            "alone_us": None,
            "bytes": facts.bytes,
            "flops": facts.flops,
            "floor_us": facts.floor_us,
            "fraction": 0.5,
            "gain_us": 2 * facts.floor_us,
        }
        for variants in dante_bundle.manifest.blocks.values()
        for block in variants.values()
        if block.serves("t1")
        for facts in facts_of(dante_bundle, block, tokens=1, context=512)
    ]
    result = {
        "benchmark": "kernels",
        "gpu": "an invented GPU",
        "read_bandwidth_gb_s": 1234.0,
        "flops_per_second": None,
        "variant": "t1",
        "tokens": 1,
        "context": 512,
        "ms_per_step": 0.5,
        "kernels": kernels,
        "unaccounted_us": 10.0,
        "date": "a field that the report does not know",
    }
    path = tmp_path_factory.mktemp("bench") / "kernels.json"
    path.write_text(json.dumps(result))
    return path


def variants_of(data: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for variants in data["blocks"].values():
        yield from variants.values()


def test_every_kernel_of_every_variant_is_there_with_its_source(
    dante_bundle: Bundle, data: dict[str, Any]
) -> None:
    for block, variants in dante_bundle.manifest.blocks.items():
        for name, variant in variants.items():
            shown = data["blocks"][block][name]
            assert [k["name"] for k in shown["kernels"]] == [k.name for k in variant.kernels]
            for kernel, step in zip(shown["kernels"], variant.steps, strict=True):
                if isinstance(step, Gemm):
                    assert kernel["part"] is None
                else:
                    source = data["texts"][shown["parts"][kernel["part"]]]
                    assert re.search(rf"__global__.*\b{kernel['name']}\(", source)


def test_every_traced_node_is_in_a_kernel_or_costs_nothing(data: dict[str, Any]) -> None:
    seen = 0
    for variant in variants_of(data):
        final = {node["id"] for node in data["graphs"][variant["graph"]]["nodes"]}
        for node in data["graphs"][variant["traced"]]["nodes"]:
            fate = variant["fates"][node["id"]]
            if node["kind"] == "op":
                assert fate["kernels"], node["id"]
                assert fate["node"] in final
                seen += 1
            assert all(variant["kernels"][i]["node"] == fate["node"] for i in fate["kernels"])
    assert seen > 50


def test_firings_and_refusals_lead_to_nodes_that_are_drawn(data: dict[str, Any]) -> None:
    kinds = {"fired": 0, "refused": 0}
    for variant in variants_of(data):
        sides = {
            side: data["graphs"][variant[name]] for side, name in (("before", "traced"), ("after", "graph"))
        }
        names = {side: {node["id"] for node in graph["nodes"]} for side, graph in sides.items()}
        for kind in kinds:
            for entry in variant["rules"][kind]:
                assert entry["before"] and set(entry["before"]) <= names["before"], entry
                assert entry["after"] and set(entry["after"]) <= names["after"], entry
                kinds[kind] += 1
    assert min(kinds.values()) > 5


def test_a_merged_product_is_marked_where_the_three_products_were(data: dict[str, Any]) -> None:
    decoder = data["blocks"]["decoder"]["t1"]
    merged = next(f for f in decoder["rules"]["fired"] if f["rule"] == "merge_products")
    assert merged["before"] == ["linear_1", "linear_2", "linear_3"]
    graph = {node["id"]: node for node in data["graphs"][decoder["graph"]]["nodes"]}
    inside = [n["op"] for name in merged["after"] for n in graph[name].get("body", {}).get("nodes", ())]
    assert "linear" in inside


def test_buffers_that_are_alive_together_are_drawn_apart(data: dict[str, Any]) -> None:
    pairs = 0
    for variant in variants_of(data):
        for i, a in enumerate(variant["buffers"]):
            assert a["steps"] == sorted(set(a["steps"]))
            assert variant["kernels"][a["steps"][0]]["node"] == a["name"].split(".")[0], (
                "its maker comes first"
            )
            assert a["steps"] and a["offset"] + a["bytes"] <= variant["arena_bytes"]
            for b in variant["buffers"][:i]:
                if a["steps"][0] <= b["steps"][-1] and b["steps"][0] <= a["steps"][-1]:
                    assert a["offset"] + a["bytes"] <= b["offset"] or b["offset"] + b["bytes"] <= a["offset"]
                    pairs += 1
    assert pairs > 10


def test_a_script_in_a_source_does_not_end_the_page(data: dict[str, Any]) -> None:
    evil = "// </script><script>alert(1)</script> <!-- {{ scripts }}"
    page = html_of({**data, "texts": [evil, *data["texts"]]}, "<b>title</b>")
    assert "alert(1)</script>" not in page
    assert "<title>&lt;b&gt;title&lt;/b&gt;</title>" in page
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found and json.loads(found[1])["texts"][0] == evil


def test_the_page_asks_for_nothing(data: dict[str, Any]) -> None:
    page = html_of(data, "dante")
    assert not re.search(r"""(src|href|action)\s*=\s*["']?(https?:|//)""", page)
    assert "sourceMappingURL" not in page
    style = page[page.index("<style>") : page.index("</style>")]
    assert "@import" not in style and "url(" not in style
    assert "default-src 'none'" in page


def test_the_same_bundle_gives_the_same_page(dante_bundle: Bundle, data: dict[str, Any]) -> None:
    assert html_of(report_data(dante_bundle), "dante") == html_of(data, "dante")


def test_libraries_are_those_that_their_readme_names_and_come_with_licences(data: dict[str, Any]) -> None:
    readme, page = (VENDOR / "README.md").read_text(), html_of(data, "dante")
    files = sorted(VENDOR.glob("*.js"))
    assert len(files) == 3
    for file in files:
        assert f"| `{file.name}` |" in readme
        assert hashlib.sha256(file.read_bytes()).hexdigest() in readme
        assert (VENDOR / f"{file.name.removesuffix('.min.js')}.LICENSE").read_text() in page


def test_measured_times_are_told_with_the_ceilings_of_their_run(dante_bundle: Bundle, bench: Path) -> None:
    data = report_data(dante_bundle, read_measurements(bench, dante_bundle.manifest))
    kernels = data["blocks"]["decoder"]["t1"]["kernels"]
    assert all(k["measured"]["us"] == pytest.approx(2 * k["floor_us"]) for k in kernels)
    assert data["roof"]["bytes_per_second"] == pytest.approx(1234e9)
    assert data["roof"]["bytes_measured"] and not data["roof"]["flops_measured"]
    assert not any("measured" in k for k in data["blocks"]["decoder"]["t8"]["kernels"])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"benchmark": "latency"}, "is a result of `bench latency`"),
        ({"model": "llama"}, "is of llama, and this bundle of dante"),
        ({"kernels": [{"block": "decoder"}]}, "is no result of `bench kernels`"),
        (
            {"kernels": [{"block": "decoder", "variant": "t1", "kernel": "other", **NUMBERS}]},
            "which this bundle has not",
        ),
    ],
)
def test_a_result_that_does_not_belong_is_refused(
    dante_bundle: Bundle, bench: Path, tmp_path: Path, change: dict[str, Any], complaint: str
) -> None:
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps(json.loads(bench.read_text()) | change))
    with pytest.raises(InfernumError, match=complaint):
        read_measurements(wrong, dante_bundle.manifest)


def test_an_op_that_only_a_plugin_knows_is_asked_for(dante_bundle: Bundle, tmp_path: Path) -> None:
    manifest = dante_bundle.manifest
    names = [name for name in dante_bundle.checksums if name != "manifest.json"]
    files = {name: dante_bundle.read(name) for name in names}
    files["decoder.traced.ir"] = files["decoder.traced.ir"].replace(b"= silu(", b"= unheard_of(")
    broken = write_bundle(tmp_path / "broken", manifest, files)
    with pytest.raises(BundleError, match=r"decoder\.traced\.ir: .*unheard_of") as caught:
        report_data(broken)
    assert "\n" not in str(caught.value)


def test_the_command_writes_the_page_and_says_how_large_it_is(
    infernum: Callable[..., Outcome], dante_bundle: Bundle, bench: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report.html"
    done = infernum("report", dante_bundle.folder, "-o", out, "--bench", bench)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
    assert out.stat().st_size < 6e6
    refused = infernum("report", dante_bundle.folder, "-o", tmp_path / "report.txt")
    assert refused.code == 2
    assert "ends in .html" in refused.err
    assert not (tmp_path / "report.txt").exists()


@pytest.fixture
def visit(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """`visit(html, "#tab=graph")`: the page, open; the test fails if it complained or asked for anything."""
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    complaints: list[str] = []

    def open_page(html: str, hash_: str = "", **media: str) -> Any:
        file = tmp_path / "report.html"
        file.write_text(html, encoding="utf-8")
        page = context.new_page()
        page.emulate_media(**media)
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request", lambda request: complaints.append(request.url) if "file:" not in request.url else None
        )
        page.goto(f"file://{file}{hash_}")
        page.wait_for_selector("body[data-ready]")
        return page

    yield open_page
    context.close()
    assert [c for c in complaints if not c.startswith("data:")] == []


@pytest.fixture(scope="module")
def plain(data: dict[str, Any]) -> str:
    return html_of(data, "dante")


@pytest.fixture(scope="module")
def measured(dante_bundle: Bundle, bench: Path) -> str:
    return html_of(report_data(dante_bundle, read_measurements(bench, dante_bundle.manifest)), "dante")


def test_a_node_is_found_by_search_and_shows_the_cuda_of_its_kernel(
    visit: Callable[..., Any], plain: str, data: dict[str, Any]
) -> None:
    page = visit(plain)
    page.get_by_role("tab", name="Graph").click()
    page.keyboard.press("/")
    page.keyboard.type("gate_up")
    page.keyboard.press("Enter")
    kernel = next(k for k in data["blocks"]["decoder"]["t1"]["kernels"] if "gate_up" in k["name"])
    page.wait_for_selector(".node.chosen")
    code = page.locator("#details pre").inner_text()
    assert f"{kernel['name']}(" in code
    assert page.locator("#details .hljs-keyword").count() > 5
    assert kernel["where"][0] in page.locator("#details").inner_text()
    page.keyboard.press("Escape")
    assert page.locator("#details").is_hidden()


def test_a_click_on_a_traced_node_outlines_the_kernel_that_it_became_part_of(
    visit: Callable[..., Any], plain: str, data: dict[str, Any]
) -> None:
    decoder = data["blocks"]["decoder"]["t1"]
    page = visit(plain, "#tab=graph&block=decoder&variant=t1&view=both")
    page.get_by_role("button", name="Fit").click()
    page.wait_for_timeout(300)
    page.locator('[data-side="before"] [data-path="silu_1"]').click()
    home = decoder["fates"]["silu_1"]["node"]
    linked = page.locator('[data-side="after"] .node.linked')
    assert [linked.nth(i).get_attribute("data-path") for i in range(linked.count())] == [home]
    page.locator("#details button.inline").first.click()
    assert page.locator('[data-side="after"] .node.chosen').get_attribute("data-path") == home
    assert f"node=after:{home}" in page.url


def test_a_link_opens_where_it_was_copied(visit: Callable[..., Any], plain: str) -> None:
    page = visit(plain, "#tab=graph&block=decoder&variant=t8&view=before&node=before:linear_5")
    assert page.locator('[data-side="before"] .node.chosen').get_attribute("data-path") == "linear_5"
    assert page.locator('[data-side="after"]').is_hidden()
    assert "decoder.t8, before fusion" in page.locator("#details").inner_text()


def test_a_fused_node_opens_to_show_what_it_holds(visit: Callable[..., Any], plain: str) -> None:
    page = visit(plain, "#tab=graph&block=decoder&variant=t1&view=after")
    assert page.locator(".node.inner").count() == 0
    page.locator(".fold").first.click()
    inner = page.locator(".node.inner[data-path]")
    assert inner.count() > 1
    inner.last.click()
    assert page.locator(".node.inner.chosen").count() == 1


def test_a_refusal_tells_why_and_marks_its_nodes(
    visit: Callable[..., Any], plain: str, data: dict[str, Any]
) -> None:
    page = visit(plain, "#tab=rules&block=decoder&variant=t64")
    refused = data["blocks"]["decoder"]["t64"]["rules"]["refused"]
    assert page.locator(".row.refused").count() == len(refused) > 0
    shown = page.locator(".row.refused").first
    assert any(entry["reason"] in shown.inner_text() for entry in refused)
    shown.click()
    assert page.locator('[data-side="before"] .node.marked').count() > 0
    page.locator("#rule-text").fill("no rule is called this")
    assert page.locator(".row").count() == 0


def test_the_memory_plan_has_a_rectangle_for_each_buffer(
    visit: Callable[..., Any], plain: str, data: dict[str, Any]
) -> None:
    page = visit(plain, "#tab=memory&block=decoder&variant=prefill")
    buffers = data["blocks"]["decoder"]["prefill"]["buffers"]
    assert page.locator(".buffer rect").count() == len(buffers) > 3
    page.locator(".buffer").first.click()
    assert buffers[0]["type"] in page.locator("#memory-facts").inner_text()


def test_measured_kernels_are_dots_below_the_roof(visit: Callable[..., Any], measured: str) -> None:
    page = visit(measured, "#tab=roofline&variant=t1")
    assert page.locator(".dot circle").count() > 3
    assert "1.23 TB/s, measured" in page.locator("#roofline-chart").text_content()
    page.locator("#roofline tbody tr").first.click()
    assert "measured, 50 % of bound" in page.locator("#details").inner_text()


def test_without_measurements_the_roofline_shows_no_speeds(visit: Callable[..., Any], plain: str) -> None:
    page = visit(plain, "#tab=roofline&variant=t1")
    assert page.locator(".dot circle").count() == 0
    assert page.locator(".dot.unmeasured").count() > 3
    assert "infernum bench kernels" in page.locator("#roofline").inner_text()


@pytest.mark.parametrize("tab", ["overview", "graph", "rules", "memory", "roofline"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_its_window_and_follows_the_colour_scheme(
    visit: Callable[..., Any], measured: str, tab: str, scheme: str
) -> None:
    page = visit(measured, f"#tab={tab}&block=decoder&variant=t1&node=after:attention_1", color_scheme=scheme)
    page.wait_for_timeout(100)
    wide = """() => [...document.querySelectorAll("html, body, main, .page, #graph, .about")]
        .filter((e) => e.scrollWidth > e.clientWidth + 1).map((e) => e.id || e.className || e.tagName)"""
    assert page.evaluate(wide) == []
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", colour)[:3]))
    assert (brightness < 150) == (scheme == "dark")


def test_a_graph_of_500_nodes_is_laid_out_at_once(visit: Callable[..., Any], data: dict[str, Any]) -> None:
    page = visit(html_of(_large(data, 500), "large"), "#tab=overview")
    drawn = page.evaluate(
        """() => {
            const start = performance.now();
            show({ tab: "graph", view: "after" });
            document.body.getBoundingClientRect();
            return performance.now() - start;
        }"""
    )
    assert page.locator('[data-side="after"] .node.op').count() == 500
    chosen = page.evaluate(
        """() => {
            const start = performance.now();
            showNode("after", "op_400");
            document.body.getBoundingClientRect();
            return performance.now() - start;
        }"""
    )
    page.wait_for_timeout(400)
    box = page.locator('.node[data-path="op_400"]').bounding_box()
    assert box and 0 < box["x"] < 1200 and 0 < box["y"] < 800
    assert drawn < 3000
    assert chosen < 1000


def _large(data: dict[str, Any], count: int) -> dict[str, Any]:
    """The report of an invented block of so many ops, each a kernel."""
    rng = random.Random(3)
    nodes: list[dict[str, Any]] = [
        {"id": "x", "op": "stream", "kind": "input", "types": ["bf16[tokens, 64]"]}
    ]
    for i in range(count):
        reads = {f"op_{max(0, i - 1 - rng.randrange(4))}" if i else "x"}
        reads |= {f"op_{rng.randrange(max(0, i - 14), i)}"} if i > 4 and rng.random() < 0.35 else set()
        operands = [[name, 0, f"x{slot}"] for slot, name in enumerate(sorted(reads))]
        nodes.append(
            {"id": f"op_{i}", "op": "add", "kind": "op", "types": ["bf16[tokens, 64]"], "operands": operands}
        )
    old = data["blocks"]["decoder"]["t1"]
    number = len(data["graphs"])
    block = {
        **old,
        "traced": number,
        "graph": number,
        "kernels": [
            {**old["kernels"][0], "name": f"kernel_{i}", "node": f"op_{i}", "origin": [f"op_{i}"]}
            for i in range(count)
        ],
        "fates": {f"op_{i}": {"kernels": [i], "node": f"op_{i}"} for i in range(count)},
        "rules": {"tried": [], "fired": [], "refused": []},
        "buffers": [],
    }
    graph = {"name": "decoder", "nodes": nodes, "outputs": [[f"op_{count - 1}", 0]]}
    bundle = {
        **data["bundle"],
        "layers": {"decoder": 1},
        "samplers": [],
        "variants": data["bundle"]["variants"][:1],
    }
    return {
        **data,
        "bundle": bundle,
        "blocks": {"decoder": {"t1": block}},
        "graphs": [*data["graphs"], graph],
    }
