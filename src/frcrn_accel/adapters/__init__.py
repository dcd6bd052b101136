"""Streams in other frameworks and at a sound card.

- `pipecat`: `FrcrnFilter` for a Pipecat transport. Needs `[pipecat]`.
- `livekit`: `FrcrnProcessor` for a LiveKit `AudioStream`. Needs `[livekit]`.
- `feed`, `sound_card`: the parts of `frcrn-accel live`. The sound card needs `[live]`.

The parts that they share depend on no framework: `playout` (samples in their place in time), `fading` (joints without
clicks), `recovery` (retries after failures), `switched` (a stream that can be turned off and on), `background` (a
stream that computes in its own thread).
"""
