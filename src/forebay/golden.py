"""Golden files: what was published of each version of each event, and whether the code of now still keeps to it.

A folder holds two files for each version: ``till.sale-recorded.v1.json`` with examples of its body, and
``till.sale-recorded.v1.schema.json`` with its lane, its key and its JSON Schema. They stand in version control, and
only grow: nodes that are away for a year send what was published a year ago.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from forebay.compatibility import Schema, closed_objects, compare
from forebay.errors import BodyError, ConfigurationError, MessageError
from forebay.event import EventSpec, key_of, parse_type
from forebay.evolution import Reader, spec_of
from forebay.examples import NoExampleError, examples_of, unsaid

SCHEMA = ".schema.json"

ACCEPT = "run `forebay contracts accept`"
NEW_VERSION = "undo it, or make it a new version with an upcaster from this one"
NEW_KIND = "undo it, or make it another kind of event"


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong with a contract.

    Attributes:
        type: the contract's, such as ``till.sale-recorded.v1``.
        where: the field, the file, or the type itself once more.
        what: what is wrong.
        remedy: what to do about it.
        acceptable: whether ``accept`` settles it: nothing that was published is broken, it is only not on record.
    """

    type: str
    where: str
    what: str
    remedy: str
    acceptable: bool = False

    def __str__(self) -> str:
        where = "" if self.where == self.type else f" {self.where}:"
        return f"{self.type}:{where} {self.what}; {self.remedy}"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What the schema's file says of one version."""

    type: str
    lane: str
    key: str | None
    schema: dict[str, Any]


