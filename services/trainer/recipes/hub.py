"""A model of the Hugging Face hub, brought into the machine's own hub cache."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from services.trainer.recipes.api import RecipeError
from services.trainer.recipes.disk import is_disk_full
from services.trainer.recipes.model_folder import CONVERT_HINT, KEPT, KEPT_NAMES, PICKLES
from shared.contracts.jobs import FailureReason

PATTERNS = [*(f"*{suffix}" for suffix in sorted(KEPT)), *(f"{name}*" for name in KEPT_NAMES)]
MIB = 1 << 20


def download(model_id: str, revision: str | None, say: Callable[[str], None]) -> tuple[Path, Path]:
    """The snapshot's folder, and the folder that its links may lead into. Raises RecipeError.

    Where the hub is not to be reached, a copy that the cache holds is taken.
    """
    from httpx2 import TransportError
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        _check_files(model_id, revision, say)
        folder = Path(snapshot_download(model_id, revision=revision, allow_patterns=PATTERNS))
    except HFValidationError as error:
        raise _missing(
            f"{model_id!r} is neither a path nor a hub id: {error}", "A hub id looks like owner/name."
        ) from error
    except GatedRepoError as error:
        raise _missing(f"the hub gives {model_id} only to those it knows", "Set HF_TOKEN on the trainer.") from error
    except RepositoryNotFoundError as error:
        raise _missing(
            f"the hub has no model {model_id}", "Check the spelling; for a private one set HF_TOKEN."
        ) from error
    except RevisionNotFoundError as error:
        raise _missing(f"{model_id} has no revision {revision!r}", "", param="revision") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, TransportError, OSError) as error:
        if is_disk_full(error):
            raise
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        message = (
            f"{model_id!r} is no path and not in the hub cache of the trainer's machine, "
            f"and the hub cannot be reached to look for it{offline}"
        )
        hint = "Check the name or the network; a folder or a .gguf file on the trainer is named by its whole path."
        raise _missing(message, hint) from error
    return folder, folder.parents[1]


def _check_files(model_id: str, revision: str | None, say: Callable[[str], None]) -> None:
    """Refuse before a download what would be refused after it. Says nothing where the hub is not to be reached."""
    from httpx2 import TransportError  # what the hub's library speaks with
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        info = HfApi().model_info(model_id, revision=revision, files_metadata=True)
    except (OfflineModeIsEnabled, TransportError):
        return
    files = {file.rfilename: file.size or 0 for file in info.siblings or []}
    if not any(name.endswith(".safetensors") for name in files):
        if any(Path(name).suffix in PICKLES for name in files):
            message = f"{model_id} has its weights only as pickles, which may run code when they are read"
            raise RecipeError(FailureReason.unsafe_artifact, message, CONVERT_HINT, param="source")
        raise _missing(f"{model_id} has no .safetensors file", "Pick a model in the transformers format.")
    size_bytes = sum(size for name, size in files.items() if Path(name).suffix in KEPT)
    say(f"downloading {model_id} at {info.sha}: {size_bytes / MIB:.0f} MiB")


def _missing(message: str, hint: str, param: str = "source") -> RecipeError:
    return RecipeError(FailureReason.input_missing, message, hint, param=param)
