"""On trio, with plain streaming.

Needs, in the clone: pip install . trio
"""

import json

import trio

import mlbalance_client as mlb


async def main() -> None:
    body = {
        "model": "sim",
        "messages": [{"role": "user", "content": "Tell me a story."}],
        "max_tokens": 16,
        "stream": True,
    }
    async with mlb.AsyncClient() as client:
        with trio.fail_after(30):
            async with client.stream("POST", "/v1/chat/completions", json=body) as response:
                async for line in response.aiter_lines():
                    if line.startswith("data: {"):
                        delta = json.loads(line.removeprefix("data: "))["choices"][0]["delta"]
                        print(delta.get("content") or "", end="", flush=True)


trio.run(main)
