"""Transformers' own OpenAI-compatible server around a model that is loaded already."""

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import Any, cast

import transformers

from memoir_fast.errors import MemoirError
from memoir_fast.hf.asked import Asked, in_openais_form, seeded
from memoir_fast.hf.request_errors import RefusedError
from memoir_fast.hf.request_fields import CHAT, RESPONSES, TEXT
from memoir_fast.hf.request_values import as_served
from memoir_fast.hf.smollm import quiet_transformers
from memoir_fast.hf.tokens import context_length

MODELS = "/v1/models"
ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/responses", MODELS, "/health")
"""What is served. Transformers' other routes load other models, or unload this one."""
KNOWN = "5.10.1 to 5.24"
Around = Callable[[Callable[[], Any]], Any]

_checked: ContextVar[list[int] | None] = ContextVar("memoir_fast_server_check", default=None)
_gone: ContextVar[threading.Event | None] = ContextVar("memoir_fast_client_gone", default=None)
_asked: ContextVar[Asked] = ContextVar("memoir_fast_asked")


class Ending:
    """Ends a server's generations, so that none is under way when the process ends, which would abort it.

    Example:
        >>> from memoir_fast.hf.server import Ending
        >>> ending = Ending()
        >>> ending.require_not_begun()
        >>> ending.begin()
        >>> ending.require_not_begun()
        Traceback (most recent call last):
        memoir_fast.hf.request_errors.RefusedError: the server is ending
    """

    def __init__(self) -> None:
        self._begun, self._turn = threading.Event(), threading.Lock()

    def begin(self) -> None:
        """Ends the generation under way at its next token, and those that wait; they are refused."""
        self._begun.set()

    def require_not_begun(self) -> None:
        """RefusedError once the end has begun."""
        if self._begun.is_set():
            raise RefusedError(503, "the server is ending")

    @contextmanager
    def generation(self) -> Iterator[None]:
        """Within the block a generation is under way."""
        with self._turn:
            yield

    def finish(self) -> None:
        """Begins the end, and waits until no generation is under way; none comes any more."""
        self.begin()
        self._turn.acquire()


@contextmanager
def for_client(gone: threading.Event) -> Iterator[None]:
    """Requests that are handled within the block have a client; once `gone` is set, what is generated for it ends."""
    token = _gone.set(gone)
    try:
        yield
    finally:
        _gone.reset(token)


def _require_client() -> None:
    """RefusedError, which nobody reads, where the client of this request is gone."""
    gone = _gone.get()
    if gone is not None and gone.is_set():
        raise RefusedError(499, "the client is gone")


def build(
    model: Any,
    tokenizer: Any,
    name: str,
    around: Around = lambda generate: generate(),
    ending: Ending | None = None,
) -> Any:
    """A FastAPI application of transformers that answers with this model, and with no other.

    A generation runs in a thread of the server's, with the context variables of its request: the banks that are in
    force where a request is handled are those that its generation sees. One generation runs at a time. Continuous
    batching is off: its batches hold several sequences in a row. A prompt for which the model's context has no room
    raises RefusedError where it is handled, as does a field that transformers would pass over, or stumble over, and
    what ends a stream before its first token; an answer ends where the context does, and with its client
    (`for_client`). What is drawn with a request's seed is its own, whatever else is asked meanwhile.

    Args:
        model, tokenizer: a causal language model of transformers, with a memory or without, and its tokenizer.
        name (str): what requests call the model.
        around: is called in that thread with a function that generates, and gives what that gives. Default: calls it.
        ending (Ending, optional): ends generations early.

    Raises:
        MemoirError: a package is missing, or this release of transformers has another server than is known; which is
            found out by generating a token each way, streamed and not. So no event loop may run in this thread.

    Example:
        >>> from memoir_fast.hf import server
        >>> app = server.build(model, tokenizer, "tiny")  # doctest: +SKIP
    """
    try:
        return _build(model, tokenizer, name, around, ending or Ending())
    except (ImportError, AttributeError, TypeError, RefusedError) as error:
        raise MemoirError(
            f"memoir serve knows the server of transformers {KNOWN}; that of {transformers.__version__} is another "
            f"({type(error).__name__}: {error}): install one of those"
        ) from error