class IncompatibleError(ConfigurationError):
    """Contracts break what was published.

    Attributes:
        problems: all that has to be corrected first.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(
            f"{len(problems)} of the contracts' changes cannot be accepted: {problems[0]}",
            hint="what was published stays readable",
        )
        self.problems = list(problems)


class Golden:
    """The golden files of a project's contracts.

    Example:
        >>> from pathlib import Path
        >>> from forebay import Event
        >>> class DoorOpened(Event, service="door", kind="door-opened", key="door"):
        ...     door: str
        >>> golden = Golden(Path("golden"), [DoorOpened])
        >>> [str(problem) for problem in golden.check()]
        ['door.door-opened.v1: is not on record; run `forebay contracts accept`']
        >>> sorted(path.name for path in golden.accept())
        ['door.door-opened.v1.json', 'door.door-opened.v1.schema.json']
        >>> golden.check()
        []
    """

    def __init__(self, folder: Path, contracts: Iterable[type[Any]]) -> None:
        """Prepare; nothing is read yet.

        Args:
            folder: where the files are; it need not be there.
            contracts: every event and command class of the project, all versions.
        """
        self.folder = folder
        self._contracts = sorted(contracts, key=lambda each: _order(spec_of(each)))

    def check(self) -> list[Problem]:
        """Return what is wrong with the contracts, in the order of their types; empty where all is well.

        Raises:
            ConfigurationError: a schema's file cannot be read.
        """
        return list(self._problems())

    def accept(self) -> list[Path]:
        """Put on record what is new and breaks nothing; return the files that were written.

        Examples that are there stay: they are what was sent. A version whose schema grew gets new ones beside them.

        Raises:
            IncompatibleError: something that was published is broken; nothing is written.
            NoExampleError: an example has to be written by hand first; nothing is written.
            ConfigurationError: a file cannot be read.
        """
        problems = self.check()
        if broken := [each for each in problems if not each.acceptable]:
            raise IncompatibleError(broken)
        wanted = {each.type for each in problems}
        files: dict[Path, bytes] = {}
        for contract in self._contracts:
            spec = spec_of(contract)
            if spec.type not in wanted:
                continue
            path = self.folder / f"{spec.type}.json"
            examples = _examples_in(path) if path.exists() else []
            known = [msgspec.json.encode(each, order="sorted") for each in examples]
            try:
                made = [msgspec.json.decode(each) for each in examples_of(contract)]
            except NoExampleError as error:
                if not examples:
                    raise NoExampleError(f"{spec.type}: {error}", hint=f"write one into {path}: [{{...}}]") from None
                made = []
            examples += [each for each in made if msgspec.json.encode(each, order="sorted") not in known]
            files[path] = _pretty(examples)
            files[self._schema_file(spec)] = _pretty(
                {"type": spec.type, "lane": spec.lane, "key": spec.key, "schema": msgspec.json.schema(contract)}
            )
        if files:
            self.folder.mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            path.write_bytes(text)
        return list(files)

    def _problems(self) -> Iterator[Problem]:
        records = self._records()
        contracts: dict[str, type[Any]] = {}
        for contract in self._contracts:
            spec = spec_of(contract)
            if spec.type in contracts:
                yield _about(spec, f"two classes declare it, {contracts[spec.type].__name__} and {contract.__name__}")
            contracts[spec.type] = contract
        for gone in records.keys() - contracts.keys():
            yield Problem(
                type=gone,
                where=gone,
                what="was published, and no class declares it",
                remedy="declare it again: nodes that are away still send it, and the archive has it",
            )
        for name, contract in contracts.items():
            broken = list(self._declared(contract, records.get(name)))
            yield from broken
            if all(each.acceptable for each in broken):
                newest = max(_siblings(contract, contracts.values()), key=lambda each: spec_of(each).version)
                yield from self._examples(contract, newest, published=name in records)

    def _declared(self, contract: type[Any], record: Record | None) -> Iterator[Problem]:
        """Compare what a class says with what was published of it, and with what any class must not say."""
        spec = spec_of(contract)
        try:
            schema: Schema = msgspec.json.schema(contract)
        except TypeError as error:
            yield _about(spec, str(error).splitlines()[0], "use types that msgspec writes by itself")
            return
        for path in closed_objects(schema):
            what = "refuses fields that it does not know, so that no later release could add one"
            yield _about(spec, what, "take forbid_unknown_fields away", path or spec.type)
        for path, what, remedy in unsaid(contract):
            yield _about(spec, what, remedy, path)
        if record is None:
            yield _about(spec, "is not on record", ACCEPT, acceptable=True)
            return
        if record.lane != spec.lane:
            yield _about(spec, f"lane was {record.lane!r} and is {spec.lane!r}: order holds within a lane", NEW_KIND)
        if record.key != spec.key:
            yield _about(spec, f"key was {record.key!r} and is {spec.key!r}: order holds within a key", NEW_KIND)
        comparison = compare(record.schema, schema)
        for path, what in comparison.breaking:
            yield _about(spec, what, NEW_VERSION, path)
        for path in comparison.added:
            yield _about(spec, "was added, which breaks nothing", ACCEPT, path, acceptable=True)

    def _examples(self, contract: type[Any], newest: type[Any], *, published: bool) -> Iterator[Problem]:
        """Read every example as its own version and write it again, and read it as the newest version."""
        spec = spec_of(contract)
        file = self.folder / f"{spec.type}.json"
        if file.exists():
            examples = [msgspec.json.encode(each) for each in _examples_in(file)]
        elif published:
            yield _about(spec, "its examples are gone", "take them out of version control", file.name)
            return
        else:
            try:
                examples = examples_of(contract)
            except NoExampleError:
                return  # `accept` asks for one
        reader = Reader(newest)
        if spec.version not in reader:
            yield _about(
                spec,
                f"no upcaster leads to {spec_of(newest).type}",
                f"write a function with @upcasts({contract.__name__})",
            )
            return
        for number, body in enumerate(examples, 1):
            where = f"{file.name}, example {number}"
            try:
                event = Reader(contract).decode(spec.version, body)
                now = reader.decode(spec.version, body)
            except MessageError as error:
                remedy = "correct the upcaster" if isinstance(error.__cause__, Exception) else NEW_VERSION
                yield _about(spec, str(error), remedy, where)
                continue
            if lost := _lost(msgspec.json.decode(body), msgspec.json.decode(msgspec.json.encode(event)), ""):
                yield _about(spec, f"is read, and written again without its {lost}", NEW_VERSION, where)
            if key_of(event) != key_of(now):
                what = f"its key {key_of(event)!r} becomes {key_of(now)!r}: order holds within a key"
                yield _about(spec, what, "let the upcaster keep the key", where)
            try:
                Reader(newest).decode(spec_of(newest).version, msgspec.json.encode(now))
            except BodyError as error:
                yield _about(spec, f"becomes what cannot be written: {error}", "correct the upcaster", where)

    def _records(self) -> dict[str, Record]:
        found = {}
        for path in sorted(self.folder.glob(f"*{SCHEMA}")):
            name = path.name.removesuffix(SCHEMA)
            try:
                found[name] = msgspec.json.decode(path.read_bytes(), type=Record)
            except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
                raise ConfigurationError(f"{path}: {error}") from error
        strangers = {path.stem for path in self.folder.glob("*.json") if not path.name.endswith(SCHEMA)} - found.keys()
        declared = {spec_of(each).type for each in self._contracts}
        for name in sorted(name for name in strangers - declared if parse_type(name)):
            raise ConfigurationError(f"{self.folder / name}.json has no {SCHEMA} beside it", hint="bring it back")
        return found

    def _schema_file(self, spec: EventSpec) -> Path:
        return self.folder / f"{spec.type}{SCHEMA}"


def _siblings(contract: type[Any], contracts: Iterable[type[Any]]) -> list[type[Any]]:
    spec = spec_of(contract)
    return [each for each in contracts if (spec_of(each).service, spec_of(each).kind) == (spec.service, spec.kind)]


def _order(spec: EventSpec) -> tuple[str, str, int]:
    return spec.service, spec.kind, spec.version


def _about(
    spec: EventSpec, what: str, remedy: str = "keep one", where: str = "", *, acceptable: bool = False
) -> Problem:
    return Problem(type=spec.type, where=where or spec.type, what=what, remedy=remedy, acceptable=acceptable)


def _examples_in(path: Path) -> list[Any]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Any])
    except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
        raise ConfigurationError(f"{path}: {error}", hint="it is a JSON list of bodies") from error


def _lost(said: Any, again: Any, path: str) -> str:
    """Return the path of something that an example says and the body written again does not; "" where there is none.

    Fields that were added since are in the second alone.
    """
    here = path or "contents"
    if isinstance(said, dict) and isinstance(again, dict):
        ways = ((f"{path}.{name}" if path else name, value, again.get(name, _ABSENT)) for name, value in said.items())
    elif isinstance(said, list) and isinstance(again, list) and len(said) == len(again):
        ways = ((f"{path}[{at}]", value, again[at]) for at, value in enumerate(said))
    else:
        same = type(said) is type(again) and said == again
        return "" if same else here
    return next((lost for name, value, other in ways if (lost := _lost(value, other, name))), "")


_ABSENT = object()


def _pretty(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
