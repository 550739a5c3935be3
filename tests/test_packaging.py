"""The wheel holds what runs outside a checkout, and the command line starts without what is slow to import."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

from infernum import __version__

ROOT = Path(__file__).parents[1]
SLOW = (
    "numpy",
    "ml_dtypes",
    "jinja2",
    "networkx",
    "rich",
    "msgspec",
    "tokenizers",
    "cuda.bindings",
    "nvmath",
)
INFO = f"infernum-{__version__}.dist-info"
DEMO = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "model.safetensors",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    return Path(next(WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])))


@pytest.fixture(scope="module")
def files(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_holds_every_module_template_and_file_of_a_page(files: set[str]) -> None:
    modules = [path.relative_to(ROOT).as_posix() for path in (ROOT / "infernum").rglob("*.py")]
    templates = [
        f"infernum/{path.relative_to(ROOT).as_posix()}"
        for path in (ROOT / "templates").rglob("*")
        if path.suffix in {".j2", ".cuh"}
    ]
    page = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "infernum").rglob("web/**/*")
        if path.suffix in {".html", ".css", ".js", ".LICENSE", ".md"}
    ]
    assert templates and page
    assert {*modules, *templates, *page, "infernum/py.typed"} <= files


def test_the_wheel_holds_the_demo_models_and_not_what_made_them(files: set[str]) -> None:
    demos = {name for name in files if name.startswith("infernum/demo/")}
    chat = {f"infernum/demo/dante-chat/{name}" for name in (*DEMO, "chat_template.jinja")}
    assert demos == {f"infernum/demo/dante/{name}" for name in DEMO} | chat


def test_the_wheel_holds_the_package_and_nothing_else(files: set[str]) -> None:
    assert {name.split("/")[0] for name in files} == {"infernum", INFO}
    assert not [name for name in files if "__pycache__" in name]


def test_the_wheel_declares_the_command_and_the_licence(wheel: Path) -> None:
    read = zipfile.ZipFile(wheel).read
    assert b"infernum = infernum.cli:main" in read(f"{INFO}/entry_points.txt")
    assert b"Apache License" in read(f"{INFO}/licenses/LICENSE")
    for library in ("d3", "dagre", "highlight"):
        assert read(f"{INFO}/licenses/infernum/lab/report/web/vendor/{library}.LICENSE")


def test_an_installed_wheel_finds_its_own_templates_and_demo_model(wheel: Path, tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    zipfile.ZipFile(wheel).extractall(site)  # a wheel is a folder of sys.path, zipped
    elsewhere.mkdir()
    found = python(
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "from infernum.resources import demo_folder, templates_folder\n"
        "weights = [demo_folder(name) / 'model.safetensors' for name in ('dante', 'dante-chat')]\n"
        "print(templates_folder(), *weights, sep='\\n')",
        cwd=elsewhere,
    ).splitlines()
    demos = [str(site / f"infernum/demo/{name}/model.safetensors") for name in ("dante", "dante-chat")]
    assert found == [str(site / "infernum/templates"), *demos]
    assert all(Path(path).exists() for path in found)


def test_a_wheel_built_from_the_source_archive_is_the_same(files: set[str], tmp_path: Path) -> None:
    archive = next(SdistBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"]))
    subprocess.run([sys.executable, "-m", "tarfile", "-e", archive, str(tmp_path)], check=True)
    unpacked = WheelBuilder(str(tmp_path / f"infernum-{__version__}"))
    rebuilt = next(unpacked.build(directory=str(tmp_path), versions=["standard"]))
    assert set(zipfile.ZipFile(rebuilt).namelist()) == files


def test_the_command_line_imports_nothing_that_is_slow() -> None:
    loaded = python(f"import infernum.cli, sys; print(*(name for name in {SLOW} if name in sys.modules))")
    assert loaded.split() == []


def test_importing_the_package_imports_nothing_that_is_slow() -> None:
    loaded = python(f"import infernum, sys; print(*(name for name in {SLOW} if name in sys.modules))")
    assert loaded.split() == []


def test_help_is_instant() -> None:
    """0.3 s of a processor where Python itself starts in 0.03; on a slow machine, as many times longer as Python."""
    helps, nothings = [], []
    for _ in range(5):  # in turns, so that both meet the same load
        helps.append(seconds("import sys; from infernum.cli import main; sys.argv[1:] = ['--help']; main()"))
        nothings.append(seconds("pass"))
    assert sorted(helps)[2] < max(0.3, 10 * sorted(nothings)[2])


def python(code: str, cwd: Path | None = None) -> str:
    """What a fresh interpreter prints when it runs `code`."""
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def seconds(code: str) -> float:
    """Processor time of a fresh interpreter that runs `code`, which waiting for a busy machine does not count in."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    python(code)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("plugin", ["asyncio", "benchmark"])
def test_a_plugin_of_pytest_that_warns_of_itself_stops_no_test(plugin: str, tmp_path: Path) -> None:
    (tmp_path / f"a_{plugin}.py").write_text(
        "import warnings\n\ndef pytest_configure(config):\n    warnings.warn('I am here')\n"
    )
    info = tmp_path / f"a_{plugin}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: a-{plugin}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[pytest11]\n{plugin} = a_{plugin}\n")
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, ROOT / "tests" / "test_dims.py"],
        capture_output=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )
    assert done.returncode == 0, done.stderr.decode()
