"""Streams in other people's frameworks, and at a sound card. Each module but the shared ones needs an extra.

- `pipecat`: `FrcrnFilter`, for a Pipecat transport; `[pipecat]`.
- `livekit`: `FrcrnProcessor`, for a LiveKit `AudioStream`; `[livekit]`.
- `live`, `sound_card`: what `frcrn-accel live` does; the sound card needs `[live]`.

What they share, with no framework in it: `playout` (samples in their place in time), `switched` (a stream that is
turned off and on), `background` (a stream that computes in a thread of its own).
"""
