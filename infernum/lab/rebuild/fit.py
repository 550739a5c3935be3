"""Whether an edited kernel still fits its launch: parameters, block, registers and shared memory."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from infernum.codegen.cubin import KernelResources
from infernum.manifest import Launch, SymbolArg
from infernum.roofline import Gpu, gpu_of

WAIT = re.compile(r"\bwait_for_previous_kernel\b|\bgriddepcontrol\.wait\b")

_NO_CODE = re.compile(
    r"//[^\n]*|/\*.*?\*/|^[ \t]*#[ \t]*if[ \t]+0\b.*?^[ \t]*#[ \t]*endif\b[^\n]*", re.DOTALL | re.MULTILINE
)
_BOUNDS = re.compile(r"__launch_bounds__\s*\(\s*(\d+)")
_REGISTER_UNIT = 8
"""Registers are allocated to the threads of a warp in multiples of this (CUDA occupancy calculator, 8.0 to 10.0)."""


@dataclass(frozen=True)
class KernelSignature:
    """The first lines of a kernel. `max_threads` is that of `__launch_bounds__`, None when it is no number."""

    parameters: tuple[str, ...]
    max_threads: int | None


def signature_of(source: str, kernel: str) -> KernelSignature | None:
    """The signature of `extern "C" __global__ … kernel(…)` in a CUDA source; None when it is not written out."""
    code = _NO_CODE.sub(" ", source)
    match = re.search(rf"\b__global__\b([^;{{}}]*?)\b{re.escape(kernel)}\s*\(", code)
    if match is None:
        return None
    bounds = _BOUNDS.search(match[1])
    return KernelSignature(_split(code[match.end() :]), int(bounds[1]) if bounds else None)


def objections(source: str, launch: Launch, compiled: Mapping[str, KernelResources], arch: str) -> list[str]:
    """Why a kernel of an edited source cannot be launched as the bundle launches it, each with what to do."""
    name, resources = launch.kernel, compiled.get(launch.kernel)
    if resources is None:
        return [f'{name} is launched, but is no longer there; keep `extern "C" __global__ void {name}(…)`']
    signature = signature_of(source, name)
    if signature is None:
        return [f'{name}: its first lines cannot be read; write out `extern "C" __global__ void {name}(…)`']
    gpu = gpu_of(arch)
    reasons = (
        _arguments(signature, launch),
        _block(signature, resources, launch, gpu),
        _shared(resources, launch, gpu, arch),
    )
    return [f"{name} {reason}" for reason in reasons if reason]


def no_longer_waits(section: str, launch: Launch) -> bool:
    """True for a kernel that starts early and does not wait for the results of the kernel before."""
    return launch.programmatic and not WAIT.search(_NO_CODE.sub(" ", section))


def _arguments(signature: KernelSignature, launch: Launch) -> str | None:
    declared, passed = len(signature.parameters), len(launch.args)
    if declared != passed:
        return f"has {declared} parameters, but is launched with {passed} arguments; keep the parameters as emitted"
    for parameter, argument in zip(signature.parameters, launch.args, strict=True):
        if isinstance(argument, SymbolArg) and "*" in parameter:
            return (
                f"takes a pointer `{parameter}` where it is given the int {argument.symbol}; keep the order"
            )
        if not isinstance(argument, SymbolArg) and re.fullmatch(r"(const )?int \w+", parameter):
            return f"takes `{parameter}` where it is given the address of {argument.tensor}; keep the order"
    return None


def _block(signature: KernelSignature, resources: KernelResources, launch: Launch, gpu: Gpu) -> str | None:
    threads = math.prod(launch.block)
    bound = signature.max_threads
    if bound is not None and bound < threads:
        return f"allows {bound} threads in a block, but is launched with {threads}; write __launch_bounds__({threads})"
    allocated = -(-resources.registers // _REGISTER_UNIT) * _REGISTER_UNIT
    if allocated * -(-threads // 32) * 32 > gpu.registers_per_sm:
        return (
            f"takes {resources.registers} registers in each of {threads} threads, more than a multiprocessor has; "
            f"write __launch_bounds__({threads})"
        )
    return None


def _shared(resources: KernelResources, launch: Launch, gpu: Gpu, arch: str) -> str | None:
    static, limit = resources.static_shared_bytes, gpu.shared_per_sm - gpu.shared_reserved
    if static + launch.shared_bytes <= limit:
        return None
    return (
        f"takes {static} bytes of static and {launch.shared_bytes} of dynamic shared memory, but a block has at most "
        f"{limit} on {arch}; declare less"
    )


def _split(text: str) -> tuple[str, ...]:
    """The parameters in front of the closing parenthesis, split at commas that are inside of no brackets."""
    parts, depth = [""], 0
    for character in text:
        if character == ")" and depth == 0:
            break
        depth += (character in "([{<") - (character in ")]}>")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    named = tuple(" ".join(part.split()) for part in parts)
    return () if named in (("",), ("void",)) else named
