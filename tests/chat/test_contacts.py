"""Phone numbers and e-mail addresses, in the spellings that people and systems use."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deskwire_chat.domain import customers
from deskwire_chat.domain.contacts import email_key, mobile_key, normal_mobile
from deskwire_chat.domain.customers import Customer


@pytest.mark.parametrize(
    "text",
    [
        "+8613800138000",
        "+86 138 0013 8000",
        "(+86) 138 0013 8000",
        "(+86)13800138000",
        "\uff0b\uff18\uff16\uff11\uff13\uff18\uff10\uff10\uff11\uff13\uff18\uff10\uff10\uff10",
        "\u202a+86 138 0013 8000\u202c",
        "\u202a\u00a0+86 138 0013 8000\u00a0\u202c\u00a0",
        "+\u0668\u0666 \u0661\u0663\u0668 \u0660\u0660\u0661\u0663 \u0668\u0660\u0660\u0660",
        "+86\u00a0138\u20110013\u20118000",
        "tel:+86-138-0013-8000",
    ],
)
def test_usual_spellings_are_one_number(text: str) -> None:
    assert normal_mobile(text) == "+8613800138000"


@pytest.mark.parametrize("region", ["CN", "DE", "US"])
@pytest.mark.parametrize("text", ["0086 138 0013 8000", "008613800138000", "00(86)138-0013-8000"])
def test_a_double_zero_is_read_where_there_is_a_region(text: str, region: str) -> None:
    assert normal_mobile(text, default_region=region) == "+8613800138000"
    assert normal_mobile(text) == text


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("+14244172469 ext. 61914", "+14244172469;ext=61914"),
        ("+14244172469x61914", "+14244172469;ext=61914"),
        ("+14244172469 ext. \u0666\u0661\u0669", "+14244172469;ext=619"),
        ("tel:+14244172469;ext=101", "+14244172469;ext=101"),
        ("+44 (0)20 7946 0018", "+442079460018"),
        ("+86 138 0013 8000 Li", "+8613800138000"),
    ],
)
def test_an_extension_is_kept(text: str, number: str) -> None:
    assert normal_mobile(text) == number
    assert normal_mobile(number) == number


@pytest.mark.parametrize(
    "text",
    [
        "+49 30 1234567-89 Durchwahl 12",
        "+86 13800138000 (wife)",
        "+49 30 123456 Anna",  # letters can stand for digits
        "+1-800-FLOWERS",
        "+1 424 417 2469 / +1 424 417 2470",
        "13800138000",
        "110",
        "+",
        "*100#",
    ],
)
def test_what_cannot_be_read_without_guessing_stays(text: str) -> None:
    assert normal_mobile(f" {text} ") == text


def kept(**given: str) -> dict[str, str]:
    return customers.kept_values(given, default_region="")


@pytest.mark.parametrize(
    ("first", "again"),
    [
        ({"mobile": "+86 138 0013 8000"}, {"mobile": "(+86)13800138000"}),
        ({"mobile": "138 0013 8000"}, {"mobile": "13800138000"}),
        ({"mobile": "0100 555"}, {"mobile": "\u0660\u0661\u0660\u0660 \u0665\u0665\u0665"}),
        ({"email": "ana@example.org"}, {"email": " ana@example.org\u00a0"}),
        ({"email": "ana@B\u00dcCHER.example"}, {"email": "ana@xn--bcher-kva.example"}),
        ({"display_name": "Jean Dupont"}, {"display_name": "Jean\u00a0Dupont"}),
        ({"display_name": "K\u00e4the"}, {"display_name": "Ka\u0308the"}),
        ({"email": ""}, {"email": "  "}),
    ],
)
def test_another_spelling_makes_no_version(first: dict[str, str], again: dict[str, str]) -> None:
    customer, _ = customers.changed_customer(Customer("c", "t"), kept(**first), now=1)
    same, changes = customers.changed_customer(customer, kept(**again), now=2)
    assert (same, changes) == (customer, {})


@pytest.mark.parametrize(
    ("first", "other"),
    [
        ({"mobile": "+14244172469"}, {"mobile": "+14244172469 ext. 1"}),
        ({"mobile": "+14244172469 ext. 2"}, {"mobile": "+14244172469 ext. 1"}),
        ({"email": "ana@example.org"}, {"email": "Ana@example.org"}),
        ({"email": "ana@stra\u00dfe.example"}, {"email": "ana@strasse.example"}),
        ({"display_name": "Ana"}, {"display_name": "ana"}),
    ],
)
def test_another_value_does(first: dict[str, str], other: dict[str, str]) -> None:
    customer, _ = customers.changed_customer(Customer("c", "t"), kept(**first), now=1)
    after, changes = customers.changed_customer(customer, kept(**other), now=2)
    assert set(changes) == set(first)
    assert after.version == customer.version + 1
    assert after.mobile_raw == other.get("mobile", "")


NUMBERS = st.text("+0123456789()-./ \u00a0xe;=#,\uff0b\uff11\u0661", max_size=40)


@given(NUMBERS, st.sampled_from(["", "CN", "DE", "US"]))
def test_a_read_number_reads_the_same_and_has_one_key(text: str, region: str) -> None:
    number = normal_mobile(text, default_region=region)
    assert len(number) <= 64
    assert mobile_key(number) == mobile_key(mobile_key(number))
    if number.startswith("+") and "=" not in text:
        assert normal_mobile(number) == number


@given(st.text(max_size=40))
def test_a_key_of_an_address_is_its_own(address: str) -> None:
    assert email_key(f" {address}\u00a0") == email_key(address)
    assert len(email_key(f"{address}@xn--{address}.example")) > 0
