"""Spreads a whole run over processes (`pytest -n auto`, as `make test` runs it); each has servers of its own.

The tests of a file stay together, as they share what the file starts. The files that take longest begin first, so that
no process is left with one of them at the end.
"""

from __future__ import annotations

import os
from typing import Any, Final

import pytest
from xdist.scheduler import LoadScopeScheduling

_MOST: Final = 4
"""Most processes: each has a Kafka and two databases, which cost a gigabyte and ten seconds of a core."""

_LONGEST: Final = (
    "tests/faults/test_loops.py",
    "tests/cli/test_up.py",
    "tests/faults/test_replaced.py",
    "tests/e2e/test_walk.py",
    "tests/common/test_ownership.py",
    "tests/events/test_addresses.py",
    "tests/faults/test_outages.py",
    "tests/deploy/test_installed.py",
    "tests/chat/test_shards.py",
    "tests/chat/test_offers.py",
    "tests/chat/test_attachments.py",
    "tests/chat/test_signals.py",
    "tests/events/test_deliveries.py",
    "tests/gateway/test_life.py",
    "tests/faults/test_hostile.py",
    "tests/access/test_command.py",
    "tests/cli/test_chat_shards.py",
)
"""The longest files, as measured; the others follow in the order of collection."""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return one process more than there are cores, since tests wait for timers half of their time.

    For a selection of tests it returns none besides this one, as those would wait for twice the servers.
    """
    chosen = config.option
    if chosen.file_or_dir or chosen.keyword or chosen.markexpr or chosen.lf:
        return 0
    return min((os.cpu_count() or 1) + 1, _MOST)


class ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """Hands out one file after another."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    """Hand out files in the order of collection, which this module sets."""
    config.option.loadscopereorder = False
    return ByFile(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the longest files first, if several processes run."""
    if not hasattr(config, "workerinput"):
        return
    order = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: order.get(item.nodeid.partition("::")[0], len(order)))
