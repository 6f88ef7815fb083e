"""Versions leave as .tar, and archives come in without harm."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.contracts.artifacts import Manifest, blob_key
from shared.store.local import LocalStore
from shared.store.port import CorruptArtifact, ObjectNotFound, StoreUnavailable
from shared.store.staging import stage_folder, staged_file_key
from shared.store.tar import UnsafeArchive, safe_extract, tar_stream

FILES = {
    "config.json": b"{}",
    "deep/er/weights.bin": os.urandom(3 * 2**20 + 7),
    "empty": b"",
    "ä/" + "long" * 60: b"long names need pax",
    "block": b"x" * 512,
}


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "objects")


@pytest.fixture
def manifest(store: LocalStore, tmp_path: Path) -> Manifest:
    for path, data in FILES.items():
        (tmp_path / "source" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / path).write_bytes(data)
    manifest = stage_folder(store, "staging/x", tmp_path / "source", {})
    for file in manifest.files:
        store.copy(staged_file_key("staging/x", file.path), blob_key(file.sha256))
    return manifest


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_version_goes_out_and_comes_in_again(store: LocalStore, manifest: Manifest, tmp_path: Path) -> None:
    packed = b"".join(tar_stream(store, manifest))
    safe_extract(io.BytesIO(packed), tmp_path / "out")
    assert contents(tmp_path / "out") == FILES
    assert packed == b"".join(tar_stream(store, manifest))


def test_the_systems_own_tar_reads_it(store: LocalStore, manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "m.tar").write_bytes(b"".join(tar_stream(store, manifest)))
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "-xf", tmp_path / "m.tar", "-C", tmp_path / "out"], check=True)
    assert contents(tmp_path / "out") == FILES


def test_a_corrupt_blob_breaks_the_stream_off(store: LocalStore, manifest: Manifest) -> None:
    key = blob_key(manifest.files[1].sha256)
    store.put_bytes(key, b"y" * manifest.files[1].size_bytes)
    with pytest.raises(CorruptArtifact):
        list(tar_stream(store, manifest))
    store.delete(key)
    with pytest.raises(ObjectNotFound):
        list(tar_stream(store, manifest))


def test_a_store_that_is_away_is_told_before_the_first_byte(
    store: LocalStore, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> Iterator[bytes]:
        raise StoreUnavailable("the store does not answer")

    monkeypatch.setattr(store, "read", away)
    with pytest.raises(StoreUnavailable):
        next(tar_stream(store, manifest))


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = link
    return info


def archive(*members: tarfile.TarInfo) -> io.BytesIO:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.addfile(member("fine.txt"), io.BytesIO())
        for info in members:
            tar.addfile(info)
    packed.seek(0)
    return packed


@pytest.mark.parametrize(
    "evil",
    [
        [member("../escaped")],
        [member("/etc/escaped")],
        [member("a/../../escaped")],
        [member("link", tarfile.SYMTYPE, "/etc/passwd")],
        [member("folder", tarfile.SYMTYPE, ".."), member("folder/escaped")],
        [member("hard", tarfile.LNKTYPE, "/etc/passwd")],
        [member("device", tarfile.CHRTYPE)],
        [member("pipe", tarfile.FIFOTYPE)],
        [member("twice"), member("twice")],
        [member("a"), member("a/b")],
    ],
)
def test_a_harmful_archive_leaves_nothing(evil: list[tarfile.TarInfo], tmp_path: Path) -> None:
    target = tmp_path / "in" / "out"
    with pytest.raises(UnsafeArchive):
        safe_extract(archive(*evil), target)
    assert not list((tmp_path / "in").iterdir())
    assert not list(tmp_path.rglob("escaped"))


def test_folders_and_dots_are_fine(tmp_path: Path) -> None:
    safe_extract(
        archive(member("./", tarfile.DIRTYPE), member("./a", tarfile.DIRTYPE), member("./a/b")), tmp_path / "o"
    )
    assert set(contents(tmp_path / "o")) == {"fine.txt", "a/b"}


def test_what_is_no_archive_or_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    whole = archive(member("a")).getvalue()
    (tmp_path / "text.tar").write_bytes(b"this is no archive" * 100)
    with pytest.raises(UnsafeArchive):
        safe_extract(tmp_path / "text.tar", tmp_path / "out")
    with pytest.raises(UnsafeArchive):
        safe_extract(io.BytesIO(whole[:700]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(UnsafeArchive, match="there already"):
        safe_extract(archive(), tmp_path / "out")
