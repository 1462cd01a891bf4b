"""Secrets at rest: what is sealed opens only with its key, and only where it belongs."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from deskwire_common.sealing import SealBroken, Sealer, load_sealer

OLD, NEW = b"o" * 32, b"n" * 32


def test_what_is_sealed_opens_only_where_it_belongs() -> None:
    sealer = Sealer([OLD])
    sealed = sealer.seal("a secret", "row 1")
    assert "secret" not in sealed
    assert sealed != sealer.seal("a secret", "row 1")
    assert sealer.open(sealed, "row 1") == "a secret"
    for broken, about in (
        (sealed, "row 2"),
        (sealed[:-4] + "AAA=", "row 1"),
        ("sealed:?", "row 1"),
    ):
        with pytest.raises(SealBroken) as caught:
            sealer.open(broken, about)
        assert "a secret" not in str(caught.value)


def test_a_new_key_seals_while_the_old_one_opens() -> None:
    old = Sealer([OLD]).seal("a secret", "row 1")
    both = Sealer([NEW, OLD])
    assert both.open(old, "row 1") == "a secret"
    fresh = both.seal("a secret", "row 1")
    assert Sealer([NEW]).open(fresh, "row 1") == "a secret"
    with pytest.raises(SealBroken):
        Sealer([NEW]).open(old, "row 1")


def test_what_was_stored_without_a_key_opens_when_there_is_one() -> None:
    stored = Sealer().seal("a secret", "row 1")
    assert Sealer([NEW]).open(stored, "row 1") == "a secret"
    with pytest.raises(SealBroken):
        Sealer().open(Sealer([NEW]).seal("a secret", "row 1"), "row 1")


def test_a_file_of_keys(tmp_path: Path) -> None:
    file = tmp_path / "sealing.keys"
    file.write_text("".join(f"{base64.b64encode(key).decode()}\n" for key in (NEW, OLD)))
    sealed = load_sealer(file).seal("a secret", "row 1")
    assert Sealer([NEW]).open(sealed, "row 1") == "a secret"
    assert load_sealer(None).seal("a secret", "row 1") == "plain:a secret"


@pytest.mark.parametrize(
    ("text", "why"), [("", "no key"), ("c2hvcnQ=", "32 bytes"), ("not base64", "base64")]
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "sealing.keys"
    file.write_text(text)
    with pytest.raises(ValueError, match=why):
        load_sealer(file)
    with pytest.raises(ValueError, match="can't be read"):
        load_sealer(tmp_path / "none")
