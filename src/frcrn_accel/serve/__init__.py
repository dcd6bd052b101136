"""The server: files over HTTP, live streams over a WebSocket, and a web page. Needs `[serve]`."""

from frcrn_accel.serve.app import Service, create_app
from frcrn_accel.serve.limits import Limits
from frcrn_accel.serve.server import listen, open_denoiser, run_server
from frcrn_accel.serve.tokens import TOKENS_VARIABLE, read_tokens

__all__ = [
    "TOKENS_VARIABLE",
    "Limits",
    "Service",
    "create_app",
    "listen",
    "open_denoiser",
    "read_tokens",
    "run_server",
]
