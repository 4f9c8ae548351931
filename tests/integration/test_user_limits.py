"""How large a message of this very user may be: an account may allow less than the server does."""

from __future__ import annotations

from pathlib import Path

import msgspec

from forebay.jetstream.client import BrokerClient
from forebay.testing.nats_server import NatsServer
from tests.integration.rig import started

RECORDED = Path(__file__).parents[1] / "data" / "limited-user.json"


class Keys(msgspec.Struct):
    """JWTs that were made once; nobody has the keys. The user bears its token: it need not sign."""

    operator: str
    system_account: str
    resolver_preload: dict[str, str]
    user: str


async def test_a_client_knows_the_limit_of_its_user_which_the_broker_tells_after_the_login_o5(tmp_path: Path) -> None:
    """O5: sizes are checked before anything is sent, because a message above the user's limit ends the connection."""
    keys = msgspec.json.decode(RECORDED.read_bytes(), type=Keys)
    preload = ", ".join(f"{account}: {token}" for account, token in keys.resolver_preload.items())
    extra = f"operator: {keys.operator}\nsystem_account: {keys.system_account}\n"
    server = NatsServer(tmp_path, extra=f"{extra}resolver: MEMORY\nresolver_preload: {{ {preload} }}\n")
    async with started(server):
        client = BrokerClient()
        await client.connect(
            servers=[server.url],
            user_jwt_cb=lambda: keys.user.encode(),
            signature_cb=lambda _: b"",
            allow_reconnect=False,
        )
        try:
            await client.flush()
            assert client.max_payload == 2000
        finally:
            await client.close()
