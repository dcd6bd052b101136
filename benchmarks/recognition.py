"""Word error rates over SNR: noisy speech as it is, denoised, and denoised with attenuation limits.

    python benchmarks/recognition.py CONFIG.toml --data AUDIO_DIR --speech SPEECH_DIR --log LOG.jsonl [--json R.json]

CONFIG.toml is the config of the training run of the model: the noise is the end of each of its noise sources, which
was held out. SPEECH_DIR has transcripts.json, a list of {"file": ..., "text": ...}. The recognizers are pocketsphinx,
whose package has its model (`pip install pocketsphinx`), and Whisper by faster-whisper:
`--recognizer whisper=DIR`, DIR a model for CTranslate2. LOG.jsonl gets a line for each sentence; run again, the
program computes only those that are missing.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from frcrn_accel import Denoiser
from frcrn_accel.audio import measure_levels
from frcrn_accel.models import DEFAULT_MODEL
from frcrn_accel.train.config import read_config
from frcrn_accel.train.sources import Corpus, prepare_source

RATE_HZ = 16_000
SNRS_DB = (0.0, 5.0, 10.0, 20.0)
LIMITS_DB = (6.0, 9.0, 12.0, 18.0)
NOISY, DENOISED = "noisy", "denoised"
EDGE_S = 0.5  # of noise alone before and after the sentence
PEAK = 0.7
RESAMPLINGS = 10_000
Recognizer = Callable[[np.ndarray], str]


def pocketsphinx() -> Recognizer:
    from pocketsphinx import Decoder

    decoder = Decoder(samprate=RATE_HZ, loglevel="FATAL")

    def recognize(audio: np.ndarray) -> str:
        decoder.start_utt()
        decoder.process_raw((audio * 32767).astype("<i2").tobytes(), full_utt=True)
        decoder.end_utt()
        found = decoder.hyp()
        return found.hypstr if found else ""

    return recognize


def whisper(folder: str) -> Recognizer:
    from faster_whisper import WhisperModel

    model = WhisperModel(folder, device="cpu", compute_type="int8", cpu_threads=1)

    def recognize(audio: np.ndarray) -> str:
        segments, _ = model.transcribe(audio, language="en", temperature=0.0, without_timestamps=True)
        return " ".join(segment.text for segment in segments)

    return recognize


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation; a hyphen separates words."""
    return re.sub(r"[^a-z0-9' ]", "", re.sub("[-\u2013\u2014]", " ", text.lower().replace("\u2019", "'"))).split()


def word_errors(reference: Sequence[str], found: Sequence[str]) -> int:
    """Return the least number of words to replace, insert and delete (Levenshtein distance)."""
    row = list(range(len(found) + 1))
    for done, word in enumerate(reference, 1):
        diagonal, row[0] = row[0], done
        for place, other in enumerate(found, 1):
            diagonal, row[place] = row[place], min(diagonal + (word != other), row[place] + 1, row[place - 1] + 1)
    return row[-1]


def mixed(speech: np.ndarray, noise: np.ndarray, snr_db: float | None) -> np.ndarray:
    """Add noise, longer than the speech by `EDGE_S` at both ends, at an SNR of active speech; None for no noise."""
    edge = round(EDGE_S * RATE_HZ)
    noisy = np.pad(speech, edge)
    if snr_db is not None:
        active = 10 ** (-25 / 20) / measure_levels(lambda: [speech[None]], 1).gains[0]
        noisy = noisy + noise * (active * 10 ** (-snr_db / 20) / np.sqrt(np.mean(noise.astype(np.float64) ** 2)))
    scaled: np.ndarray = (noisy * (PEAK / np.abs(noisy).max())).astype(np.float32)
    return scaled


