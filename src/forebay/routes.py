"""The HTTP routes of a service, and its settings, which they may ask for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import litestar
import msgspec
from litestar import Router
from litestar.di import NamedDependency, Provide
from litestar.handlers import HTTPRouteHandler
from litestar.params import JSONBody
from litestar.types import AnyCallable

from forebay.direct import Direct, Form, form_of
from forebay.errors import ConfigurationError
from forebay.json_body import JsonBody, json_only
from forebay.problems import problem_responses
from forebay.unit_of_work import UnitStore

_MARKERS: dict[str, Any] = {"data": JSONBody, "store": NamedDependency, "settings": NamedDependency}
"""What Litestar wants to see around the types of these parameters."""


class _Route(NamedTuple):
    """A route as it was declared: ``verb`` is Litestar's decorator."""

    verb: Callable[..., Any]
    path: str
    options: dict[str, Any]
    function: AnyCallable
    form: Form | None

    def handler(self, given: Mapping[str, Any]) -> HTTPRouteHandler:
        """Return Litestar's handler; on the short way where the route suits it (``forebay.direct``)."""
        options = self.options
        if self.form is not None:
            direct = Direct(self.function, self.form, given, options.get("status_code", 201))
            options = {**options, "middleware": [direct.middleware]}
        handler: HTTPRouteHandler = self.verb(self.path, **options)(self.function)
        return handler


class Routes:
    """What a service answers over HTTP.

    Args:
        name: the service's; its folder under ``/``.
        settings: the type of the table ``[<name>]`` of ``forebay.toml``; a msgspec Struct.
    """

    def __init__(self, name: str, settings: type[Any]) -> None:
        self.name = name
        self.settings_type = settings
        self._routes: list[_Route] = []

    def configured(self, settings: Mapping[str, Any] | None) -> Any:
        """Return the table ``[<service>]`` of ``forebay.toml`` as the type that the service declares.

        Raises:
            ConfigurationError: the settings are not of that type.
        """
        try:
            return msgspec.convert(dict(settings or {}), self.settings_type)
        except msgspec.ValidationError as error:
            raise ConfigurationError(f"[{self.name}] in forebay.toml: {error}") from error

    def get(self, path: str, *, problems: Sequence[int] = (), **options: Any) -> Callable[[AnyCallable], AnyCallable]:
        """Serve ``GET /<service><path>``. A parameter ``store`` gets the service's ``UnitStore``.

        Args:
            path: below the service's folder, as Litestar writes it.
            problems: the statuses of the problem documents (RFC 9457) that it answers with.
            options: handed to ``litestar.get``.
        """
        return self._route(litestar.get, path, problems, options)

    def post(self, path: str, *, problems: Sequence[int] = (), **options: Any) -> Callable[[AnyCallable], AnyCallable]:
        """Serve ``POST /<service><path>``; see ``get``.

        A parameter ``data`` gets the JSON body, decoded strictly to its type; a route that takes the ``request``
        instead reads the body as it likes.
        """
        return self._route(litestar.post, path, problems, options)

    def router(self, store: UnitStore, settings: Mapping[str, Any] | None = None) -> Router:
        """Return the routes, mounted under ``/<service>``, with ``store`` and ``settings`` for those that ask for them.

        Args:
            store: the service's store.
            settings: the table ``[<service>]`` of ``forebay.toml``.

        Raises:
            ConfigurationError: the settings are not of the service's type.
        """
        known = self.configured(settings)
        return Router(
            path=f"/{self.name}",
            route_handlers=[route.handler({"store": store, "settings": known}) for route in self._routes],
            dependencies={
                "store": Provide(lambda: store, sync_to_thread=False),
                "settings": Provide(lambda: known, sync_to_thread=False),
            },
            tags=[self.name],
        )

    def _route(
        self, verb: Callable[..., Any], path: str, problems: Sequence[int], options: dict[str, Any]
    ) -> Callable[[AnyCallable], AnyCallable]:
        options["responses"] = {**problem_responses(problems), **options.get("responses", {})}

        def register(function: AnyCallable) -> AnyCallable:
            form = form_of(function, options) if verb is litestar.post else None
            _mark_parameters(function)
            if "data" in inspect.signature(function).parameters:
                options.setdefault("dto", JsonBody)
                options["guards"] = [json_only, *(options.get("guards") or ())]
            self._routes.append(_Route(verb, path, options, function, form))
            return function

        return register


def _mark_parameters(function: Any) -> None:
    """Write Litestar's markers around the types of what a route is given, so that no route has to."""
    for name, marker in _MARKERS.items():
        if name in function.__annotations__:
            function.__annotations__[name] = marker[function.__annotations__[name]]
