"""What a text is found by: words in any script, the same for every database."""

from __future__ import annotations

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
            word.startswith(term.words[0])
            if term.prefix
            else tuple(found[place : place + len(term.words)]) == term.words
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
    ],
)
def test_it_is_not_found(query: str, text: str) -> None:
    assert not finds(query, text)


@pytest.mark.parametrize(
    "query", ["", " ", '"', 'a "b', "!?", "a*", " ".join(f"w{each}" for each in range(17))]
)
def test_it_is_no_query(query: str) -> None:
    with pytest.raises(InvalidArgument):
        words.of_query(query)


@given(st.text(max_size=60))
def test_any_text_is_found_by_itself_and_its_words_are_plain(text: str) -> None:
    plain = text.replace('"', " ").replace("*", " ")
    for word in words.of_text(plain):
        assert re.fullmatch(r"(ww[a-z0-9]{1,38}|uu[0-9a-f]{2,76})", word)
    if 0 < len(words.of_text(plain)) <= words.MAX_TERMS:
        assert finds(plain, plain)
