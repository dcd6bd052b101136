"""Check an installed frcrn-accel: denoise a WAV, a FLAC and an MP3 from the command line, and run the example.

    python scripts/smoke.py PATH_OF_THE_COMMAND

Run it with the Python that has the package installed, outside the source tree.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile

from frcrn_accel import backend_statuses

NOISY = Path(__file__).parents[1] / "examples" / "noisy.wav"


def main() -> None:
    command = sys.argv[1]
    audio, rate = soundfile.read(NOISY)
    with tempfile.TemporaryDirectory() as folder:
        for command_line in (["--version"], ["backends"], ["doctor"], ["models", "list"], ["models", "verify"]):
            subprocess.run([command, *command_line], check=True, cwd=folder)
        for suffix in (".wav", ".flac", ".mp3"):
            source, target = Path(folder) / f"noisy{suffix}", Path(folder) / f"clean{suffix}"
            soundfile.write(source, audio, rate)
            subprocess.run([command, "denoise", str(source), "-o", str(target)], check=True, cwd=folder)
            clean, clean_rate = soundfile.read(target)
            assert clean_rate == rate
            assert suffix == ".mp3" or len(clean) == len(audio)
            quiet = slice(0, rate // 2)  # half a second without speech
            reduction_db = 20 * np.log10(np.std(audio[quiet]) / np.std(clean[quiet]))
            print(f"{suffix}: {len(clean) / rate:.2f} s, noise before the speech {reduction_db:.1f} dB down")
            assert reduction_db > 15
        for backend in [status.name for status in backend_statuses() if status.usable]:
            target = Path(folder) / f"{backend}.wav"
            subprocess.run([command, "denoise", str(NOISY), "-o", str(target), "--backend", backend], check=True)
            assert soundfile.info(target).frames == len(audio)
        example = NOISY.with_name("denoise.py")
        subprocess.run([sys.executable, str(example), str(NOISY), f"{folder}/example.wav"], check=True, cwd=folder)
        assert soundfile.info(f"{folder}/example.wav").frames == len(audio)
        (Path(folder) / "text.wav").write_text("no audio")
        failed = subprocess.run([command, "denoise", f"{folder}/text.wav"], capture_output=True, text=True)
        assert failed.returncode == 2, failed
        assert "Traceback" not in failed.stderr
    print("1 passed, 0 failed")


if __name__ == "__main__":
    main()
