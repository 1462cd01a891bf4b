"""What a text is found by: words in any script, the same for every database."""

from __future__ import annotations

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deskwire_chat.domain import words
from deskwire_common.errors import InvalidArgument


def finds(query: str, text: str) -> bool:
    """What each database does with the words."""
    found = words.of_text(text)
    return all(
        any(
            word.startswith(phrase.words[0])
            if phrase.prefix
            else tuple(found[place : place + len(phrase.words)]) == phrase.words
            for phrase in term
            for place, word in enumerate(found)
        )
        for term in words.of_query(query)
    )


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("refund", "My REFUND, please!"),
        ("please refund", "a refund please"),
        ('"my refund"', "My refund, please"),
        ("ref*", "the refund"),
        ("order-4711", "Order-4711 is late"),
        ("a@b.com", "write to A@B.com now"),
        ("退款", "我要退款。"),
        ("我要退款", "我要退款吗"),
        ("款", "退款"),
        ("款", "款到"),
        ("退款 order", "order 4711 要求退款"),
        ("退款order", "退款ORDER"),
        ("ｒｅｆｕｎｄ", "refund"),
        ("straße", "STRASSE"),
        ("ПРИВЕТ", "привет, мир"),
        ("прив*", "приветствую"),
        ("हिन्दी", "यह हिन्दी है"),
        ("สวัสดี", "สวัสดีครับ"),
        ("환불", "환불해 주세요"),
        ("ホテル", "帝国ホテル"),
        ("x" * 8000, "x" * 8000),
        ("the of a", "of the a"),
        # What nobody sees is no part of a word, and neither is a mark without a letter before it.
        ("thanks", "\u2764\ufe0fthanks"),
        ("urgent", "\u26a0\ufe0furgent"),
        ("first", "1\ufe0f\u20e3first"),
        ("13800138000", "\u260e\ufe0f13800138000"),
        ("Rechnungsnummer", "Rech\u00adnungs\u00adnummer"),
        ("Rech\u00adnung", "rechnung"),
        ("tracking", "track\u200bing"),
        (
            "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
            "\u0645\u06cc\u062e\u0648\u0627\u0647\u0645",
        ),
        # Case, accents, points and forms of letters, on both sides.
        ("istanbul", "\u0130stanbul"),
        ("\u0130STANBUL", "istanbul"),
        ("ISPARTA", "\u0131sparta"),
        ("cafe", "un Caf\u00e9 noir"),
        ("Caf\u00e9 noir", "un CAFE noir"),
        ("Munchen", "nach M\u00fcnchen"),
        ("devolucion", "la devolucio\u0301n"),
        ("viet nam", "Vi\u1ec7t Nam"),
        ("dia", "\u0110\u00eca"),
        ("\u0435\u043b\u043a\u0430", "\u0401\u043b\u043a\u0430"),
        ("\u0627\u062d\u0645\u062f", "\u0623\u062d\u0645\u062f"),
        ("\u062f\u0648\u0633\u062a", "\u062f\u064f\u0648\u0633\u062a"),
        ("\u05e9\u05dc\u05d5\u05dd", "\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd"),
        ("caf*", "un Caf\u00e9"),
        ('"Caf\u00e9 NOIR"', "un caf\u00e9 noir"),
        ('"cafe"', "un cafe noir"),
        # Numbers in groups, and written together.
        ("13800138000", "138 0013 8000"),
        ("138 0013 8000", "13800138000"),
        ("138-0013-8000", "call 13800138000"),
        ("13800138000", "+86 138 0013 8000"),
        ("+8613800138000", "+86 (138) 0013-8000"),
        ("0612345678", "06.12.34.56.78"),
        ("138 0013 8000", "\u7535\u8bdd138-0013-8000\u5427"),
        ("13800138000", "\u0661\u0663\u0668 \u0660\u0660\u0661\u0663 \u0668\u0660\u0660\u0660"),
        ("13800138000", "138\u00a00013\u20118000"),
        ("1380*", "138 0013 8000"),
        ("order 138 0013 8000", "13800138000 is my order"),
        ("4711 2026", "in 2026 order 4711"),
        ("\U0001f600 refund", "refund"),
    ],
)
def test_it_is_found(query: str, text: str) -> None:
    assert finds(query, text)


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("refund", "refunds"),
        ("refund late", "a refund"),
        ('"refund my"', "my refund"),
        ("退货", "退款 货到"),
        ("order-4711", "4711 order"),
        ("fund*", "refund"),
        ('"cafe"', "un Caf\u00e9"),
        ('"Caf\u00e9"', "un cafe"),
        ("\u043c\u043e\u0439", "\u043c\u043e\u0438"),
        ("\u304b", "\u304c"),
        ("\u0939\u093f\u0928\u094d\u0926\u0940", "\u0939\u0928\u094d\u0926"),
        ("138 0013", "13800138000"),
        ('"138 0013 8000"', "13800138000"),
        ("1234567", "12a 34567"),
    ],
)
def test_it_is_not_found(query: str, text: str) -> None:
    assert not finds(query, text)


@pytest.mark.parametrize(
    "query", ["", " ", "\u200b", '"', 'a "b', "a*", " ".join(f"w{each}" for each in range(17))]
)
def test_it_is_no_query(query: str) -> None:
    with pytest.raises(InvalidArgument):
        words.of_query(query)


@pytest.mark.parametrize(
    "query", ["!?", "\U0001f600", "\u2764\ufe0f \U0001f468\u200d\U0001f469", '""', "*"]
)
def test_a_query_without_a_word_finds_nothing(query: str) -> None:
    assert words.of_query(query) == ()


def test_a_table_of_figures_does_not_grow_tenfold() -> None:
    table = " ".join(["12 34 56"] * 800)
    assert len(words.of_text(table)) <= 2400 + 256
    assert len(words.of_text(" ".join(f"{each:04}" for each in range(1600)))) <= 1600 + 256


@given(st.text("0123456789 ().-/a\u00e9\u0661", max_size=40))
def test_however_a_number_is_grouped_it_is_found(text: str) -> None:
    for joined in (word[2:] for word in words.of_text(text) if word.startswith("nn")):
        assert finds(joined, text)
        assert finds(f"{joined[:3]} {joined[3:]}", text)


@given(st.text(max_size=40))
def test_an_ignorable_changes_no_word(text: str) -> None:
    for each in "\u00ad\u200b\u200d\ufe0f\ufeff":
        assert words.of_text(each.join(text)) == words.of_text(text)


@given(st.text(max_size=60))
def test_any_text_is_found_by_itself_and_its_words_are_plain(text: str) -> None:
    plain = text.replace('"', " ").replace("*", " ")
    for word in words.of_text(plain):
        assert re.fullmatch(r"((ww|ff)[a-z0-9]{1,38}|(uu|vv)[0-9a-f]{2,76}|nn[0-9]{6,20})", word)
    with contextlib.suppress(InvalidArgument):  # nothing to see, or too many words
        assert not words.of_query(plain) or finds(plain, plain)
