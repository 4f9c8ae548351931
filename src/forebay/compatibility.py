"""Whether two schemas of one version of an event can stand for each other, on any mixture of releases.

Nodes and core are upgraded over months, and rolled back: within a version either side may be the older one. So nothing
but a field that may be left out can be added, anywhere in the body, and everything else stays as it was. Compared is
the JSON Schema that msgspec derives; names of classes, titles and descriptions are of no account.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

Schema = Mapping[str, Any]

_NOISE = frozenset({"title", "description", "examples", "default", "$defs", "discriminator"})
_MISSING = object()


class Difference(NamedTuple):
    """One difference: the field's path, such as ``lines[].cents``, and what happened to it."""

    path: str
    what: str


class Comparison(NamedTuple):
    """What differs: what a release on one side could not read, or would read otherwise; and fields that were added."""

    breaking: list[Difference]
    added: list[str]


def compare(old: Schema, new: Schema) -> Comparison:
    """Compare the published schema of a version with the one of now.

    Example:
        >>> old = {"type": "object", "properties": {"door": {"type": "string"}}, "required": ["door"]}
        >>> new = {"type": "object", "properties": {"gate": {"type": "string"}}, "required": ["gate"]}
        >>> for path, what in compare(old, new).breaking:
        ...     print(f"{path}: {what}")
        door: was removed, or has another name
        gate: is required, and older releases do not send it
    """
    walk = _Walk(old, new)
    walk.values("", old, new)
    return Comparison(walk.breaking, walk.added)


def closed_objects(schema: Schema) -> list[str]:
    """Return the paths of objects that refuse fields which they do not know; "" is the body itself."""
    found: list[str] = []
    _find_closed(schema, "", schema, found, frozenset())
    return found


class _Walk:
    def __init__(self, old: Schema, new: Schema) -> None:
        self.breaking: list[Difference] = []
        self.added: list[str] = []
        self._old_root = old
        self._new_root = new
        self._seen: set[tuple[str, str]] = set()

    def values(self, path: str, old: Schema, new: Schema) -> None:
        pair = old.get("$ref", ""), new.get("$ref", "")
        if any(pair):
            if pair in self._seen:  # a type that contains itself
                return
            if all(pair):
                self._seen.add(pair)
        before = {_kind(each, self._old_root, old): each for each in _alternatives(old, self._old_root)}
        after = {_kind(each, self._new_root, new): each for each in _alternatives(new, self._new_root)}
        if before.keys() != after.keys():
            gone, come = _words(before.keys() - after.keys()), _words(after.keys() - before.keys())
            if gone and come:
                self._break(path, f"was {gone} and is {come}")
            elif gone:
                self._break(path, f"may not be {gone} any more, which older releases send")
            else:
                self._break(path, f"may be {come}, which older releases cannot read")
            return
        for kind, each in before.items():
            self._same_kind(path, each, after[kind])

    def _same_kind(self, path: str, old: Schema, new: Schema) -> None:
        if "properties" in old and "properties" in new:
            self._objects(path, old, new)
            return
        for word in sorted((old.keys() | new.keys()) - _NOISE):
            before, after = old.get(word, _MISSING), new.get(word, _MISSING)
            if isinstance(before, Mapping) and isinstance(after, Mapping):  # items, additionalProperties, propertyNames
                self.values(f"{path}[]" if word == "items" else f"{path}.*", before, after)
            elif word == "prefixItems" and _lengths_agree(before, after):
                for index, (one, other) in enumerate(zip(before, after, strict=True)):
                    self.values(f"{path}[{index}]", one, other)
            elif before != after:
                self._break(path, _changed(word, before, after))

    def _objects(self, path: str, old: Schema, new: Schema) -> None:
        before, after = old["properties"], new["properties"]
        for name, field in before.items():
            where = f"{path}.{name}" if path else name
            if name not in after:
                self._break(where, "was removed, or has another name")
                continue
            was_required, is_required = name in old.get("required", ()), name in new.get("required", ())
            if is_required and not was_required:
                self._break(where, "is required, and older releases may leave it out")
            elif was_required and not is_required:
                self._break(where, "may be left out, and older releases require it")
            elif field.get("default", _MISSING) != after[name].get("default", _MISSING):
                self._break(
                    where, _changed("default", *(each.get("default", _MISSING) for each in (field, after[name])))
                )
            self.values(where, field, after[name])
        for name in after.keys() - before.keys():
            where = f"{path}.{name}" if path else name
            if name in new.get("required", ()):
                self._break(where, "is required, and older releases do not send it")
            else:
                self.added.append(where)

    def _break(self, path: str, what: str) -> None:
        self.breaking.append(Difference(path or "the body", what))


def _alternatives(schema: Schema, root: Schema) -> list[Schema]:
    resolved = _resolved(schema, root)
    return [_resolved(each, root) for each in resolved.get("anyOf", [resolved])]


def _resolved(schema: Schema, root: Schema) -> Schema:
    while "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    return schema


def _kind(schema: Schema, root: Schema, union: Schema) -> tuple[str, str]:
    """Tell alternatives apart: by their JSON type and format, objects of a tagged union by their tag."""
    if "enum" in schema:
        return "enum", ""
    tag = _resolved(union, root).get("discriminator", {}).get("propertyName")
    if tag and tag in schema.get("properties", {}):
        return "object", str(schema["properties"][tag]["enum"][0])
    if "properties" in schema:
        return "object", ""
    if schema.get("type") == "object":
        return "map", ""
    return schema.get("type", "anything"), schema.get("format") or schema.get("contentEncoding") or ""


def _words(kinds: Any) -> str:
    return " or ".join(sorted(f"{kind} ({detail})" if detail else kind for kind, detail in kinds))


def _lengths_agree(before: object, after: object) -> bool:
    return isinstance(before, list) and isinstance(after, list) and len(before) == len(after)


def _changed(word: str, before: object, after: object) -> str:
    if word == "enum" and isinstance(before, list) and isinstance(after, list):
        gone, come = (
            [repr(each) for each in one if each not in other] for one, other in ((before, after), (after, before))
        )
        said = [f"may be {', '.join(come)}, which older releases cannot read"] if come else []
        said += [f"may not be {', '.join(gone)} any more, which older releases send"] if gone else []
        return "; ".join(said) or "its values have another order"
    if before is _MISSING:
        return f"{word} is {_text(after)} and was not set"
    if after is _MISSING:
        return f"{word} was {_text(before)} and is not set any more"
    return f"{word} was {_text(before)} and is {_text(after)}"


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _find_closed(schema: Schema, path: str, root: Schema, found: list[str], seen: frozenset[str]) -> None:
    reference = schema.get("$ref")
    if reference is not None:
        if reference in seen:
            return
        seen |= {reference}
    resolved = _resolved(schema, root)
    if "properties" in resolved and resolved.get("additionalProperties") is False:
        found.append(path)
    for name, field in resolved.get("properties", {}).items():
        _find_closed(field, f"{path}.{name}" if path else name, root, found, seen)
    for each in (*resolved.get("anyOf", ()), *resolved.get("prefixItems", ())):
        _find_closed(each, path, root, found, seen)
    for word in ("items", "additionalProperties"):
        if isinstance(resolved.get(word), Mapping):
            _find_closed(resolved[word], f"{path}[]" if word == "items" else f"{path}.*", root, found, seen)
