"""Page tokens that a caller forges: they have the right list and filters, and a key that no list gave."""

from __future__ import annotations

import base64

_DIGEST_BYTES = 9
_KEYS = (
    *(
        "[]",
        "[1]",
        '["1"]',
        '["1","x"]',
        '["x",1]',
        "[1,2]",
        '[1,"x",1]',
        '[[1],"x"]',
        '[null,"x"]',
    ),
    *('[1.5,"x"]', '[NaN,"x"]', '[true,"x"]', '[{},"x"]', "{}", "null", "["),
    *(f"[{number}]" for number in (2**63, 2**70, -(2**64))),
    *(f'[{number},"x"]' for number in (2**63, 2**70, -(2**64))),
    *('["\\u0000"]', '[1,"\\u0000"]', '["\\ud800"]', '[1,"\\ud800"]'),
)


def forged(token: str, parts: int) -> list[str]:
    """Return tokens like `token`, a valid one whose key has `parts` parts, but with keys of other forms."""
    raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    good = {1: ("[1]",), 2: ('[1,"x"]',)}[parts]
    return [
        base64.urlsafe_b64encode(raw[:_DIGEST_BYTES] + key.encode()).decode().rstrip("=")
        for key in _KEYS
        if key not in good
    ]
