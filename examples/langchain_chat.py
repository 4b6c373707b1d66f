"""LangChain's ChatOpenAI, which hands its HTTP clients on to the OpenAI SDK.

Needs, in the clone: pip install ".[httpx2]" langchain-openai
"""

import asyncio

from langchain_openai import ChatOpenAI

from mlbalance_client import httpx2 as mlb


async def main() -> None:
    async with mlb.AsyncClient() as http_async_client:
        model = ChatOpenAI(
            model="sim",
            base_url="http://fleet/v1",
            api_key="none",
            max_tokens=16,
            max_retries=0,
            http_async_client=http_async_client,
        )
        print((await model.ainvoke("Hello!")).content)
        async for chunk in model.astream("Hello again!"):
            print(chunk.content, end="")
        print()


asyncio.run(main())
