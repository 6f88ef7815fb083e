"""Files as OpenAI's objects."""

from __future__ import annotations

from typing import Any

from services.gateway.answers import unix
from services.gateway.view.files import File


def file_object(file: File) -> dict[str, Any]:
    return {
        "id": file.file_id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": unix(file.created_at),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": file.status,
        "status_details": file.status_details,
        "expires_at": None,
    }
