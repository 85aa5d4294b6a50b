"""`prompt_feature`, the centred mean of a prompt's activations."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from benchmark import Benchmark, Call, Predicted, Roofline
from cases import Absent, Case, Peer, Prepared, Settings, compiled, require_close
from predict import Row, Seen, Work
from shapes import LLAMA, SMOLLM, TOKENS_OF_PROMPT, Layer, Token, dtype_name, meta

from memoir_fast import ops

SOURCES = ("kernels/*prompt_feature*.py", "csrc/prompt_feature*", "csrc/hash*", "csrc/block_sums*")


def eager(x: torch.Tensor, prompt_mask: torch.Tensor, mu: torch.Tensor) -> torch.Tensor:
    """Masked mean in float32, as the published code takes it."""
    marked = prompt_mask[..., None]
    return (x.float() * marked).sum(dim=1) / marked.sum(dim=1) - mu


def one_product(x: torch.Tensor, prompt_mask: torch.Tensor, mu: torch.Tensor) -> torch.Tensor:
    """The mean as a product with a row of weights, which reads x once; rounds as matrix products do."""
    weights = prompt_mask.to(x.dtype)[:, None]
    return (weights @ x)[:, 0].float() / prompt_mask.sum(dim=1, keepdim=True) - mu


def make(layer: Layer, batch: int, tokens: int, dtype: torch.dtype, settings: Settings) -> Prepared:
    """x is normal around 0.3; every token is the prompt's."""
    device, mu = settings.device, torch.randn(layer.width, device=settings.device)
    marked = torch.ones((batch, tokens), dtype=torch.bool, device=device)

    def draw() -> tuple:
        return (torch.randn((batch, tokens, layer.width), device=device) + 0.3).to(dtype), marked, mu

    def check(inputs: tuple, result: torch.Tensor) -> None:
        x, _, _ = inputs
        require_close(result, x.double().mean(dim=1) - mu, "prompt_feature")

    return Prepared(
        run=partial(ops.prompt_feature, check=False),
        draw=draw,
        check=check,
        bytes=batch * tokens * layer.width * dtype.itemsize + 4 * batch * layer.width,
        ceiling="read",
        peers={
            "torch eager": Peer(eager),
            "torch, one product": Peer(one_product, same=dtype == torch.float32),
            "torch.compile": compiled(eager, settings)
            if (batch, tokens) == (1, 512)
            else Absent("compiled for one prompt of 512 tokens only"),
        },
    )


def cases(settings: Settings) -> Iterator[Case]:
    """A whole prompt at once."""
    wanted = [(LLAMA, 1, 512, torch.bfloat16), (LLAMA, 1, 2048, torch.bfloat16), (LLAMA, 1, 512, torch.float32)]
    wanted += [(SMOLLM, 1, 64, torch.float32), (LLAMA, 8, 64, torch.bfloat16)]
    for layer, batch, tokens, dtype in [(SMOLLM, 1, 64, torch.float32)] if settings.quick else wanted:
        name = _name(batch, tokens, dtype, layer)
        numbers = layer.sizes | {"B": batch, "S": tokens, "dtype": dtype_name(dtype)}
        yield Case("prompt_feature", name, numbers, partial(make, layer, batch, tokens, dtype))


def _name(batch: int, tokens: int, dtype: torch.dtype = torch.bfloat16, layer: Layer = LLAMA) -> str:
    return f"{batch} x {tokens} tokens, D={layer.width}, {dtype_name(dtype)}"


def growing() -> Iterator[Case]:
    """Lengths of a prompt."""
    for tokens in (16, 64, 256, 1024, 4096):
        numbers = LLAMA.sizes | {"S": tokens, "dtype": "bfloat16"}
        yield Case("prompt_feature", f"S={tokens}", numbers, partial(make, LLAMA, 1, tokens, torch.bfloat16))


def issue(token: Token) -> dict[str, Callable[[], object]]:
    """Its call for one token."""
    return {"prompt_feature": lambda: ops.prompt_feature(token.x, token.marked, token.mu, check=False)}


def calls(layer: Layer, dtype: torch.dtype) -> list[Call]:
    """A prompt at once."""
    from memoir_fast.kernels import prompt_feature  # needs triton, which is not everywhere

    x, marked = meta(1, TOKENS_OF_PROMPT, layer.width, dtype=dtype), meta(1, TOKENS_OF_PROMPT, dtype=torch.bool)
    mu = meta(layer.width, dtype=torch.float32)
    moved = TOKENS_OF_PROMPT * layer.width * dtype.itemsize + 8 * layer.width
    return [Call("prompt_feature", lambda: prompt_feature.prompt_feature(x, marked, mu), moved)]


def counted(tokens: int) -> tuple[Work, ...]:
    """Its kernel at bf69bd7: 224 blocks of 64 columns, each over all tokens."""
    return (Work(trips=2 + tokens // 64, streamed=tokens * 14336 * 2.0),)


def counted_now(batch: int, tokens: int, mu_last: bool = False) -> tuple[Work, ...]:
    """The CUDA kernel of bfloat16, csrc/prompt_feature_kernel.cuh.

    Trips: the marks, for each 8 of a thread's 32 tokens their inputs (`mu_last`: then mu, as it was, which is now
    asked for before the sums); a block takes 1,024 tokens at a time.
    Slots, by the machine code for sm_90: 610 instructions of a warp for 2,048 values, 400 of each warp beside. The
    busiest SM has two blocks of 64 columns of a prompt, or one of 1,024 where 8 prompts are short.
    """
    columns, blocks = (1024, 1) if batch > 1 else (2 * 64, 2)
    return (
        Work(
            trips=1 + mu_last + 4 * -(-tokens // 1024),
            streamed=batch * (tokens * 14336 * 2.0 + 14336 * 4),
            slots=610 * tokens * columns / 2048 + blocks * 8 * (300 if mu_last else 400),
            early=True,
        ),
    )


PLANNED = [
    Row(
        "prompt_feature",
        _name(batch, tokens),
        counted_now(batch, tokens),
        seen=Seen(
            rf"cuda feature {batch} {tokens} ([\d.]+) us",
            "loads are asked for together",
            counted_now(batch, tokens, mu_last=True),
        ),
    )
    for batch, tokens in ((1, 512), (1, 2048), (8, 64))
]

BENCHMARK = Benchmark(
    "prompt_feature",
    SOURCES,
    cases,
    calls=calls,
    predicted=Predicted(planned=PLANNED),
    roofline=Roofline("C0"),
    listed=(("prompt_feature, 512 tokens, bf16", "1 x 512 tokens, D=14336, bfloat16"),),
)
