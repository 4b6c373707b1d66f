"""The OpenAI SDK (3 and later), streaming. max_retries=0: the balancer retries, once, elsewhere.

Needs, in the clone: pip install ".[httpx2]" openai
"""

import asyncio

import openai

from mlbalance_client import httpx2 as mlb


async def main() -> None:
    async with openai.AsyncOpenAI(
        base_url="http://fleet/v1", api_key="none", http_client=mlb.AsyncClient(), max_retries=0
    ) as client:
        stream = await client.chat.completions.create(
            model="sim",
            messages=[{"role": "user", "content": "Count to ten."}],
            max_tokens=16,
            stream=True,
            extra_headers={"x-mlbalance-session": "user-42"},
        )
        async with stream:
            async for chunk in stream:
                print(chunk.choices[0].delta.content or "", end="")
        print()


asyncio.run(main())
