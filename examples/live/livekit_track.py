"""Denoise a LiveKit audio track. The track is local and plays a file, so no LiveKit server is needed.

pip install "frcrn-accel[ort,livekit]"
python examples/live/livekit_track.py examples/noisy.wav clean.wav
"""

import asyncio
import sys

import numpy as np
import soundfile
from livekit import rtc

from frcrn_accel import Denoiser
from frcrn_accel.adapters.livekit import FrcrnProcessor


async def main(source_path: str, target_path: str) -> None:
    speech, rate = soundfile.read(source_path, dtype="int16")
    source = rtc.AudioSource(rate, 1)
    track = rtc.LocalAudioTrack.create_audio_track("file", source)  # in a room, use a participant's track

    processor = FrcrnProcessor(Denoiser(), sample_rate=rate)
    stream = rtc.AudioStream(track, sample_rate=rate, num_channels=1, noise_cancellation=processor)

    async def speak() -> None:
        await source.capture_frame(rtc.AudioFrame(speech.tobytes(), rate, 1, len(speech)))
        await source.wait_for_playout()

    speaking = asyncio.create_task(speak())
    denoised = []
    async for event in stream:
        denoised.append(np.asarray(event.frame.data).copy())
        if speaking.done():
            break
    await stream.aclose()
    soundfile.write(target_path, np.concatenate(denoised), rate)
    print(f"{processor.late_s:.2f} s were not denoised in time")


asyncio.run(main(*sys.argv[1:]))
