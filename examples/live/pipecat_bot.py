"""A Pipecat pipeline that plays the microphone back, denoised. Use headphones to avoid acoustic feedback.

pip install "frcrn-accel[ort,pipecat]" "pipecat-ai[local]"
python examples/live/pipecat_bot.py
"""

import asyncio

from pipecat.frames.frames import Frame, InputAudioRawFrame, OutputAudioRawFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.transports.local.audio import LocalAudioTransport, LocalAudioTransportParams
from pipecat.workers.runner import WorkerRunner

from frcrn_accel import Denoiser
from frcrn_accel.adapters.pipecat import FrcrnFilter

RATE = 16_000


class Echo(FrameProcessor):
    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            frame = OutputAudioRawFrame(frame.audio, frame.sample_rate, frame.num_channels)
        await self.push_frame(frame, direction)


async def main() -> None:
    transport = LocalAudioTransport(
        LocalAudioTransportParams(
            audio_in_enabled=True,
            audio_in_filter=FrcrnFilter(Denoiser()),
            audio_out_enabled=True,
        )
    )
    pipeline = Pipeline([transport.input(), Echo(), transport.output()])
    params = PipelineParams(audio_in_sample_rate=RATE, audio_out_sample_rate=RATE)
    runner = WorkerRunner()
    await runner.add_workers(PipelineWorker(pipeline, params=params))
    await runner.run()


asyncio.run(main())
