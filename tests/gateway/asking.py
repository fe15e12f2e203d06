"""What tests ask a gateway again and again."""

from __future__ import annotations


async def shown(gateway, name: str) -> dict:
    return (await gateway.http.get(f"/v1/models/{name}")).json()


async def ask(gateway, name: str, **body):
    return await gateway.http.post("/v1/chat/completions", json={"model": name, "messages": "x", **body})


async def said(gateway, name: str) -> str:
    return (await ask(gateway, name)).json()["choices"][0]["message"]["content"]