def _build(model: Any, tokenizer: Any, name: str, around: Around, ending: Ending) -> Any:
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        raise MemoirError("memoir serve needs fastapi, uvicorn and openai: pip install 'memoir-fast[serve]'")
    from jinja2 import TemplateError
    from transformers import StoppingCriteria, StoppingCriteriaList
    from transformers.cli.serving.chat_completion import ChatCompletionHandler
    from transformers.cli.serving.completion import CompletionHandler
    from transformers.cli.serving.model_manager import ModelManager, TimedModel
    from transformers.cli.serving.response import ResponseHandler
    from transformers.cli.serving.server import build_server
    from transformers.cli.serving.utils import GenerateManager, GenerationState, _GenerationCancelled

    class OneModel(ModelManager):
        """Has loaded the model, loads no other, and never lets it go."""

        def __init__(self) -> None:
            super().__init__(model_timeout=-1)
            self.force_model = name
            self.loaded_models[name] = TimedModel(model, -1, tokenizer)

        @staticmethod
        def process_model_name(model_id: str) -> str:
            return model_id  # with a revision, answers would call it otherwise than requests do

        def load_model_and_processor(self, *_: Any, **__: Any) -> tuple[Any, Any]:
            return model, tokenizer

        def shutdown(self) -> None:
            pass

    def run(generate: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        check, asked = _checked.get(), _asked.get()
        try:
            if check is not None:
                check.append(threading.get_ident())
                return generate(*args, **kwargs)
            with ending.generation():
                _require_client()
                with seeded(asked.seed, model.device):
                    return around(lambda: generate(*args, **kwargs))
        except Exception as error:
            raise asked.fail(error) from error
        finally:
            asked.settle()

    class Ended(StoppingCriteria):
        """Ends a generation, by an error, once the server ends: half an answer would look like a whole one.

        So it does where nobody waits for the answer any more.
        """

        def __call__(self, input_ids: Any, *_: Any, **__: Any) -> Any:
            _asked.get().settle()
            ending.require_not_begun()
            _require_client()
            return input_ids.new_zeros(len(input_ids), dtype=bool)

    longest = context_length(model)

    def prepared(inputs: Any, config: Any) -> dict[str, Any]:
        """What `generate` is given, of a prompt that has room; no more tokens are asked for than have."""
        tokens, asked = inputs["input_ids"].shape[-1], _asked.get()
        if not tokens:
            raise RefusedError(400, "the prompt has no tokens: there is nothing to go on from")
        if longest is not None and tokens >= longest:
            text = f"the prompt has {tokens:,} tokens, and the model's context, of {longest:,}, no room for an answer"
            raise RefusedError(400, text)
        if longest is not None:
            room = longest - tokens
            config.max_new_tokens = room if config.max_new_tokens is None else min(config.max_new_tokens, room)
        if asked.sampled is not None:  # a model whose own settings are greedy would pass over a temperature
            config.do_sample = asked.sampled
        return {**inputs, "stopping_criteria": StoppingCriteriaList([Ended()])}

    class Telling:
        """A model whose errors are noted before a stream's event quotes them."""

        def __init__(self, model: Any) -> None:
            self._model = model

        def __getattr__(self, name: str) -> Any:
            return getattr(self._model, name)

        def generate(self, **kwargs: Any) -> Any:
            try:
                return self._model.generate(**kwargs)
            except _GenerationCancelled:
                raise
            except Exception as error:
                raise _asked.get().fail(error) from error

    class InContext(GenerateManager):
        """Generates with the context variables of the request, and within the model's context."""

        def generate_streaming(
            self, model: Any, processor: Any, inputs: Any, gen_config: Any, *a: Any, **k: Any
        ) -> Any:
            ending.require_not_begun()
            given, telling = prepared(inputs, gen_config), cast(Any, Telling(model))
            return super().generate_streaming(telling, processor, given, gen_config, *a, **k)

        async def generate_non_streaming(
            self, model: Any, processor: Any, inputs: Any, gen_config: Any, *a: Any, **k: Any
        ) -> Any:
            ending.require_not_begun()
            given = prepared(inputs, gen_config)
            return await super().generate_non_streaming(model, processor, given, gen_config, *a, **k)

        def submit(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            return super().submit(copy_context().run, run, fn, args, kwargs)

        def async_submit(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            return super().async_submit(copy_context().run, run, fn, args, kwargs)

    class OneManager(GenerationState):
        def __init__(self) -> None:
            super().__init__(continuous_batching=False)
            self._generates = InContext()

        def get_manager(self, model_id: str, use_cb: bool = False) -> Any:
            if use_cb:
                raise MemoirError("continuous batching was asked for, which memoir serve leaves off")
            return self._generates

    def strict(handler: Any, api: str) -> Any:
        """A handler that refuses what it would pass over, or stumble over, and gives errors a status where it can."""

        class Strict(handler):  # type: ignore[misc]
            async def handle_request(self, body: dict[str, Any], request_id: str) -> Any:
                try:
                    given = as_served(api, body)
                except ValueError as error:
                    raise RefusedError(400, str(error)) from None
                asked = Asked(given.pop("seed", None), _sampled(given))
                _asked.set(asked)
                try:
                    answer = await super().handle_request(given, request_id)
                except TemplateError as error:
                    raise RefusedError(400, f"the model's chat template takes no such messages: {error}") from error
                if given["stream"]:
                    await asked.require_begun()
                    if api != RESPONSES:  # whose events transformers writes whole
                        answer.body_iterator = in_openais_form(answer.body_iterator, asked)
                return answer

        return Strict(models, generation)

    models, generation = OneModel(), OneManager()
    completions = strict(CompletionHandler, TEXT)
    given: dict[str, Any] = {
        "model_manager": models,
        "generation_state": generation,
        "chat_handler": strict(ChatCompletionHandler, CHAT),
        "completion_handler": completions,
        "response_handler": strict(ResponseHandler, RESPONSES),
    }
    asked = inspect.signature(build_server).parameters.values()
    others = [one.name for one in asked if one.default is one.empty and one.name not in given]
    build: Callable[..., Any] = build_server
    app = build(**given, **dict.fromkeys(others))  # their routes are taken out
    missing = set(ROUTES) - {route.path for route in app.router.routes}
    if missing:
        raise AttributeError(f"it has no {', '.join(sorted(missing))}")
    app.router.routes[:] = [route for route in app.router.routes if route.path in ROUTES and route.path != MODELS]
    ours = {"id": name, "object": "model", "created": 0, "owned_by": "local"}

    def one_model(asked: str) -> dict[str, Any]:
        if asked != name:
            raise RefusedError(404, f"there is one model here, {name}, got {asked}")
        return ours

    # some releases list whatever is in the hub's cache, none tells of one
    app.add_api_route(MODELS, lambda: {"object": "list", "data": [ours]})
    app.add_api_route(MODELS + "/{asked:path}", one_model)
    _check(completions, name)
    return app


def _sampled(given: dict[str, Any]) -> bool | None:
    """Whether a request's tokens are drawn by chance; None where it leaves that to the model's settings."""
    if "temperature" in given:
        return bool(given["temperature"] > 0)
    return True if "top_p" in given else None


def _check(completions: Any, name: str) -> None:
    """AttributeError where a generation runs without its request's context variables."""

    async def ask(stream: bool) -> list[int]:
        _checked.set([])
        body = {"model": name, "prompt": "The", "max_tokens": 1, "temperature": 0, "stream": stream}
        response = await completions.handle_request(body, "check")
        if stream:
            said = "".join([part async for part in response.body_iterator])
            if '"error"' in said:
                raise AttributeError(f"it answered {said}")
        return _checked.get() or []

    for stream in (False, True):
        with quiet_transformers():
            threads = asyncio.run(ask(stream))
        if len(threads) != 1:
            raise AttributeError(f"a generation, streamed: {stream}, passed its manager {len(threads)} times, not once")
