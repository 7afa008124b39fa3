"""One way to turn names and numbers into independent seeds. No torch."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def derive(*parts: Any) -> int:
    """A 63-bit seed from plain values: the same on every machine, independent for different parts."""
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def content_hash(value: Any, length: int = 16) -> str:
    """Hex hash of a plain value (dicts, lists, strings, numbers), whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]
