"""`memoir serve`: transformers' OpenAI-compatible server, with a memory that is edited over HTTP."""

import asyncio
import socket
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from memoir_fast.cli.options import Device, Dtype, Model, Quiet
from memoir_fast.cli.saved import terminable

LOOPBACK = "127.0.0.1"
GRACE = 10  # seconds that answers under way have left
TOLD = 15  # seconds more, in which the edit in hand ends, and what has not ended is told so


def serve(
    model: Model,
    memory: Annotated[
        str, typer.Option("--memory", metavar="DIR", help="The memory's folder; where there is none, one is begun.")
    ],
    host: Annotated[
        str, typer.Option("--host", help="The address to listen on. Default: this machine alone.")
    ] = LOOPBACK,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any that is free.")] = 8000,
    keys: Annotated[
        Path | None,
        typer.Option(
            "--keys", metavar="FILE", help='Who may ask, and for which banks: JSON, {"KEY": "bank" or [...] or null}.'
        ),
    ] = None,
    admin_token: Annotated[
        Path | None,
        typer.Option(
            "--admin-token",
            metavar="FILE",
            help="File of the token for /memoir/..., or MEMOIR_ADMIN_TOKEN. Without one there are no such routes.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="What requests call the model. Default: --model.")] = None,
    max_body: Annotated[int, typer.Option("--max-body", min=1024, help="Bytes of a request's body.")] = 1 << 20,
    dtype: Dtype = "auto",
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Serve a model with its memory, as OpenAI's API; edit it over HTTP.

    An edit, deletion or calibration that was answered is in the folder: it survives a crash.
    """
    from memoir_fast import Memoir
    from memoir_fast.hf.loading import load_model
    from memoir_fast.hf.server import Ending
    from memoir_fast.serving.access import read_keys, read_token
    from memoir_fast.serving.app import application

    known, token = read_keys(keys), read_token(admin_token)  # before a model is loaded
    with _bound(host, port) as listening:
        loaded, tokenizer = load_model(model, dtype, device)
        with Memoir.open(loaded, tokenizer, memory) as memoir:
            ending = Ending()
            app = application(memoir, name or model, known, token, max_body, ending)
            _run(app, listening, ending, quiet)


def _bound(host: str, port: int) -> socket.socket:
    """A socket of that address, on which nobody is answered yet; OSError where it is taken."""
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
    except OSError as error:
        made.close()
        raise OSError(f"the server cannot listen on {host}, port {port}: {error.strerror}") from error
    return made


def _run(app: Any, listening: socket.socket, ending: Any, quiet: bool) -> None:
    """Answers until SIGINT or SIGTERM, and then ends what is under way."""
    import uvicorn

    from memoir_fast.hf.smollm import quiet_transformers

    host, port, *_ = listening.getsockname()

    class Saying(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if not quiet:
                typer.echo(f"memoir serves at http://{f'[{host}]' if ':' in host else host}:{port}/v1")

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            if not quiet and self.server_state.connections:
                typer.echo(f"memoir serve ends; answers and edits under way have {GRACE} seconds", err=True)
            asyncio.get_running_loop().call_later(GRACE, ending.begin)
            await super().shutdown(sockets)

    unsaid = quiet_transformers() if quiet else nullcontext()  # it says a line for each request
    with unsaid, terminable(), suppress(KeyboardInterrupt):  # uvicorn, which passes signals on, has ended by then
        Saying(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GRACE + TOLD)).run([listening])
    ending.finish()
