"""Phone numbers and e-mail addresses: read whatever their usual spelling, compared in one form, kept as they came."""

from __future__ import annotations

import contextlib
import re
import unicodedata
from typing import Final

import phonenumbers

from deskwire_common import texts

_NO_PART_OF_A_NUMBER: Final = re.compile(r"[^\w+*#;=]|_")


def normal_mobile(text: str, *, default_region: str = "") -> str:
    """Return a phone number as E.164, with its extension as `;ext=` (RFC 3966), where it can be read so; else as given.

    `default_region` (`CN`, `DE`, …) is the region of numbers without a leading + or, with the region's own prefix of
    international calls, 00; empty: such numbers stay as given.
    """
    given = texts.unwrapped(text)
    spelled = _spelled(given)
    found = _read(spelled, default_region)
    if not found and default_region and spelled.startswith("00"):
        found = _read(f"+{spelled[2:]}", "")  # the region says another prefix, people say 00
    return found or given


def mobile_key(mobile: str) -> str:
    """Return what is the same for every spelling of a number, given its normal form."""
    if mobile.startswith("+") and mobile[1:].isascii() and mobile[1:].isdigit():
        return mobile
    spelled = _spelled(mobile)
    return _NO_PART_OF_A_NUMBER.sub("", spelled).casefold()


def email_key(address: str) -> str:
    """Return what is the same for every spelling of an address.

    The domain is compared without regard to case, in Unicode (RFC 5890); what is before the @ as it is, since only the
    owner of the domain knows whether its case matters (RFC 5321, 2.4).
    """
    shown = unicodedata.normalize("NFC", texts.without_ignorable(texts.trimmed(address)))
    local, at, domain = shown.rpartition("@")
    folded = unicodedata.normalize("NFKC", domain).lower().replace("\u3002", ".")
    return f"{local}{at}{'.'.join(map(_label, folded.split('.')))}" if at else shown


def name_key(name: str) -> str:
    """Return what is the same for every spelling of a name: blanks of one kind, letters composed."""
    return unicodedata.normalize("NFC", texts.same_blanks(name))


def _label(label: str) -> str:
    """Return a label of a domain in Unicode."""
    if label.startswith("xn--"):
        with contextlib.suppress(UnicodeError):
            return label[4:].encode("ascii").decode("punycode")
    return label


def _spelled(number: str) -> str:
    """Return a number for reading and comparing: each digit and letter in its plainest form."""
    shown = unicodedata.normalize("NFKC", texts.without_ignorable(number))
    return texts.with_ascii_digits(shown)


def _read(spelled: str, region: str) -> str:
    """Return a number as E.164 with its extension; "" when it can't be read without guessing."""
    try:
        number = phonenumbers.parse(spelled, region or None)
    except phonenumbers.NumberParseException:
        return ""
    if not phonenumbers.is_possible_number(number):
        return ""
    extension = number.extension or ""
    if any(each.isalpha() for each in spelled):
        # Letters may stand for digits (1-800-FLOWERS), or for a name: a number must not be made of a name.
        digits = "".join(each for each in spelled if each.isdecimal())
        national = phonenumbers.national_significant_number(number)
        if not digits.endswith(f"{national}{extension}"):
            return ""
    e164 = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)
    return f"{e164};ext={extension}" if extension else str(e164)
