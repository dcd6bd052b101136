"""`frcrn-accel serve`."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

import typer

from frcrn_accel.cli.options import (
    AttenuationLimit,
    BackendName,
    BatchSize,
    HighBandOption,
    Model,
    Precision,
    Threads,
)
from frcrn_accel.cli.usage import usage_errors
from frcrn_accel.denoiser import DenoiserOptions
from frcrn_accel.errors import MissingExtraError, ServeError
from frcrn_accel.models import DEFAULT_MODEL, LIVE_MODEL

__all__ = ["serve"]

_MIB = 1 << 20
_STREAM_MODELS = {DEFAULT_MODEL: LIVE_MODEL}


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for a free one.")] = 8000,
    model: Model = DEFAULT_MODEL,
    stream_model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help=f"Model for live streams. [default: {LIVE_MODEL} with {DEFAULT_MODEL}, else the model]",
        ),
    ] = None,
    backend: BackendName = "auto",
    precision: Precision = None,
    threads: Threads = None,
    attenuation_limit_db: AttenuationLimit = None,
    high_band: HighBandOption = "follow",
    batch_size: BatchSize = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Tokens that clients must have, one per line. [default: those in FRCRN_ACCEL_TOKENS, if any]",
        ),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Serve without tokens on an address that other machines can reach.")
    ] = False,
    open_metrics: Annotated[
        bool, typer.Option("--open-metrics", help="Let anyone read /metrics, even if tokens are required.")
    ] = False,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="Let web pages of this origin use the server; * for all."),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Host name under which clients may reach the server, besides localhost and IP addresses; * for all.",
        ),
    ] = None,
    trust_proxy: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDRESS", help="Proxy or network whose X-Forwarded-For names the client."),
    ] = None,
    max_body_mib: Annotated[float, typer.Option(min=0, help="Maximum size of a request body, MiB.")] = 128,
    max_duration_s: Annotated[float, typer.Option(min=0, help="Maximum length of audio, s.")] = 1800,
    max_decoded_mib: Annotated[
        float, typer.Option(min=0, help="Maximum size of audio, decoded to 32-bit samples of all channels, MiB.")
    ] = 1024,
    max_channels: Annotated[int, typer.Option(min=1, help="Maximum number of channels of a file or a stream.")] = 8,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests computed at the same time.")] = 4,
    queue: Annotated[int, typer.Option(min=0, help="Further requests that may wait; beyond that, 429.")] = 16,
    client_requests: Annotated[
        int, typer.Option(min=1, help="Maximum requests of one client; beyond that, 429.")
    ] = 16,
    client_mib: Annotated[
        float, typer.Option(min=0, help="Maximum size of the request bodies of one client, MiB.")
    ] = 1024,
    timeout_s: Annotated[float, typer.Option(min=0, help="Maximum time for a request to wait and compute, s.")] = 600,
    min_bytes_per_second: Annotated[
        int, typer.Option(min=1, help="Minimum speed of a transfer in either direction, bytes/s.")
    ] = 1024,
    slow_s: Annotated[
        float,
        typer.Option(
            min=0, help="Time over which --min-bytes-per-second is averaged; also limits the head of a request, s."
        ),
    ] = 10,
    upload_s: Annotated[float, typer.Option(min=0, help="Maximum time for a request body to arrive, s.")] = 600,
    stall_s: Annotated[
        float,
        typer.Option(
            min=0,
            help="Time without an answer from the engine after which the server is not ready, and streams end, s.",
        ),
    ] = 120,
    max_streams: Annotated[int, typer.Option(min=1, help="Maximum live streams at the same time.")] = 16,
    client_streams: Annotated[int, typer.Option(min=1, help="Maximum live streams of one client.")] = 12,
    stream_idle_s: Annotated[
        float, typer.Option(min=0, help="Close a stream that sends no audio for this time, s.")
    ] = 60,
    max_connections: Annotated[int, typer.Option(min=1, help="Maximum connections at the same time.")] = 512,
    client_connections: Annotated[int, typer.Option(min=1, help="Maximum connections of one client.")] = 128,
    client_frames_per_s: Annotated[
        float, typer.Option(min=0, help="Maximum frames and small pieces of one client, 1/s; beyond that, it waits.")
    ] = 1000,
    client_guesses: Annotated[
        int, typer.Option(min=1, help="Wrong tokens of one client before its answers are delayed.")
    ] = 10,
    drain_s: Annotated[float, typer.Option(min=0, help="Maximum time to finish requests at shutdown, s.")] = 60,
) -> None:
    """Serve files over HTTP, live streams over a WebSocket, and a web page, until Ctrl-C or SIGTERM."""
    try:
        from frcrn_accel.serve import Limits, Service, create_app, listen, open_denoiser, read_tokens, run_server
        from frcrn_accel.serve.logs import configure_log
        from frcrn_accel.serve.metrics import Metrics
    except ImportError as error:
        raise MissingExtraError("Serving", "serve", error) from error
    with usage_errors():
        options = DenoiserOptions(
            model,
            backend=backend,
            precision=precision,
            threads=threads,
            attenuation_limit_db=attenuation_limit_db,
            high_band=high_band,
            batch_size=batch_size,
        )
        limits = Limits(
            max_body_bytes=int(max_body_mib * _MIB),
            max_duration_s=max_duration_s,
            max_decoded_bytes=int(max_decoded_mib * _MIB),
            max_channels=max_channels,
            concurrency=concurrency,
            queue=queue,
            client_requests=client_requests,
            client_bytes=int(client_mib * _MIB),
            timeout_s=timeout_s,
            min_bytes_per_second=min_bytes_per_second,
            slow_s=slow_s,
            upload_s=upload_s,
            stall_s=stall_s,
            max_streams=max_streams,
            client_streams=client_streams,
            stream_idle_s=stream_idle_s,
            max_connections=max_connections,
            client_connections=client_connections,
            client_frames_per_s=client_frames_per_s,
            client_guesses=client_guesses,
            drain_s=drain_s,
        )
    configure_log()
    log = logging.getLogger(__name__)
    tokens = read_tokens(token_file)
    metrics = Metrics()
    with ExitStack() as stack:
        listener = stack.enter_context(listen(host, port))
        address, bound_port = listener.getsockname()[:2]
        if not (tokens or insecure or ip_address(address.partition("%")[0]).is_loopback):
            raise ServeError(
                f"{host} can be reached from other machines, and no token is set: set some with --token-file, or "
                "give --insecure"
            )
        with usage_errors():
            denoiser = stack.enter_context(open_denoiser(metrics, options))
            stream_model = stream_model or _STREAM_MODELS.get(model, model)
            stream_denoiser = denoiser
            if stream_model != model:
                stream_denoiser = stack.enter_context(replace(options, model=stream_model, batch_size=None).open())
        service = Service(denoiser, limits, metrics, stream_denoiser=stream_denoiser)
        app = create_app(
            service,
            tokens=tokens,
            allowed_origins=allow_origin or [],
            allowed_hosts=[host, *(allow_host or [])],
            open_metrics=open_metrics,
        )
        shown = f"[{address}]" if ":" in address else address
        log.info("%s on %s, %s (%s)", denoiser.model.name, denoiser.backend, denoiser.precision, denoiser.device)
        log.info("listening on http://%s:%d/ %s", shown, bound_port, "with tokens" if tokens else "without tokens")
        run_server(app, service, listener, trusted_proxies=trust_proxy or [])
    log.info("shut down")
