"""The page at ``GET /``: one HTML file that loads nothing else, so its policy allows its own script and style and no others."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

_FILE = Path(__file__).parent / "static" / "index.html"


def read_page() -> tuple[bytes, Mapping[str, str]]:
    """Return the page and the headers that go with it."""
    text = _FILE.read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src {_hash(text, 'script')}; style-src {_hash(text, 'style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
    return text.encode(), headers


def _hash(text: str, element: str) -> str:
    """Return the source expression that allows the one inline element of that name."""
    found = re.search(rf"<{element}>(.*?)</{element}>", text, re.DOTALL)
    assert found is not None, f"the page has a {element}"
    return f"'sha256-{base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()}'"
