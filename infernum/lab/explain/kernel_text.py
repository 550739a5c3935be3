"""The explanation of a kernel as a person reads it."""

from __future__ import annotations

from collections.abc import Iterator

from rich.text import Text

from infernum.lab.explain.amounts import counted, flops, microseconds, nbytes, times
from infernum.lab.explain.facts import Amount, KernelFacts
from infernum.lab.explain.kernel import KernelExplanation
from infernum.lab.explain.ops_text import ops_text
from infernum.lab.explain.paper import columns, heading, paragraph
from infernum.manifest import Launch
from infernum.roofline import gpu_of
from infernum.rule_phrases import TO, replacement


def kernel_text(explained: KernelExplanation, width: int) -> list[Text]:
    """Everything about one kernel, in `width` columns."""
    title = Text().append(explained.facts.kernel.name, style="bold cyan")
    title.append(f" in {explained.block}.{explained.variant}", style="bold")
    step = step_of(explained.facts.tokens, explained.context)
    title.append(f"  {step}, {explained.gpu}, {explained.arch}", style="dim")
    parts = (ops_text, _rules, _python, _cost, _resources, _parameters, _choice, _source)
    return [title, *(line for part in parts for line in part(explained, width))]


def step_of(tokens: int, context: int) -> str:
    """The size of a step in words."""
    return f"{counted(tokens, 'token')}, context {context}"


def cost_of(facts: KernelFacts) -> str:
    """The cost of one kernel in words."""
    return f"{nbytes(facts.bytes)}, {flops(facts.flops)}, floor {microseconds(facts.floor_us)}"


def cost_table(before: Amount, after: Amount) -> list[Text]:
    """The cost before the rules and after them, one above the other."""
    rows = [("", "kernels", "bytes", "FLOPs", "floor")]
    for name, amount in (("before", before), ("after", after)):
        costs = nbytes(amount.bytes), flops(amount.flops), microseconds(amount.floor_us)
        rows.append((name, str(amount.kernels), *costs))
    return [Text(line) for line in columns(rows, right=(1, 2, 3, 4))]


def _rules(explained: KernelExplanation, width: int) -> list[Text]:
    if not explained.rules:
        return [heading("Rules: none; it is the op that the block calls, with a kernel of its own")]
    lines = [heading("Rules, in order")]
    described: set[str] = set()
    for i, rule in enumerate(explained.rules, start=1):
        text = rule.rule if rule.rule in described else f"{rule.rule}: {rule.why}"
        described.add(rule.rule)
        lines += paragraph(text, width, first=f"  {i} ", rest="    ")
        lines += paragraph(replacement(rule.at, rule.made, TO), width, first="    ", style="dim")
    return lines


def _python(explained: KernelExplanation, width: int) -> list[Text]:
    lines = [heading("Python")]
    size = max(len(line.where) for line in explained.lines) if explained.lines else 0
    for line in explained.lines:
        text = line.text if line.text is not None else "(the file is not at hand)"
        first = f"  {line.where:<{size}}  "
        lines += paragraph(text, width, first=first)
        if line.made:
            lines += paragraph(f"made {', '.join(line.made)}", width, first=" " * len(first), style="dim")
    return lines


def _cost(explained: KernelExplanation, width: int) -> list[Text]:
    before, after, facts = explained.before, explained.after, explained.facts
    saved = before.bytes - after.bytes
    share = f"{saved / before.bytes:.1%} of the bytes" if before.bytes else ""
    lines = [heading("Cost"), *cost_table(before, after)]
    fewer = before.kernels - after.kernels
    if fewer or saved:
        launches = f"{fewer} fewer to launch; " if fewer else ""
        verb = "saved" if saved >= 0 else "moves more by"
        lines += paragraph(f"{launches}{verb} {nbytes(abs(saved))}, {share}", width)
    else:
        lines += paragraph("as many kernels as before, and the same bytes", width)
    if len(explained.together) > 1:
        node = f"counted together with the others of its node ({', '.join(explained.together)})"
        lines += paragraph(f"{node}; {cost_of(facts)} are its own", width)
    gpu = gpu_of(explained.arch)
    bound = (
        f"memory: {nbytes(facts.bytes)} at {gpu.bytes_per_second / 1e12:.2f} TB/s"
        if facts.bound == "memory"
        else f"arithmetic: {flops(facts.flops)} at {gpu.flops_per_second / 1e12:.0f} TFLOP/s"
    )
    return [*lines, *paragraph(f"floor {microseconds(facts.floor_us)}, set by {bound}", width)]


