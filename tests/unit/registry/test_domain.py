"""Which version comes next, where aliases point, and what may be refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.registry.domain import (
    Artifact,
    Refused,
    check_content,
    check_files,
    check_kind,
    check_manifest_size,
    check_staged_prefix,
    enriched,
)
from shared.contracts.artifacts import ArtifactKind, Manifest, ManifestFile, PublishArtifact
from shared.contracts.message import MAX_MESSAGE_BYTES

KIND = ArtifactKind.model


def artifact(*versions: int, **aliases: int) -> Artifact:
    empty = Artifact("default", "m", KIND, last_version=max(versions, default=0))
    for version in sorted(versions):
        empty = empty.with_version(version, KIND, [])
    for alias, version in aliases.items():
        empty = empty.with_alias(alias, version)
    return empty


def test_latest_is_the_newest_version() -> None:
    assert artifact(1).aliases == {"latest": 1}
    assert artifact(1, 2, 3).aliases == {"latest": 3}
    assert artifact(1, 2, 3).without(frozenset({3})).aliases == {"latest": 2}
    assert artifact(1, 2, 3).without(frozenset({1})).aliases == {"latest": 3}


def test_an_older_publication_that_ends_later_does_not_move_latest_back() -> None:
    assert artifact(2).with_version(1, KIND, []).aliases == {"latest": 2}


def test_requested_aliases_move_with_the_version() -> None:
    moved = artifact(1, production=1).with_version(2, KIND, ["production", "staging"])
    assert moved.aliases == {"latest": 2, "production": 2, "staging": 2}


def test_aliases_go_with_the_version_they_point_to() -> None:
    assert artifact(1, 2, production=2, old=1).without(frozenset({2})).aliases == {"latest": 1, "old": 1}
    assert artifact(1, production=1).without(frozenset({1})).aliases == {}


def test_an_alias_points_to_what_is_there_only() -> None:
    with pytest.raises(Refused, match="m@2 is not there"):
        artifact(1).with_alias("production", 2)
    with pytest.raises(Refused, match="latest"):
        artifact(1).with_alias("latest", 1)
    assert artifact(1, production=1).with_alias("production", None).aliases == {"latest": 1}


@given(
    st.lists(st.sampled_from([("publish", 0), ("delete", 1), ("delete", 2), ("alias", 1), ("alias", 2)]), max_size=20)
)
def test_whatever_happens_revisions_grow_with_every_change_and_latest_is_right(steps: list[tuple[str, int]]) -> None:
    now = artifact()
    for step, version in steps:
        before = now
        if step == "publish":
            number = before.last_version + 1
            now = Artifact(**{**vars(before), "last_version": number}).with_version(number, KIND, [])
        elif step == "delete":
            now = before.without(before.versions & {version})
        elif version in before.versions:
            now = before.with_alias("a", version)
        changed = (now.aliases or {}) != (before.aliases or {})
        assert now.revision == before.revision + changed
        assert (now.aliases or {}).get("latest") == max(now.versions, default=None)
        assert set((now.aliases or {}).values()) <= now.versions


def test_what_is_deleted_is_named_or_all() -> None:
    assert artifact(1, 2).resolve(None) == {1, 2}
    assert artifact(1, 2).resolve(2) == {2}
    assert artifact(1, 2).without(frozenset({1})).resolve(1) == frozenset()
    for never in (0, 3, -1):
        with pytest.raises(Refused, match="not there"):
            artifact(1, 2).resolve(never)


def test_a_kind_is_kept_while_there_are_versions() -> None:
    check_kind(None, ArtifactKind.dataset)
    check_kind(artifact(1), KIND)
    check_kind(artifact(1).without(frozenset({1})), ArtifactKind.dataset)
    with pytest.raises(Refused, match="kind model"):
        check_kind(artifact(1), ArtifactKind.dataset)


@pytest.mark.parametrize("prefix", ["", "blobs/x", "manifests/x", "staging", "staging/../blobs/x"])
def test_only_staging_can_be_published(prefix: str) -> None:
    with pytest.raises(Refused, match="staging"):
        check_staged_prefix(prefix)


def manifest(*paths: str) -> Manifest:
    return Manifest(files=[ManifestFile(path=path, size_bytes=1, sha256="0" * 64) for path in paths])


@pytest.mark.parametrize("path", ["a.bin", "a.PT", "b/c.pkl", "x.gguf", "x.ckpt", "code.py", "lib.so", "w.npz", "w.h5"])
@pytest.mark.parametrize("kind", [ArtifactKind.model, ArtifactKind.adapter])
def test_weights_are_safetensors_only(kind: ArtifactKind, path: str) -> None:
    with pytest.raises(Refused, match=path):
        check_files(kind, manifest("config.json", path))


@pytest.mark.parametrize("kind", list(ArtifactKind))
def test_pickles_are_for_checkpoints_alone(kind: ArtifactKind) -> None:
    if kind is ArtifactKind.checkpoint:
        check_files(kind, manifest("optimizer.pt"))
        return
    with pytest.raises(Refused, match=r"optimizer\.pt"):
        check_files(kind, manifest("optimizer.pt"))


def test_data_may_be_any_other_file() -> None:
    for kind in (ArtifactKind.dataset, ArtifactKind.file, ArtifactKind.report):
        check_files(kind, manifest("train.bin", "a.zip", "script.py"))
        check_content(kind, "a.zip", b"PK\x03\x04")


def test_a_file_cannot_be_a_folder_too() -> None:
    with pytest.raises(Refused, match="folder"):
        check_files(KIND, manifest("a", "a/b/c"))
    with pytest.raises(Refused, match="no file"):
        check_files(KIND, manifest())


@pytest.mark.parametrize(
    "head",
    [b"PK\x03\x04..", b"\x80\x02}q", b"\x80\x05\x95", b"cposix\nsystem\n", b"GGUF", b"\x7fELF", b"x" * 257 + b"ustar"],
)
def test_content_tells_what_the_name_hides(head: bytes) -> None:
    with pytest.raises(Refused, match="innocent"):
        check_content(KIND, "innocent.json", head)


@pytest.mark.parametrize(
    "head", [b"{}", b"", b"class Foo:\n  pass\n", b"chapter one\n\nIt was", b"\x80\x00\x00", b"PKZIP is"]
)
def test_text_and_tensors_are_not_taken_for_pickles(head: bytes) -> None:
    check_content(KIND, "README.md", head)


def test_a_manifest_says_where_it_comes_from() -> None:
    command = PublishArtifact(
        publication_id="p", name="m", kind=KIND, staged_prefix="staging/x", job_id="j", parents=["d@1"]
    )
    staged = Manifest(files=manifest("a").files, metadata={"base_model": "b@2", "version": 99})
    kept = enriched(staged, command, 3, command.at)
    assert kept.files == staged.files
    assert kept.metadata["base_model"] == "b@2"
    assert kept.metadata["version"] == 3
    assert kept.metadata["created"] == command.at.isoformat()
    assert (kept.metadata["job"], kept.metadata["parents"], kept.metadata["kind"]) == ("j", ["d@1"], "model")


def test_a_manifest_fits_onto_the_bus() -> None:
    check_manifest_size(MAX_MESSAGE_BYTES)
    with pytest.raises(Refused, match="pack the files"):
        check_manifest_size(MAX_MESSAGE_BYTES + 1)
