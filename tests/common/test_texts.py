"""What a name and a line may hold, in code and in the contract's own words."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deskwire.chat.v1 import customer_pb2
from deskwire_common import texts
from deskwire_common.errors import InvalidArgument
from deskwire_common.validation import Validator

EVERY = [chr(each) for each in range(sys.maxunicode + 1)]
GOOD = {
    "Japanese with U+3000": "\u5c71\u7530\u3000\u592a\u90ce",
    "Persian with ZWNJ": "\u0645\u0647\u062f\u06cc\u200c\u0632\u0627\u062f\u0647",
    "Malayalam with ZWJ": "\u0d05\u0d28\u0d3f\u0d35\u0d30\u0d4d\u200d",
    "no-break space": "Jean\u00a0Dupont",
    "narrow no-break space": "3.45.12\u202fPM.png",
    "family": "Ana \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "heart with a selector": "I \u2764\ufe0f you",
    "soft hyphen": "M\u00fcller-L\u00fcden\u00adscheidt",
    "newer than the interpreter": "Ana \U0001fae8",
    "a direction mark": "\u05d0\u200f (b)",
    "not composed": unicodedata.normalize("NFD", "K\u00e4ufer"),
}


@pytest.mark.parametrize("name", GOOD.values(), ids=GOOD.keys())
def test_names_as_people_have_them_stay_as_they_are(name: str) -> None:
    assert texts.line(name, "name") == name


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("\u200eDavid", "David"),
        ("\ufeffa b\u200f ", "a b"),
        ("\u3000\u5c71\u3000", "\u5c71"),
        ("", ""),
    ],
)
def test_marks_and_blanks_at_the_ends_go(given: str, kept: str) -> None:
    assert texts.line(given, "name") == kept


@pytest.mark.parametrize(
    "name",
    [
        "a\nb",
        "a\x1b[2J",
        "a\x85b",
        "a\u2028b",
        "a\u2029b",
        "\u202eabc",
        "A\u202egpj",
        "a\u2066b\u2069",
        *("a\ufdd0", "a\uffff", "a\U0001fffe", "\ud800", "a\0", "\x07"),
        " ",
        "\u00a0",
        "\u200b",
        "\u2800",
        "\u3164",
        "\u115f\u1160",
        "\uffa0",
        "\ufeff",
        "\u200d\ufe0f",
        "\u00ad",
    ],
)
def test_what_is_no_name_is_refused_and_named(name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        texts.line(name, "customer.display_name")
    assert caught.value.reason_name == "INVALID_FIELD"
    assert caught.value.violations[0][0] == "customer.display_name"
    assert texts.line_or_none(name) is None


def test_every_character_is_of_a_line_or_for_a_reason_not() -> None:
    refused = {each for each in EVERY if not texts.is_line(each)}
    controls = {each for each in EVERY if unicodedata.category(each) in {"Cc", "Zl", "Zp", "Cs"}}
    turning = set(texts.BIDI_EXPLICIT)
    assert {unicodedata.bidirectional(each) for each in turning} == (
        {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    )
    never = refused - controls - turning
    assert controls | turning <= refused
    assert len(never) == 66  # noncharacters: Unicode, 23.7
    assert {unicodedata.category(each) for each in never} == {"Cn"}


def test_blanks_of_every_script_are_known() -> None:
    blanks = [each for each in EVERY if unicodedata.category(each) == "Zs"]
    assert {texts.same_blanks(each) for each in blanks} == {" "}
    assert {texts.trimmed(each) for each in blanks} == {""}


def test_the_contract_says_the_same() -> None:
    validator = Validator()

    def takes(name: str) -> bool:
        try:
            validator.check(customer_pb2.Customer(display_name=name))
        except InvalidArgument:
            return False
        return True

    # Those of the other planes that are never characters are more than the contract has words for, and what is of no
    # kind to this interpreter may be of one to the contract's.
    compared = [
        each
        for each in EVERY[:0x1_0000] + EVERY[0xE_0000:0xE_0200] + EVERY[0x1_F600:0x1_F700]
        if unicodedata.category(each) not in {"Cs", "Cn", "Co"}
    ]
    lines = [each for each in compared if texts.is_line(each)]
    assert takes("a" + "".join(lines)[:127]) is True
    for start in range(0, len(lines), 120):
        assert takes("a" + "".join(lines[start : start + 120])), start
    unseen = [each for each in lines if not texts.has_seen(each)]
    for start in range(0, len(unseen), 120):
        assert not takes("".join(unseen[start : start + 120])), start
    seen = [each for each in lines if texts.has_seen(each)]
    assert all(map(takes, seen[::97]))
    assert not any(map(takes, (f"a{each}" for each in compared if not texts.is_line(each))))


@given(st.text())
def test_a_kept_line_is_kept_again(text: str) -> None:
    kept = texts.line_or_none(text)
    if kept is not None:
        assert texts.line_or_none(kept) == kept
        assert texts.is_line(kept)
    assert texts.is_line(texts.in_one_line(text))
