"""The broker's users: one for each node, whose permissions a fault takes and gives back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

ADMINISTRATOR = "administrator"
"""Who comes without a name: the harness itself, and ``forebay apply``."""

PASSWORD = "secret"


class Users:
    """Writes the part of the server's configuration that says who may do what.

    Attributes:
        denied: subjects that a user may not publish, by name.
        limits: further lines of the configuration, by name, such as ``max_payload``.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = list(names)
        self.denied: dict[str, Sequence[str]] = {}
        self.limits: dict[str, int] = {}

    def url(self, name: str, port: int) -> str:
        """Return where a user connects."""
        return f"nats://{name}:{PASSWORD}@127.0.0.1:{port}"

    def configuration(self) -> str:
        """Return the lines for the server."""
        users = ", ".join(self._user(name) for name in [ADMINISTRATOR, *self.names])
        lines = [f"authorization {{ users: [{users}] }}", f"no_auth_user: {ADMINISTRATOR}"]
        return "\n".join([*lines, *(f"{name}: {value}" for name, value in self.limits.items())])

    def _user(self, name: str) -> str:
        denied = ", ".join(f'"{subject}"' for subject in self.denied.get(name, ()))
        permissions = f", permissions: {{ publish: {{ deny: [{denied}] }} }}" if denied else ""
        return f'{{ user: "{name}", password: "{PASSWORD}"{permissions} }}'
