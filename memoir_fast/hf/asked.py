"""One request on its way through a server: what its handler and the thread that generates for it tell each other."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager

import torch

from memoir_fast.hf.request_errors import RefusedError, error_body, refused

_QUOTED = 'data: {"error": "'  # transformers begins the event of an error within a stream so, and escapes nothing in it


class Asked:
    """A request whose handler waits for another thread to generate.

    Args:
        seed (int | None): of its chance; None: whichever comes.
        sampled (bool | None): its tokens are drawn by chance; None: the model's settings say.
    """

    def __init__(self, seed: int | None, sampled: bool | None) -> None:
        self.seed, self.sampled = seed, sampled
        self.failed: RefusedError | None = None
        self._loop, self._settled, self._told = asyncio.get_running_loop(), asyncio.Event(), False

    def settle(self) -> None:
        """It generates, or never will: there is nothing to wait for any more."""
        if not self._told:
            self._told = True
            self._loop.call_soon_threadsafe(self._settled.set)

    def fail(self, error: Exception) -> RefusedError:
        """Notes what ended it, and says how that is told."""
        self.failed = refused(error)
        return self.failed

    async def require_begun(self) -> None:
        """Waits for the first token; RefusedError where none comes, while a status can still say so."""
        await self._settled.wait()
        if self.failed is not None:
            raise self.failed


@contextmanager
def seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Chance within the block is the seed's, and behind it as if the block had not been; None asks for neither."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng({device} if device.type == "cuda" else ()):
        torch.manual_seed(seed)
        yield


async def in_openais_form(events: AsyncGenerator[str], asked: Asked) -> AsyncIterator[str]:
    """A stream's events, an error as OpenAI's clients read it, and the word that ends a stream."""
    async with aclosing(events):
        async for event in events:
            before, failed, _ = event.partition(_QUOTED)
            if failed and asked.failed is not None:
                event = f"{before}data: {json.dumps(error_body(asked.failed.status, str(asked.failed)))}\n\n"
            yield event
    yield "data: [DONE]\n\n"
