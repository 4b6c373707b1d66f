"""The Anthropic SDK against replicas that speak its API.

Needs, in the clone: pip install ".[httpx2]" anthropic
"""

import asyncio

import anthropic

from mlbalance_client import httpx2 as mlb


async def main() -> None:
    async with anthropic.AsyncAnthropic(
        base_url="http://fleet", api_key="none", http_client=mlb.AsyncClient(), max_retries=0
    ) as client:
        message = await client.messages.create(
            model="sim", max_tokens=16, messages=[{"role": "user", "content": "Hello!"}]
        )
        print(message.content[0].text)


asyncio.run(main())
