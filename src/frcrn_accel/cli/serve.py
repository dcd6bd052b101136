"""`frcrn-accel serve`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from frcrn_accel.cli.options import AttenuationLimit, BackendName, BatchSize, Model, Precision, Threads
from frcrn_accel.errors import MissingExtraError, ServeError
from frcrn_accel.models import DEFAULT_MODEL

__all__ = ["serve"]

_MIB = 1 << 20


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for a free one.")] = 8000,
    model: Model = DEFAULT_MODEL,
    backend: BackendName = "auto",
    precision: Precision = None,
    threads: Threads = None,
    attenuation_limit_db: AttenuationLimit = None,
    batch_size: BatchSize = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Ask for a token out of this file, one a line. [default: those in FRCRN_ACCEL_TOKENS, or none]",
        ),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="Let web pages of this origin use the server too; * for all."),
    ] = None,
    max_body_mib: Annotated[float, typer.Option(min=0, help="Longest body of a request, MiB.")] = 128,
    max_duration_s: Annotated[float, typer.Option(min=0, help="Longest audio, s.")] = 1800,
    max_decoded_mib: Annotated[
        float, typer.Option(min=0, help="Largest audio, decoded to 32-bit samples of all channels, MiB.")
    ] = 1024,
    max_channels: Annotated[int, typer.Option(min=1, help="Most channels of a file or a stream.")] = 8,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests that are computed at the same time.")] = 4,
    queue: Annotated[int, typer.Option(min=0, help="Requests that may wait beside them; beyond, 429.")] = 16,
    timeout_s: Annotated[
        float, typer.Option(min=0, help="Give up a request that waits and computes for longer, s.")
    ] = 600,
    min_bytes_per_second: Annotated[
        int, typer.Option(min=1, help="Give up a client that sends or takes less than this in a second.")
    ] = 1024,
    slow_s: Annotated[
        float, typer.Option(min=0, help="The time over which that is measured, and for a request's head, s.")
    ] = 10,
    max_streams: Annotated[int, typer.Option(min=1, help="Live streams at the same time.")] = 16,
    stream_idle_s: Annotated[
        float, typer.Option(min=0, help="Close a stream that sends nothing for this long, s.")
    ] = 60,
    drain_s: Annotated[
        float, typer.Option(min=0, help="Longest wait for what is under way when it is told to end, s.")
    ] = 60,
) -> None:
    """Serve a web page, files over HTTP and live streams over WebSocket, until Ctrl-C or SIGTERM."""
    try:
        from frcrn_accel.serve import Limits, Service, create_app, listen, open_denoiser, read_tokens, run_server
        from frcrn_accel.serve.metrics import Metrics
    except ImportError as error:
        raise MissingExtraError("Serving", "serve", error) from error
    try:
        limits = Limits(
            max_body_bytes=int(max_body_mib * _MIB),
            max_duration_s=max_duration_s,
            max_decoded_bytes=int(max_decoded_mib * _MIB),
            max_channels=max_channels,
            concurrency=concurrency,
            queue=queue,
            timeout_s=timeout_s,
            min_bytes_per_second=min_bytes_per_second,
            slow_s=slow_s,
            max_streams=max_streams,
            stream_idle_s=stream_idle_s,
            drain_s=drain_s,
        )
    except ValueError as error:
        raise ServeError(str(error)) from error
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    log = logging.getLogger(__name__)
    tokens = read_tokens(token_file)
    metrics = Metrics()
    with (
        listen(host, port) as listener,
        open_denoiser(
            metrics,
            model,
            backend=backend,
            precision=precision,
            threads=threads,
            attenuation_limit_db=attenuation_limit_db,
            batch_size=batch_size,
        ) as denoiser,
    ):
        service = Service(denoiser, limits, metrics)
        app = create_app(service, tokens=tokens, allowed_origins=allow_origin or [])
        address, bound_port = listener.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        log.info("%s on %s, %s (%s)", denoiser.model.name, denoiser.backend, denoiser.precision, denoiser.device)
        log.info("http://%s:%d/, %s", shown, bound_port, "with tokens" if tokens else "for everybody who reaches it")
        run_server(app, service, listener)
    log.info("ended")
