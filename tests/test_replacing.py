"""What `compile` finds in the folder that it writes to, and what becomes of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from infernum.bundle import CHECKSUMS, MANIFEST, Bundle, file_state, open_bundle, write_bundle
from infernum.cache import cache_folder
from infernum.compiler import Options, compile_model
from infernum.errors import BundleError
from infernum.manifest import Edit
from infernum.models.presets import resolve


@pytest.fixture
def files(dante_bundle: Bundle) -> Mapping[str, bytes]:
    """Those of the demo, but for what every bundle has."""
    return {name: dante_bundle.read(name) for name in dante_bundle.checksums if name != MANIFEST}


@pytest.fixture
def mine(dante_bundle: Bundle, files: Mapping[str, bytes], tmp_path: Path) -> Bundle:
    """A bundle to be replaced."""
    return write_bundle(tmp_path / "mine", dante_bundle.manifest, files)


def test_a_folder_that_is_no_bundle_is_left_alone_whatever_it_calls_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "extension"
    folder.mkdir()
    (folder / MANIFEST).write_text('{"name": "an extension of a browser"}')
    with pytest.raises(BundleError, match="exists and is not a bundle; choose another folder with -o"):
        compile_model(resolve("dante"), Options(), folder)
    assert [path.name for path in folder.iterdir()] == [MANIFEST]


def test_files_of_others_stay_and_those_of_the_bundle_before_go(
    mine: Bundle, files: Mapping[str, bytes]
) -> None:
    (mine.folder / "notes").mkdir()
    (mine.folder / "notes" / "of.md").write_text("mine")
    fewer = {name: data for name, data in files.items() if name != "rules.txt"}
    again = write_bundle(mine.folder, mine.manifest, fewer)
    assert (mine.folder / "notes" / "of.md").read_text() == "mine"
    assert not (mine.folder / "rules.txt").exists()
    assert open_bundle(mine.folder) == again
    assert {path.name for path in mine.folder.iterdir()} == {*fewer, MANIFEST, CHECKSUMS, "notes"}


def test_kernels_that_were_edited_are_not_replaced(mine: Bundle, files: Mapping[str, bytes]) -> None:
    source = mine.folder / "decoder.t1.cu"
    edited = source.read_text() + "// an idea\n"
    source.write_text(edited)
    with pytest.raises(BundleError, match=r"decoder\.t1\.cu was edited by hand; choose another folder"):
        write_bundle(mine.folder, mine.manifest, files)
    assert source.read_text() == edited


def test_nor_those_that_were_rebuilt_since(
    dante_bundle: Bundle, files: Mapping[str, bytes], tmp_path: Path
) -> None:
    edits = {"head.t1.cu": Edit(emitted_sha256="0" * 64, kernels=["gemv"])}
    rebuilt = write_bundle(
        tmp_path / "rebuilt", msgspec.structs.replace(dante_bundle.manifest, edits=edits), files
    )
    with pytest.raises(BundleError, match=r"head\.t1\.cu was edited by hand"):
        write_bundle(rebuilt.folder, dante_bundle.manifest, files)


def test_a_link_goes_on_pointing_at_its_bundle(
    mine: Bundle, files: Mapping[str, bytes], tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to("mine")
    (mine.folder / "decoder.t1.cubin").unlink()
    write_bundle(link, mine.manifest, files)
    assert link.is_symlink() and file_state(mine, "decoder.t1.cubin") == "ok"
    assert {path.name for path in tmp_path.iterdir()} == {"link", "mine"}


@pytest.mark.parametrize("damaged", [MANIFEST, CHECKSUMS])
def test_a_damaged_bundle_is_replaced(mine: Bundle, files: Mapping[str, bytes], damaged: str) -> None:
    (mine.folder / damaged).write_text("nothing")
    (mine.folder / "notes.md").write_text("mine")
    assert open_bundle(write_bundle(mine.folder, mine.manifest, files).folder) == mine
    assert (mine.folder / "notes.md").read_text() == "mine"


def test_a_user_without_a_home_has_a_cache_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("INFERNUM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert cache_folder().name.startswith("infernum-")
