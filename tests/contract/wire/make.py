"""Write a golden file for everything that has none yet: `python -m tests.contract.wire.make`.

A golden file is what a released version sent. It is never written again: what changes on the wire gets a new
`schema_version`, and so a new file beside the old one.
"""

from __future__ import annotations

from pathlib import Path

import orjson

from shared.contracts.inference import WIRE_VERSION, encode_frames, encode_item
from shared.contracts.message import Message
from tests.contract.wire.examples import CANCEL, FRAMES, MESSAGES, REQUEST

FOLDER = Path(__file__).parent


def golden_file(message: Message) -> Path:
    return FOLDER / f"{type(message).__name__}.v{message.schema_version}.json"


def golden_files() -> dict[Path, bytes]:
    """Every golden file of this version, with what it should hold."""
    pretty = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    files = {golden_file(message): orjson.dumps(orjson.loads(message.encode()), option=pretty) for message in MESSAGES}
    files[FOLDER / f"Request.v{WIRE_VERSION}.msgpack"] = encode_item(REQUEST)
    files[FOLDER / f"Cancel.v{WIRE_VERSION}.msgpack"] = encode_item(CANCEL)
    files[FOLDER / f"frames.v{WIRE_VERSION}.msgpack"] = encode_frames(FRAMES)
    return files


if __name__ == "__main__":
    for path, data in golden_files().items():
        if path.exists():
            print(f"{path.name} is there and stays as it is")
        else:
            path.write_bytes(data)
            print(f"{path.name} written")
