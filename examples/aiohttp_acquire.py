"""Another HTTP library, or another protocol: take only the pick, and say how it went.

Needs, in the clone: pip install . aiohttp
"""

import asyncio

import aiohttp

import mlbalance_client as mlb


async def main() -> None:
    prompt = "Why is the sky blue?"
    body = {"model": "sim", "prompt": prompt, "max_tokens": 16}
    async with mlb.Balancer() as balancer, aiohttp.ClientSession() as session:
        call = mlb.Call(prompt=prompt, max_output_tokens=16, model="sim", streaming=False)
        async with balancer.acquire(call) as lease:
            async with session.post(f"{lease.replica.url}/v1/completions", json=body) as response:
                if 400 <= response.status < 500:
                    lease.release()  # our own mistake: else what is raised would speak against the replica
                response.raise_for_status()
                answer = await response.json()
            usage = answer["usage"]
            lease.succeed(
                prompt_tokens=usage["prompt_tokens"],
                cached_tokens=usage["prompt_tokens_details"]["cached_tokens"],
                output_tokens=usage["completion_tokens"],
            )
        print(lease.replica.id, answer["choices"][0]["text"])


asyncio.run(main())
