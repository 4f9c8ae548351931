from __future__ import annotations

import socket

import pytest

from forebay.process import _listen


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_listening_socket_says_its_protocol_so_that_small_answers_are_sent_at_once(host: str) -> None:
    """asyncio sets TCP_NODELAY where the protocol is said; else an answer on a kept connection waits some 40 ms."""
    with _listen(host, 0) as listening:
        assert listening.proto == socket.IPPROTO_TCP
