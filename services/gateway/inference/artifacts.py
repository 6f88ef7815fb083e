"""The names that a request may use: which versions and aliases the registry knows of each artifact."""

from __future__ import annotations

from dataclasses import dataclass

from services.gateway.inference.errors import InferenceError, ModelNotDeployed, ModelNotFound
from shared.bus.port import Record
from shared.contracts.artifacts import (
    ArtifactAliasesState,
    ArtifactKind,
    ArtifactVersionState,
    artifact_key,
    split_ref,
)

SERVABLE = frozenset({ArtifactKind.model, ArtifactKind.adapter})


@dataclass(frozen=True)
class Known:
    """What routing needs of a version: the rest of its state is for the view."""

    kind: ArtifactKind
    base: str


class Artifacts:
    """`registry.state`, reduced to names. Keys are `tenant/name`."""

    def __init__(self) -> None:
        self._versions: dict[str, dict[int, Known]] = {}
        self._aliases: dict[str, dict[str, int]] = {}

    def apply(self, record: Record) -> None:
        """Take one record of `registry.state`, a tombstone too."""
        match record.message:
            case ArtifactVersionState() as state:
                base = state.manifest.metadata.get("base_model") or (state.parents[0] if state.parents else "")
                versions = self._versions.setdefault(split_ref(record.key)[0], {})
                versions[state.version] = Known(state.kind, str(base))
            case ArtifactAliasesState() as state:
                self._aliases[record.key] = state.aliases
            case None:
                self._forget(record.key)

    def alias(self, tenant: str, name: str, alias: str) -> int | None:
        """The version that an alias of the name points to."""
        return self._aliases.get(artifact_key(tenant, name), {}).get(alias)

    def version(self, tenant: str, name: str, which: str) -> int | None:
        """The version that `3`, `latest` or an alias means; None where there is none of it."""
        if which.isascii() and which.isdigit():
            return int(which)
        version = self.alias(tenant, name, which)
        if version is None and which == "latest":
            return max(self._versions.get(artifact_key(tenant, name), {}), default=None)
        return version

    def why_not_served(self, tenant: str, model: str, served: str) -> InferenceError:
        """The error for a model that no deployment serves. `served` is a sentence that names what is."""
        name, which = split_ref(model)
        versions = self._versions.get(artifact_key(tenant, name), {})
        if not versions:
            return ModelNotFound(f"There is no model {model!r}. {served}", param="model")
        version = max(versions) if which is None else self.version(tenant, name, which)
        if version is None:
            aliases = ", ".join(sorted(self._aliases.get(artifact_key(tenant, name), {}))) or "none"
            return ModelNotFound(f"{name!r} has no alias {which!r}; its aliases: {aliases}. {served}", param="model")
        if version not in versions:
            newest = max(versions)
            return ModelNotFound(f"{name!r} has no version {version}; the newest is {newest}. {served}", param="model")
        return _not_deployed(f"{name}@{version}", versions[version], served)

    def _forget(self, key: str) -> None:
        artifact, version = split_ref(key)
        if version is None:
            self._aliases.pop(artifact, None)
        elif version.isdigit() and artifact in self._versions:
            self._versions[artifact].pop(int(version), None)
            if not self._versions[artifact]:
                del self._versions[artifact]


def _not_deployed(ref: str, known: Known, served: str) -> InferenceError:
    if known.kind not in SERVABLE:
        return ModelNotFound(f"{ref!r} is {known.kind.one}, not a model. {served}", param="model")
    if known.kind is ArtifactKind.adapter:
        base = known.base or "its base model"
        how = f"deploy {base} with `llmos deploy {base}`" if known.base else f"deploy {base}"
        return ModelNotDeployed(f"No deployment has loaded the adapter {ref!r}: {how}. {served}", param="model")
    return ModelNotDeployed(f"{ref!r} is not deployed: deploy it with `llmos deploy {ref}`. {served}", param="model")
