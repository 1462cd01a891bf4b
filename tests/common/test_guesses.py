"""Wrong secrets get slower; right ones aren't locked out by them."""

from __future__ import annotations

import tracemalloc
from contextlib import suppress

import pytest

from deskwire_common.auth import Guesses
from deskwire_common.auth.guesses import NAME_BURST, NAME_SECONDS, PEER_BURST, PEER_SECONDS
from deskwire_common.clock import ManualClock
from deskwire_common.errors import ResourceExhausted, Unauthenticated

RIGHT, WRONG = b"right", b"wrong"


class Door:
    """One secret for every name."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.guesses = Guesses(self.clock)

    def opens(self, name: str, peer: str, secret: bytes = RIGHT) -> bool | float | None:
        """Whether the secret is right, or how many seconds to wait."""
        try:
            with self.guesses.one(name, peer, secret):
                if secret != RIGHT:
                    raise Unauthenticated("wrong")
        except Unauthenticated:
            return False
        except ResourceExhausted as error:
            return error.retry_after if error.reason_name == "RATE_LIMITED" else None
        return True


def test_a_peer_that_is_wrong_waits() -> None:
    door = Door()
    assert [door.opens(f"n{each}", "evil", WRONG) for each in range(PEER_BURST)] == [
        False
    ] * PEER_BURST
    assert door.opens("n", "evil", WRONG) == PEER_SECONDS
    assert door.opens("n", "evil") == PEER_SECONDS, "also with a right one that it found"
    assert door.opens("n", "good")
    door.clock.advance(PEER_SECONDS)
    assert door.opens("n", "evil", WRONG) is False
    assert door.opens("n", "evil", WRONG) == PEER_SECONDS


def test_a_name_that_is_guessed_at_from_everywhere_slows_those_who_were_wrong() -> None:
    door = Door()
    for each in range(NAME_BURST):
        assert door.opens("crm", f"bot-{each}", WRONG) is False
    assert door.opens("crm", "bot-0", WRONG) == NAME_SECONDS
    assert door.opens("erp", "bot-0", WRONG) is False, "other names are others"
    # Its owner comes from elsewhere for the first time.
    assert door.opens("crm", "owner") is True


def test_a_secret_that_was_right_is_never_limited() -> None:
    door = Door()
    assert door.opens("crm", "proxy") is True
    for _ in range(2 * NAME_BURST):
        door.opens("crm", "proxy", WRONG)
    assert door.opens("crm", "proxy", WRONG) == NAME_SECONDS
    assert door.opens("crm", "proxy") is True
    # For a day after the last time.
    door.clock.advance(86_401)
    for _ in range(2 * NAME_BURST):
        door.opens("crm", "proxy", WRONG)
    assert door.opens("crm", "proxy") == NAME_SECONDS


def test_a_revoked_secret_is_a_wrong_one() -> None:
    door = Door()
    assert door.opens("crm", "owner") is True
    # The first time it is let through still, as it was right before.
    for _ in range(NAME_BURST + 1):
        with pytest.raises(Unauthenticated), door.guesses.one("crm", "owner", RIGHT):
            raise Unauthenticated("revoked")
    with pytest.raises(ResourceExhausted), door.guesses.one("crm", "owner", RIGHT):
        pass


def test_right_ones_and_failures_of_ours_count_nothing() -> None:
    door = Door()
    for each in range(3 * PEER_BURST):
        assert door.opens(f"n{each}", "good") is True
        with suppress(OSError), door.guesses.one(f"m{each}", "good", RIGHT):
            raise OSError
    assert door.opens("n", "good", WRONG) is False


def test_memory_is_bounded() -> None:
    door = Door()
    tracemalloc.start()
    for each in range(40_000):
        door.opens(f"name-{each}", f"peer-{each}", WRONG if each % 2 else RIGHT)
        if each == 20_000:
            before, _ = tracemalloc.get_traced_memory()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 1_000_000, "20,000 more of each would have some 10 MB"


@pytest.mark.parametrize("tries", [1, PEER_BURST + 5])
def test_tries_at_the_same_time_are_counted(tries: int) -> None:
    door = Door()
    open_tries = []
    for each in range(tries):
        one = door.guesses.one(f"n{each}", "evil", WRONG)
        with suppress(ResourceExhausted):
            one.__enter__()
            open_tries.append(one)
    assert len(open_tries) == min(tries, PEER_BURST)
