"""Two lines change: the client and its target. The variable MLBALANCE_TARGET names the fleet here."""

import asyncio

import mlbalance_client as mlb


async def main() -> None:
    async with mlb.AsyncClient() as client:
        question = {"role": "user", "content": "Why is the sky blue?"}
        body = {"model": "sim", "messages": [question], "max_tokens": 16}
        response = await client.post("/v1/chat/completions", json=body)
        print(response.json()["choices"][0]["message"]["content"])
        print(response.extensions["mlbalance"].explain())


asyncio.run(main())
