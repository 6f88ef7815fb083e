"""A version as an uncompressed .tar, and archives of strangers taken apart without harm."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from tempfile import mkdtemp
from typing import BinaryIO

from shared.contracts.artifacts import Manifest, ManifestFile, blob_key
from shared.store.keys import check_key
from shared.store.port import CorruptArtifact, InvalidKey, ObjectStore


class UnsafeArchive(Exception):
    """The archive is broken, or holds what may not be unpacked; one sentence names it."""


def tar_stream(store: ObjectStore, manifest: Manifest) -> Iterator[bytes]:
    """The version's files in POSIX pax form, the same bytes every time. Nothing touches the disk.

    Raises ObjectNotFound, StoreUnavailable and CorruptArtifact, also in the middle; then the end is missing.
    """
    for file in sorted(manifest.files, key=lambda file: file.path):
        content = _verified(store, file)
        begin = next(content, b"")  # before its header: whoever waits for the first bytes learns whether it can be read
        yield _header(file) + begin
        yield from content
        yield bytes(-file.size_bytes % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def safe_extract(archive: Path | BinaryIO, folder: Path) -> None:
    """Unpack into `folder`, which may not hold anything yet; all of it, or nothing at all.

    Takes plain files and folders inside `folder` only. Raises UnsafeArchive for everything else.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.is_symlink() or (folder.exists() and any(folder.iterdir())):
        raise UnsafeArchive(f"{folder} is there already: unpack into a new folder")
    making = Path(mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _unpack(archive, making)
        making.chmod(0o755)
        making.rename(folder)
    except tarfile.TarError as error:
        raise UnsafeArchive(f"this is no .tar that can be read: {error}") from error
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _header(file: ManifestFile) -> bytes:
    info = tarfile.TarInfo(file.path)
    info.size = file.size_bytes
    info.mode = 0o644
    return info.tobuf(tarfile.PAX_FORMAT)


def _verified(store: ObjectStore, file: ManifestFile) -> Iterator[bytes]:
    digest, size_bytes = hashlib.sha256(), 0
    for chunk in store.read(blob_key(file.sha256)):
        digest.update(chunk)
        size_bytes += len(chunk)
        if size_bytes > file.size_bytes:
            break
        yield chunk
    if size_bytes != file.size_bytes or digest.hexdigest() != file.sha256:
        raise CorruptArtifact(f"{file.path!r} is not what its manifest says: its sha256 differs")


class _Counted:
    """A source that tells how much of it was read."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self.size_bytes = 0

    def read(self, size: int) -> bytes:
        data = self._source.read(size)
        self.size_bytes += len(data)
        return data


def _unpack(archive: Path | BinaryIO, folder: Path) -> None:
    with archive.open("rb") if isinstance(archive, Path) else nullcontext(archive) as opened:
        source = _Counted(opened)
        with tarfile.open(fileobj=source, mode="r|") as tar:  # type: ignore[call-overload]
            for member in tar:
                _unpack_member(tar, member, folder)
            if source.size_bytes < tar.offset + tarfile.BLOCKSIZE:  # tarfile takes a missing end for the end
                raise UnsafeArchive("the archive breaks off: its end is missing")


def _unpack_member(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    name = member.name.removeprefix("./")
    if member.isdir() and name in {"", "."}:
        return
    try:
        check_key(name)
    except InvalidKey as error:
        raise UnsafeArchive(f"the archive's entry {member.name!r} would leave the folder or breaks it") from error
    if member.isdir():
        (folder / name).mkdir(parents=True, exist_ok=True)
        return
    if not member.isreg() or member.issparse():
        raise UnsafeArchive(f"the archive's entry {member.name!r} is a link or a device: only plain files are taken")
    content = tar.extractfile(member)
    if content is None:
        raise UnsafeArchive(f"the archive's entry {member.name!r} has no content")
    try:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with content, (folder / name).open("xb") as file:
            shutil.copyfileobj(content, file)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise UnsafeArchive(f"the archive holds {member.name!r} twice, or as a file and as a folder") from error
