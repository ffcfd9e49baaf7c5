"""A client in a process of its own that streams answers and says when each piece came.

`python -m support.streaming_client` reads a line of JSON for each answer that is wanted,
{"stream": N, "model": NAME, "tokens": N, "seed": N}, and writes lines of JSON as things happen: how
many tokens a stream has and at what monotonic time, and at its end the whole of it, or why there is
none. It ends when its input does. Home and settings come from the environment, as for the command
line.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import time

from novamesh import Client, NovaMeshError
from novamesh_proto.identity import format_node_id

PROMPT = "Write a long story about an owl and 12 apples."


async def main() -> None:
    """Until nobody asks any more and every answer is at its end."""
    async with Client() as client, asyncio.TaskGroup() as answers:
        while line := await asyncio.to_thread(sys.stdin.readline):
            asked = json.loads(line)
            answers.create_task(answer(client, **asked))


async def answer(client: Client, stream: int, model: str, tokens: int, seed: int) -> None:
    """One answer, from its first piece to its receipt."""
    run = client.run(
        model, PROMPT, max_tokens=tokens, seed=seed, temperature=0.9, ignore_eos=True,
        deadline_s=600.0,
    )  # fmt: skip
    came, text = 0, ""
    try:
        async for piece in run:
            came += len(piece.token_ids)
            text += piece.text
            say(stream=stream, tokens=came)
        done = await run.completion()
    except NovaMeshError as error:
        say(stream=stream, failed=f"{error.code}: {error.message}")
        return
    say(
        stream=stream,
        tokens=came,
        whole=text == done.text,
        digest=hashlib.sha256(repr((done.token_ids, done.text)).encode()).hexdigest(),
        nodes=[format_node_id(part.node) for part in done.parts] or [format_node_id(done.node)],
        paths=[part.path for part in done.parts],
        jobs=[part.job.hex() for part in done.parts] or [done.job.hex()],
        receipt=str(done.receipt_path),
    )


def say(**values: object) -> None:
    """One line for who started us."""
    print(json.dumps({"at": time.monotonic(), **values}), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