def treatments(model: str) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Return what is done to the noisy speech before it is recognized, by name."""

    def denoise_with(limit_db: float | None) -> Callable[[np.ndarray], np.ndarray]:
        denoiser = Denoiser(model, backend="ort", threads=1, attenuation_limit_db=limit_db)
        return lambda audio: np.asarray(denoiser(audio, sample_rate=RATE_HZ))

    limited = {f"{DENOISED}, limit {limit:g} dB": denoise_with(limit) for limit in LIMITS_DB}
    return {NOISY: lambda audio: audio, DENOISED: denoise_with(None), **limited}


def mixtures(config: Path, data: Path, speech: Path) -> Iterator[tuple[str, str, float | None, np.ndarray]]:
    """Yield the file, its text, the SNR, and the audio: each sentence with the same noise at every SNR."""
    parsed = read_config(config)
    sentences = json.loads((speech / "transcripts.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as cache:
        signals = [prepare_source(source, data, Path(cache)) for source in parsed.data.noise]
        weights = [source.weight for source in parsed.data.noise]
        noise = Corpus(signals, weights, parsed.data.held_out_share, held_out=True)
        for number, sentence in enumerate(sentences):
            audio, rate_hz = soundfile.read(speech / sentence["file"], dtype="float32")
            assert rate_hz == RATE_HZ, f"{sentence['file']} is not of {RATE_HZ} Hz"
            drawn = noise.draw(np.random.default_rng(number), len(audio) + 2 * round(EDGE_S * RATE_HZ))
            for snr_db in (*SNRS_DB, None):
                yield sentence["file"], sentence["text"], snr_db, mixed(audio, drawn, snr_db)


def run(arguments: argparse.Namespace, name: str, recognize: Recognizer) -> None:
    """Recognize what is not in the log yet."""
    lines = arguments.log.read_text(encoding="utf-8").splitlines() if arguments.log.exists() else []
    done = {tuple(json.loads(line)[key] for key in ("recognizer", "snr_db", "treatment", "file")) for line in lines}
    made = treatments(arguments.model)
    with arguments.log.open("a", encoding="utf-8") as log:
        for file, text, snr_db, noisy in mixtures(arguments.config, arguments.data, arguments.speech):
            for treatment, treat in made.items():
                if (name, snr_db, treatment, file) in done:
                    continue
                reference, found = words(text), words(recognize(treat(noisy)))
                line = {"recognizer": name, "snr_db": snr_db, "treatment": treatment, "file": file}
                line |= {"words": len(reference), "errors": word_errors(reference, found), "found": " ".join(found)}
                print(json.dumps(line), file=log, flush=True)


def interval(errors: np.ndarray, lengths: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Return the rate in percent, and its 95 % interval from a bootstrap over the sentences."""
    drawn = np.random.default_rng(seed).integers(len(errors), size=(RESAMPLINGS, len(errors)))
    rates = 100 * errors[drawn].sum(axis=1) / lengths[drawn].sum(axis=1)
    low, high = np.quantile(rates, (0.025, 0.975))
    return 100 * float(errors.sum()) / float(lengths.sum()), float(low), float(high)


def summary(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each recognizer, SNR and treatment: its rate, and the difference to the noisy speech.

    The same sentences are drawn for both sides of a difference, so the interval is that of a paired comparison.
    """
    rows = []
    groups: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for line in lines:
        group = groups.setdefault((line["recognizer"], line["snr_db"], line["treatment"]), {})
        group[line["file"]] = line
    for (recognizer, snr_db, treatment), found in groups.items():
        noisy = groups[recognizer, snr_db, NOISY]
        files = sorted(found.keys() & noisy.keys())
        lengths = np.array([noisy[file]["words"] for file in files])
        errors, before = (np.array([side[file]["errors"] for file in files]) for side in (found, noisy))
        row = {"recognizer": recognizer, "snr_db": snr_db, "treatment": treatment, "sentences": len(files)}
        rows.append({**row, "wer": interval(errors, lengths), "change": interval(errors - before, lengths)})
    return rows


def complete(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines of the sentences that all treatments have at all SNRs."""
    counts = Counter((line["recognizer"], line["file"]) for line in lines)
    most = max(counts.values(), default=0)
    return [line for line in lines if counts[line["recognizer"], line["file"]] == most]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--recognizer", default="pocketsphinx", help="pocketsphinx, or whisper=DIR")
    arguments = parser.parse_args()
    name, _, folder = arguments.recognizer.partition("=")
    if (name, bool(folder)) not in (("pocketsphinx", False), ("whisper", True)):
        parser.error(f"unknown recognizer {arguments.recognizer!r}: give pocketsphinx or whisper=DIR")
    run(arguments, name, whisper(folder) if name == "whisper" else pocketsphinx())
    lines = [json.loads(line) for line in arguments.log.read_text(encoding="utf-8").splitlines()]
    rows = summary(complete(lines))
    if arguments.json:
        arguments.json.write_text(json.dumps({"model": arguments.model, "rows": rows}, indent=1) + "\n")
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
