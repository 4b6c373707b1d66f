"""Without asyncio: the same client for any number of threads."""

from concurrent.futures import ThreadPoolExecutor

import mlbalance_client as mlb


def ask(client: mlb.Client, question: str) -> str:
    body = {"model": "sim", "messages": [{"role": "user", "content": question}], "max_tokens": 8}
    return client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]


with mlb.Client() as client, ThreadPoolExecutor(8) as threads:
    questions = [f"What is {n} times {n}?" for n in range(20)]
    for answer in threads.map(lambda question: ask(client, question), questions):
        print(answer)
