"""Page tokens: they name a position of one list with one set of filters, and nothing else is believed."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deskwire_common.errors import InvalidArgument
from deskwire_common.pagination import decode_page, encode_page

METHOD = "TicketService/ListTickets"
FILTERS = {"tenant": "acme", "states": [1, 2]}


KEY = (int, str)
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
NUMBERS = st.integers(-(2**63), 2**63 - 1)


def refused(
    token: str, kind: str = METHOD, filters: object = None, shape: tuple[type, ...] = KEY
) -> bool:
    with pytest.raises(InvalidArgument) as caught:
        decode_page(token, kind, filters if isinstance(filters, dict) else FILTERS, shape=shape)
    assert caught.value.reason_name == "INVALID_PAGE_TOKEN"
    assert [field for field, _ in caught.value.violations] == ["page_token"]
    return True


@given(st.lists(TEXTS | NUMBERS, max_size=4))
def test_a_token_gives_its_key_back(key: list[str | int]) -> None:
    token = encode_page(METHOD, FILTERS, key)
    assert token
    filters = dict(reversed(FILTERS.items()))
    assert decode_page(token, METHOD, filters, shape=[type(part) for part in key]) == tuple(key)


def test_without_a_token_it_is_the_first_page() -> None:
    assert decode_page("", METHOD, FILTERS, shape=KEY) is None


def test_a_token_is_good_for_its_own_list_only() -> None:
    token = encode_page(METHOD, FILTERS, (7, "t-1"))
    assert decode_page(token, METHOD, FILTERS, shape=KEY) == (7, "t-1")
    assert refused(token, "ConversationService/ListMessages")
    assert refused(token, filters={**FILTERS, "tenant": "other"})
    assert refused(token, filters={**FILTERS, "states": [1]})
    assert refused(token, filters={})
    assert refused(token, shape=(int, str, str))


@given(st.text(min_size=1, max_size=60))
def test_garbage_is_refused(text: str) -> None:
    assert refused(text)


@pytest.mark.parametrize(
    "body",
    [
        *["", "{", "{}", "7", "null", '[1,["a"]]', '[null,"a"]', '[true,"a"]', '[1.0,"a"]'],
        *['["1","a"]', '["a",1]', "[1,1]", '[NaN,"a"]', '[Infinity,"a"]', '[1e999,"a"]'],
        *[f'[{2**63},"a"]', f'[{-(2**63) - 1},"a"]', f'[{"9" * 5000},"a"]'],
        *['[1,"\\u0000"]', '[1,"\\ud800"]', f'[1,"{"x" * 1025}"]', "[" * 9000],
    ],
    ids=lambda body: body[:10],
)
def test_a_key_of_another_form_is_refused_behind_the_right_digest(body: str) -> None:
    token = encode_page(METHOD, FILTERS, ())
    digest = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))[:-2]
    assert refused(base64.urlsafe_b64encode(digest + body.encode()).decode().rstrip("="))


def test_a_changed_token_is_refused() -> None:
    token = encode_page(METHOD, FILTERS, (7, "t-1"))
    assert refused(token[:-3])
    assert refused("A" + token[1:] if token[0] != "A" else "B" + token[1:])
    assert refused(token + "!")
