"""Page tokens: they name a position of one list with one set of filters, and nothing else is believed."""

from __future__ import annotations

import base64

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from hypothesis import given
from hypothesis import strategies as st

from deskwire.tickets.v1.ticket_service_pb2 import ListTicketsRequest
from deskwire_common.errors import InvalidArgument
from deskwire_common.pagination import (
    ANSWER_BYTES,
    PAGE_SIZE,
    PageKey,
    decode_page,
    encode_page,
    page,
)

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


@given(
    sizes=st.lists(st.sampled_from([0, 1, 1_000, 400_000, 2_000_000]), max_size=60),
    page_size=st.integers(0, 70),
    hidden=st.sets(st.integers(1, 60)),
)
async def test_pages_are_the_list_and_none_is_too_large(
    sizes: list[int], page_size: int, hidden: set[int]
) -> None:
    rows = list(enumerate(sizes, 1))

    async def read(key: PageKey | None, limit: int) -> list[tuple[int, int]]:
        return [row for row in rows if key is None or row[0] > int(key[0])][:limit]

    def view(row: tuple[int, int]) -> StringValue | None:
        number, size = row
        return None if number in hidden else StringValue(value=f"{number}:".ljust(size, "x"))

    found, token = [], ""
    while True:
        request = ListTicketsRequest(page_size=page_size, page_token=token)
        items, token = await page(
            request, METHOD, FILTERS, shape=(int,), read=read, key=lambda row: (row[0],), view=view
        )
        assert len(items) <= (page_size or PAGE_SIZE)
        assert len(items) <= 1 or sum(item.ByteSize() for item in items) <= ANSWER_BYTES
        found += [int(item.value.partition(":")[0]) for item in items]
        if not token:
            break
    assert found == [number for number, _ in rows if number not in hidden]
