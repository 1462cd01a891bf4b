"""Values against JSON Schemas (2020-12) of others: what is checked costs a bounded number of steps.

Schemas come from adapters and tenants. So references lead nowhere but into the schema itself, patterns are matched by
RE2, which is linear in its text, and each keyword that is looked at counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from cel_expr_python import cel
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.validators import extend
from referencing import Registry
from referencing.exceptions import Unresolvable

from deskwire_common.errors import InvalidArgument

MAX_SCHEMA: Final = 65_536
"""Bytes of a schema."""
MAX_STEPS: Final = 20_000
_MAX_UNIQUE: Final = 200
_Keyword = Callable[[Any, Any, Any, Any], Iterator[ValidationError] | None]


class _TooMuch(Exception):
    """The steps are used up."""


class SchemaInvalid(Exception):
    """A schema that can't be used; the message says why."""


class _Steps:
    def __init__(self) -> None:
        self.left = MAX_STEPS

    def counted(self, keyword: _Keyword) -> _Keyword:
        """The keyword, which takes one step."""

        def count(*arguments: Any) -> Iterator[ValidationError] | None:
            self.left -= 1
            if self.left < 0:
                raise _TooMuch
            return keyword(*arguments)

        return count


def _pattern(_validator: Any, pattern: str, value: Any, _schema: Any) -> Iterator[ValidationError]:
    if not isinstance(value, str):
        return
    program = cel.NewEnv(variables={"text": cel.Type.STRING, "pattern": cel.Type.STRING}).compile(
        "text.matches(pattern)"
    )
    try:
        found = program.eval(data={"text": value, "pattern": pattern}).value()
    except RuntimeError:
        found = None
    if not isinstance(found, bool):
        raise SchemaInvalid(f"the pattern {pattern!r} is none of RE2")
    if not found:
        yield ValidationError(f"it doesn't match {pattern!r}")


def _unique(
    validator: Any, wanted: Any, value: Any, schema: Any
) -> Iterator[ValidationError] | None:
    if wanted and isinstance(value, list) and len(value) > _MAX_UNIQUE:
        return iter([ValidationError(f"it has more than {_MAX_UNIQUE} items")])
    plain: Any = Draft202012Validator.VALIDATORS["uniqueItems"]
    found: Iterator[ValidationError] | None = plain(validator, wanted, value, schema)
    return found


def _no_properties(*_: Any) -> Iterator[ValidationError]:
    raise SchemaInvalid("patternProperties isn't supported")


def check(schema: str, value: Mapping[str, Any], field: str) -> None:
    """Check a value against a schema. Blocks for some milliseconds.

    Raises InvalidArgument with the path of the first fault below `field`, and SchemaInvalid.
    """
    if len(schema.encode()) > MAX_SCHEMA:
        raise SchemaInvalid(f"it has more than {MAX_SCHEMA} bytes")
    try:
        parsed = json.loads(schema)
        Draft202012Validator.check_schema(parsed)
    except (SchemaError, ValueError, RecursionError) as error:
        said = error.message if isinstance(error, SchemaError) else str(error)
        raise SchemaInvalid(said) from error
    steps = _Steps()
    own = {"pattern": _pattern, "uniqueItems": _unique, "patternProperties": _no_properties}
    keywords = {
        name: steps.counted(keyword)
        for name, keyword in {**Draft202012Validator.VALIDATORS, **own}.items()
    }
    validator: Any = extend(Draft202012Validator, keywords)(parsed, registry=Registry())
    try:
        fault = next(iter(validator.iter_errors(dict(value))), None)
    except Unresolvable as error:
        raise SchemaInvalid(f"a reference leads nowhere: {error}") from error
    except (_TooMuch, RecursionError) as error:
        raise SchemaInvalid("checking against it takes too many steps") from error
    if fault is not None:
        path = "".join(
            f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault.absolute_path
        )
        raise InvalidArgument(f"{field}{path}: {fault.message[:300]}", field=f"{field}{path}")
