"""Run a server whose engine hangs: `python hanging_server.py warm-up|file DRAIN_S`. It prints its port once ready."""

from __future__ import annotations

import sys
import threading

import numpy as np

from frcrn_accel import Denoiser, Windowing
from frcrn_accel.serve import Limits, Service, create_app, listen, run_server
from frcrn_accel.testing import FunctionBackend


def main() -> None:
    hangs_from, drain_s = sys.argv[1], float(sys.argv[2])
    is_warm = threading.Event()
    if hangs_from == "warm-up":
        is_warm.set()

    def compute(audio: np.ndarray) -> np.ndarray:
        if is_warm.is_set():
            print("hangs", flush=True)
            threading.Event().wait()
        return audio.copy()

    with (
        listen("127.0.0.1", 0) as listener,
        Denoiser(backend=FunctionBackend(compute), windowing=Windowing(fixed=True)) as denoiser,
    ):
        service = Service(denoiser, Limits(drain_s=drain_s, timeout_s=0.2, stall_s=0.1))
        warm_up = service.warm_up

        async def warm_up_and_tell() -> None:
            await warm_up()
            is_warm.set()
            print("ready", flush=True)

        service.warm_up = warm_up_and_tell
        print(listener.getsockname()[1], flush=True)
        run_server(create_app(service), service, listener)


if __name__ == "__main__":
    main()
