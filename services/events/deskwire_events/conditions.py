"""Conditions in CEL over the JSON form of an event: compiled once, and bounded in cost before they run.

The language ends always, and its regular expressions are RE2's, linear in their text. What can cost much is a macro
that walks a list inside of another one's walk: only one macro is allowed, so that an expression walks an event once.
"""

from __future__ import annotations

import functools
import re
from typing import Any, Final

from cel_expr_python import cel

from deskwire_common.errors import InvalidArgument
from deskwire_events.domain import Condition
from deskwire_events.domain.filters import Attributes
from deskwire_events.spine import Carried

MAX_MACROS: Final = 1
_MACRO: Final = re.compile(r"\.\s*(all|exists|exists_one|map|filter)\s*\(")
_KEPT: Final = 4_096


@functools.cache
def _environment() -> Any:
    return cel.NewEnv(variables={"event": cel.Type.DYN})


@functools.lru_cache(_KEPT)
def condition(expression: str) -> Condition:
    """The condition that an expression says. Raises InvalidArgument for one that is wrong or costs too much."""
    if len(_MACRO.findall(expression)) > MAX_MACROS:
        raise InvalidArgument(
            f"the condition costs too much: it may have {MAX_MACROS} of all, exists, exists_one, map and filter",
            field="cel",
        )
    try:
        program = _environment().compile(expression)
    except RuntimeError as error:
        raise InvalidArgument(f"the condition is no CEL: {error}", field="cel") from error
    if program.return_type().name() not in {"BOOL", "DYN"}:
        raise InvalidArgument("the condition is neither true nor false", field="cel")

    def holds(attributes: Attributes) -> bool:
        if not isinstance(attributes, Carried):
            return False
        try:
            return program.eval(data={"event": attributes.document}).value() is True
        except (InvalidArgument, RuntimeError, OverflowError, TypeError, ValueError):
            # No event, or a number that CEL hasn't.
            return False

    return holds
