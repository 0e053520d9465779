"""Which code is installed here."""

import hashlib
from functools import cache
from importlib import metadata
from pathlib import Path

from comity.common.v1 import types_pb2

from cli.stack import programs

DIGEST_LETTERS = 8


@cache
def code_version() -> str:
    """Release and digest of the code of a stack, as 0.1.0+3f2a91bc: in a checkout code changes under one release."""
    digest = hashlib.sha256()
    for root in (programs.ROOT / "services", Path(__file__).parent, Path(types_pb2.__file__).parents[2]):
        for file in sorted(root.rglob("*")):
            if file.suffix in (".py", ".sql"):
                digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return f"{metadata.version('comity')}+{digest.hexdigest()[:DIGEST_LETTERS]}"
