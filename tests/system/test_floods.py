"""More requests at once than the server takes: the rest is turned away, and the gateway stays as small as it was."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

from factories.server import Served, serving
from system.processes import gateway_of, wait_until

PLACES = 20
FLOOD = 600
PROMPT = "word " * 4000


async def ask(served: Served, body: bytes) -> int:
    """The status of one chat on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    status = int((await reader.readline()).split()[1])
    await reader.read()
    writer.close()
    return status


async def test_a_flood_is_turned_away_and_leaves_nothing() -> None:
    model = ",name=dummy,driver=dummy,tokens_per_second=50"
    with serving("-m", model, "--max-concurrent-requests", str(PLACES)) as served:
        gateway = gateway_of(served)
        body = json.dumps({"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 4}).encode()
        assert await ask(served, body) == 200
        descriptors, resident = gateway.descriptors, gateway.resident
        statuses = Counter(await asyncio.gather(*(ask(served, body) for _ in range(FLOOD))))
        assert set(statuses) == {200, 429}
        assert statuses[200] >= 2 * PLACES  # those with a place, and as many in line
        assert gateway.resident - resident < 40 << 20
        await asyncio.to_thread(wait_until, lambda: gateway.descriptors <= descriptors)
        assert await ask(served, body) == 200
