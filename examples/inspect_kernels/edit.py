"""A kernel that the compiler emitted is looked at, edited, compiled again, checked and measured; then it is broken.

Checking a kernel and measuring it take a GPU. Where there is none, the script says so and goes on.

    python examples/inspect_kernels/edit.py
"""

from __future__ import annotations

from pathlib import Path

from infernum import cli
from infernum.compiler import Options, compile_model
from infernum.machine import default_arch
from infernum.models.presets import resolve
from infernum.runtime.driver import gpu_available

BUNDLE = Path("build/edited")
SOURCE = BUNDLE / "decoder.t1.cu"
KERNEL = "gemv_mma_down_proj"


def main() -> None:
    compile_model(resolve("dante"), Options(arch=default_arch(), max_batch_tokens=1), BUNDLE)
    emitted = SOURCE.read_text(encoding="utf-8")

    print(f"1. {KERNEL}, the product that ends a layer of the demo model, begins with\n")
    show("// linear", "// from", "int WIDTH", "int THREADS")

    print(
        "\n2. Its rows are 12 panels wide, two at most for each of 8 warps. A ring of three has a place too many.\n"
    )
    edit("DEPTH = 3, PREFILL = 3", "DEPTH = 2, PREFILL = 2")
    infernum("rebuild", BUNDLE)
    check()
    if gpu_available():
        infernum("bench", "kernels", BUNDLE)
    edited = SOURCE.read_text(encoding="utf-8")

    print("\n3. An edit that does not compile is refused at its line, and the bundle stays as it was.\n")
    edit("sum[0][i] + sum[1][i]", "sum[0][i] + some[1][i]")
    infernum("rebuild", BUNDLE)
    SOURCE.write_text(edited, encoding="utf-8")

    print("\n4. An edit that is wrong compiles: half of the products are no longer added up.\n")
    edit("sum[0][i] + sum[1][i]", "sum[0][i]")
    infernum("rebuild", BUNDLE)
    check()

    print("\n5. As it was emitted.\n")
    SOURCE.write_text(emitted, encoding="utf-8")
    infernum("rebuild", BUNDLE)
    check()


def show(*words: str) -> None:
    """Print the kernel's lines that hold one of the words."""
    for line in kernel().splitlines():
        if any(word in line for word in words):
            print(line)


def edit(old: str, new: str) -> None:
    """Change the kernel's text, as an editor would."""
    before = kernel()
    assert before.count(old) == 1, f"{KERNEL} holds {old!r} {before.count(old)} times"
    text = SOURCE.read_text(encoding="utf-8")
    SOURCE.write_text(text.replace(before, before.replace(old, new)), encoding="utf-8")
    print(f"- {old}\n+ {new}\n")


def kernel() -> str:
    """The kernel's part of the file, which is the last one."""
    text = SOURCE.read_text(encoding="utf-8")
    return text[text.index(f"// ---- {KERNEL}") :]


def check() -> None:
    """Compare the kernel with what it means in NumPy, where there is a GPU to run it on."""
    if gpu_available():
        infernum("verify", BUNDLE, "--kernel", KERNEL)
    else:
        print(f"no GPU here: infernum verify {BUNDLE} --kernel {KERNEL} is left out")


def infernum(*arguments: str | Path) -> None:
    """Run a command of Infernum's, and say what it returned."""
    words = [str(argument) for argument in arguments]
    print(f"> infernum {' '.join(words)}", flush=True)
    code = cli.run(words)
    print(f"exit code {code}\n", flush=True)


if __name__ == "__main__":
    main()
