"""Examples of an event, made up from its type: one that says everything, and one that says no more than it must.

They become the golden files of a version that is published for the first time. Who knows better examples writes them
by hand; a type that says too little for one (a pattern, a custom type) needs that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec import inspect

from forebay.errors import ForebayError

DEPTH = 4
"""How deep a type that contains itself is followed."""

_PLAIN: Mapping[type[inspect.Type], Any] = {
    inspect.NoneType: None,
    inspect.BoolType: True,
    inspect.AnyType: "anything",
    inspect.BytesType: "Zm9yZWJheQ==",
    inspect.ByteArrayType: "Zm9yZWJheQ==",
    inspect.MemoryViewType: "Zm9yZWJheQ==",
    inspect.DateTimeType: "2026-03-01T12:00:00Z",
    inspect.TimeType: "12:00:00Z",
    inspect.DateType: "2026-03-01",
    inspect.TimeDeltaType: "PT90S",
    inspect.UUIDType: "019ca8f0-0000-7000-8000-000000000001",
    inspect.DecimalType: "12.50",
}
_SEQUENCES = (inspect.ListType, inspect.SetType, inspect.FrozenSetType, inspect.VarTupleType, inspect.CollectionType)
_OBJECTS = (inspect.StructType, inspect.TypedDictType, inspect.DataclassType)


class NoExampleError(ForebayError):
    """A type says too little of its values for one to be made up."""


def examples_of(event: type[msgspec.Struct]) -> list[bytes]:
    """Return examples of an event as JSON, as it would be written: at least one, and none twice.

    Raises:
        NoExampleError: none can be made up.
    """
    wanted = inspect.type_info(event)
    found: list[bytes] = []
    for full in (True, False):
        raw = msgspec.json.encode(_value(wanted, "", full, 0))
        try:
            body = msgspec.json.encode(msgspec.json.decode(raw, type=event))
        except (msgspec.ValidationError, TypeError) as error:
            raise NoExampleError(f"no example of {event.__name__} can be made up: {error}") from None
        if body not in found:
            found.append(body)
    return found


def unsaid(event: type[msgspec.Struct]) -> list[tuple[str, str, str]]:
    """Return the fields of which a schema does not say all that readers rely on: path, what is wrong, the remedy."""
    found = []
    for path, each in _walk(inspect.type_info(event), "", 0):
        if isinstance(each, inspect.DateTimeType | inspect.TimeType) and each.tz is not True:
            found.append((path, "is a time that may have no offset from UTC", "annotate it with Meta(tz=True)"))
        elif isinstance(each, inspect.DictType) and not isinstance(_bare(each.key_type), inspect.StrType):
            found.append((path, "has keys that are no text, and JSON has no others", "make it a dict[str, ...]"))
    return found


def _bare(wanted: inspect.Type) -> inspect.Type:
    return wanted.type if isinstance(wanted, inspect.Metadata) else wanted


def _walk(wanted: inspect.Type, path: str, depth: int) -> Iterator[tuple[str, inspect.Type]]:
    if isinstance(wanted, inspect.Metadata):
        yield from _walk(wanted.type, path, depth)
        return
    yield path, wanted
    if depth > DEPTH:
        return
    if isinstance(wanted, (*_OBJECTS, inspect.NamedTupleType)):
        for field in wanted.fields:
            yield from _walk(field.type, f"{path}.{field.encode_name}" if path else field.encode_name, depth + 1)
    elif isinstance(wanted, _SEQUENCES):
        yield from _walk(wanted.item_type, f"{path}[]", depth + 1)
    elif isinstance(wanted, inspect.TupleType):
        for index, each in enumerate(wanted.item_types):
            yield from _walk(each, f"{path}[{index}]", depth + 1)
    elif isinstance(wanted, inspect.DictType):
        yield from _walk(wanted.value_type, f"{path}.*", depth + 1)
    elif isinstance(wanted, inspect.UnionType):
        for each in wanted.types:
            yield from _walk(each, path, depth)


def _value(wanted: inspect.Type, name: str, full: bool, depth: int) -> Any:
    """Return a JSON value of a type; ``full`` leaves nothing out and nothing empty."""
    if type(wanted) in _PLAIN:
        return _PLAIN[type(wanted)]
    match wanted:
        case inspect.Metadata():
            return _value(wanted.type, name, full, depth)
        case inspect.IntType() | inspect.FloatType():
            return _number(wanted)
        case inspect.StrType():
            text = name or "text"
            text = text.ljust(wanted.min_length or 0, "-")
            return text if wanted.max_length is None else text[: wanted.max_length]
        case inspect.LiteralType():
            return wanted.values[0]
        case inspect.EnumType():
            return next(iter(wanted.cls)).value
        case inspect.UnionType():
            return _value(_alternative(wanted, full and depth < DEPTH), name, full, depth)
        case inspect.TupleType():
            return [_value(each, name, full, depth + 1) for each in wanted.item_types]
        case inspect.DictType():
            count = max(wanted.min_length or 0, int(full and depth < DEPTH))
            value = _value(wanted.value_type, name, full, depth + 1) if count else None
            return {str(_value(wanted.key_type, f"key-{n}", full, depth + 1)): value for n in range(1, count + 1)}
    if isinstance(wanted, _SEQUENCES):
        count = max(wanted.min_length or 0, int(full and depth < DEPTH))
        return [_value(wanted.item_type, name, full, depth + 1) for _ in range(count)]
    if isinstance(wanted, (*_OBJECTS, inspect.NamedTupleType)):
        return _fields(wanted, full, depth)
    raise NoExampleError(f"no example of {type(wanted).__name__.removesuffix('Type').lower()} can be made up")


def _fields(wanted: Any, full: bool, depth: int) -> Any:
    chosen = [each for each in wanted.fields if each.required or (full and depth < DEPTH)]
    values = {each.encode_name: _value(each.type, each.encode_name, full, depth + 1) for each in chosen}
    if isinstance(wanted, inspect.NamedTupleType) or getattr(wanted, "array_like", False):
        head = [wanted.tag] if getattr(wanted, "tag", None) is not None else []
        return [*head, *values.values()]
    if isinstance(wanted, inspect.StructType) and wanted.tag_field is not None:
        return {wanted.tag_field: wanted.tag, **values}
    return values


def _alternative(union: inspect.UnionType, full: bool) -> inspect.Type:
    """Return the first alternative that says something, or the one that says nothing."""
    some = [each for each in union.types if not isinstance(each, inspect.NoneType)]
    return some[0] if full or len(some) == len(union.types) else inspect.NoneType()


def _number(wanted: inspect.IntType | inspect.FloatType) -> float:
    """Return the number closest to 1 that is allowed, for a whole number a whole one."""
    step = wanted.multiple_of or (1 if isinstance(wanted, inspect.IntType) else 0.5)
    number: float = step
    if wanted.ge is not None:
        number = max(number, wanted.ge)
    if wanted.gt is not None and number <= wanted.gt:
        number = wanted.gt + step
    if wanted.le is not None:
        number = min(number, wanted.le)
    if wanted.lt is not None and number >= wanted.lt:
        number = wanted.lt - step
    return number