def _resources(explained: KernelExplanation, width: int) -> list[Text]:
    facts = explained.facts
    step, kernel = facts.step, facts.kernel
    if not isinstance(step, Launch):
        sizes = f"{step.m} × {step.n} × {step.k} in {step.dtype}"
        text = f"a product by cuBLASLt, {sizes}; the library chooses its kernel: registers and grid are not known"
        return [heading("Resources"), *paragraph(text, width)]
    rows = [
        ("grid", _grid(facts.grid or (), step)),
        *([("clusters", _clusters(facts.cluster, step))] if facts.cluster > 1 else []),
        ("registers", f"{kernel.registers} a thread, {counted(kernel.spill_bytes, 'byte')} spilled"),
        ("shared memory", _shared(step.shared_bytes, kernel.static_shared_bytes)),
        ("occupancy", " ".join(_occupancy(explained))),
    ]
    lines = [heading("Resources")]
    for name, text in rows:
        lines += paragraph(text, width, first=f"  {name:<13}  ")
    return lines


def _clusters(blocks: int, step: Launch) -> str:
    formula = "" if isinstance(step.cluster, int) else f" ({step.cluster})"
    return f"of {blocks} blocks that run together and reach each other's shared memory{formula}"


def _grid(grid: tuple[int, ...], step: Launch) -> str:
    sizes = [str(size) for size in step.grid if size != 1]
    formula = f" ({' × '.join(sizes)})" if any(not size.isdecimal() for size in sizes) else ""
    blocks = "1 block" if times(grid) == "1" else f"{times(grid)} blocks"
    return f"{blocks} of {times(step.block)} threads{formula}"


def _shared(dynamic: int, static: int) -> str:
    total = f"{counted(dynamic + static, 'byte')} a block"
    return f"{total}: {dynamic} dynamic, {static} static" if dynamic and static else total


def _occupancy(explained: KernelExplanation) -> Iterator[str]:
    fits, gpu = explained.facts.occupancy, gpu_of(explained.arch)
    if fits is None:
        yield "not known: the kernel was not compiled"
        return
    yield f"{fits.warps} of {gpu.threads_per_sm // 32} warps of an SM ({fits.fraction:.0%}),"
    yield f"{counted(fits.blocks_per_sm, 'block')};"
    of_sm = fits.limit in ("threads", "blocks")
    yield f"limited by the {fits.limit} that an SM holds" if of_sm else f"limited by {fits.limit}"
    if explained.resident is not None and explained.resident < fits.blocks_per_sm:
        yield f"(this grid has at most {explained.resident} for each of {gpu.sms} SMs)"


def _parameters(explained: KernelExplanation, width: int) -> list[Text]:
    chosen = explained.facts.kernel.parameters
    if chosen is None:
        return []
    size = max(map(len, chosen.values))
    lines = [heading("Parameters")]
    for name, value in chosen.values.items():
        other = "" if value == chosen.default[name] else f"  default {chosen.default[name]}"
        lines.append(Text(f"  {name:<{size}}  {value}{other}"))
    candidates = counted(chosen.candidates, "combination")
    return [*lines, *paragraph(f"{chosen.why}; {candidates} to choose among, by `infernum tune`", width)]


def _choice(explained: KernelExplanation, width: int) -> list[Text]:
    passed = explained.facts.kernel.passed_over
    if not passed:
        return []
    return [heading("Passed over"), *(line for reason in passed for line in paragraph(reason, width))]


def _source(explained: KernelExplanation, width: int) -> list[Text]:
    if not isinstance(explained.facts.step, Launch):
        text = f"none of its own: {explained.source} holds the kernels beside it"
        return [heading("Source"), *paragraph(text, width)]
    edited = [Text("  edited by hand since it was emitted", style="bold red")] if explained.edited else []
    template = f"{explained.source}, from the template {explained.facts.kernel.template}.cu.j2"
    see = Text(f"  {explained.see}", style="green")
    return [heading("Source"), *edited, *paragraph(template, width), see]
