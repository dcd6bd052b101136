"""Write measured figures into README.md and docs, between `<!-- figures: NAME -->` and `<!-- end -->`.

    python scripts/figures.py [--check]

The figures come from the JSON reports in benchmarks/results, which `nox -s figures` and the sessions of the other
benchmarks measure. A section without a report is left unchanged. `--check` changes nothing; the exit code is 1 if a
section differs from its report.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from frcrn_accel.bench import times_faster
from frcrn_accel.bench.tables import (
    COLUMNS,
    group_title,
    machine_line,
    markdown_table,
    notes,
    speed_table,
    throughput_table,
    throughput_title,
)

REPOSITORY = Path(__file__).parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
SECTION = re.compile(r"(?P<head><!-- figures: (?P<name>[\w-]+) -->\n).*?(?P<tail><!-- end -->)", re.DOTALL)
FEW_COLUMNS = ("median", "rtf", "memory", "baselines")
DIGITS = {"STOI": 3}
CORPUS = "frcrn-accel corpus"  # in the report of benchmarks/corpus.py

Report = Mapping[str, Any]


def speed(columns: tuple[str, ...], *, with_notes: bool) -> Callable[[Report], str]:
    """Return a function that writes a table for each group."""

    def render(report: Report) -> str:
        parts = []
        for group in report["groups"]:
            parts.append(f"{group_title(group, report['rounds'])}:")
            parts.append(speed_table(group, report["baselines"], columns).markdown())
            if with_notes and (lines := notes(group)):
                parts.append("\n".join(f"- {line}" for line in lines))
        return "\n\n".join([*parts, f"Measured {report['began'][:10]} on {machine_line(report)}."])

    return render


def throughput(report: Report) -> str:
    """Write a table for each configuration."""
    parts = []
    for found in report["throughput"]:
        parts += [f"{throughput_title(found, report['rounds'])}:", throughput_table(found).markdown()]
    return "\n\n".join([*parts, f"Measured {report['began'][:10]} on {machine_line(report)}."])


def mean_and_interval(metric: str, value: Mapping[str, Any] | None, sign: str = "") -> str:
    """Write a mean with its interval; "" without one."""
    if value is None:
        return ""
    digits, (low, high) = DIGITS.get(metric, 2), value["interval"]
    return f"{value['mean']:{sign}.{digits}f} ({low:{sign}.{digits}f} to {high:{sign}.{digits}f})"


def quality(report: Report) -> str:
    """Write means and intervals before and after, by metric."""
    columns = ("noisy", "denoised")
    rows = [
        (metric, *(mean_and_interval(metric, found[column]) for column in columns))
        for metric, found in report["summary"].items()
    ]
    what = f"{report['model']} on {report['backend']}, {report['precision']}, {len(report['clips'])} recordings"
    return f"{markdown_table(['', *columns], rows)}\n\n{what}: mean and 95 % interval."


def plot(report: Report) -> str:
    """Write a link to the plot of `nox -s figures`."""
    models = ", ".join(dict.fromkeys(group["model"] for group in report["groups"]))
    return f"![Speed against PESQ-WB: {models}](speed-and-quality.png)"


def streams_quality(report: Report) -> str:
    """Write a row for each way to run the model, see benchmarks/streaming.py."""
    metrics = list(next(iter(report.values())))
    rows = [
        (name, *(f"{cells[metric]['mean']:.{1 if 'dB' in metric else 2}f}" for metric in metrics))
        for name, cells in report.items()
    ]
    return markdown_table(["", *metrics], rows)


def streams_speed(report: Report) -> str:
    """Write two tables: the time of a step, and the number of streams that run in real time."""
    times: list[tuple[str, ...]] = []
    streams: list[tuple[str, ...]] = []
    for backend, found in report.items():
        for step, cell in found["steps"].items():
            times_ms = (f"{cell[name]:.1f}" for name in ("p50_ms", "p99_ms", "worst_ms"))
            times.append((f"`{backend}`", step, *times_ms, f"{cell['rtf']:.3f}", f"{cell['to_whole_pass']:.2f}"))
        for step, counts in found["streams"].items():
            step_ms = float(step.split()[0])
            most = max((int(count) for count, cell in counts.items() if cell["p99_ms"] < step_ms), default=0)
            p99 = f"{counts[str(most)]['p99_ms']:.1f}" if most else ""
            streams.append((f"`{backend}`", step, str(most), p99))
    heads = [
        "backend",
        "step",
        "p50, ms",
        "p99, ms",
        "maximum, ms",
        "real-time factor",
        "time relative to a whole pass",
    ]
    stream_heads = ["backend", "step", "streams that one thread keeps up with", "p99, ms"]
    return f"{markdown_table(heads, times)}\n\n{markdown_table(stream_heads, streams)}"


def serving_capacity(report: Report) -> str:
    """Write a row for each batch size, see benchmarks/serving.py."""
    heads = ["batch size", "audio, s per s", "relative to batch size 1 (range)", "windows per call", "memory, MB"]
    rows = []
    for row in report["capacity"]:
        low, high = row["gain_range"]
        gain = f"{row['gain']:.2f} ({low:.2f} to {high:.2f})"
        speed, windows = f"{row['audio_s_per_s']:.1f}", f"{row['windows_per_call']:.2f}"
        rows.append((str(row["batch_size"]), speed, gain, windows, f"{row['memory_mb']:.0f}"))
    what = f"`{report['backend']}`, {report['threads']} thread(s), {report['cpus']} CPUs"
    return f"{markdown_table(heads, rows)}\n\n{what}, {report['machine']}. {report['note']}".rstrip()


def serving_load(report: Report) -> str:
    """Write a row for each load."""
    percentiles = (50, 95, 99)
    times = [f"p{share}, s" for share in percentiles]
    heads = ["load", "requests", "denoised", "429", "other", "audio, s per s", *times, "memory, MB"]
    rows = []
    for row in report["load"]:
        counts = (str(row[name]) for name in ("requests", "answered", "told_to_come_again", "other"))
        times_s = (f"{row[f'p{share}_ms'] / 1000:.2f}" for share in percentiles)
        memory = "{:.0f} to {:.0f}".format(*row["memory_mb"])
        rows.append((f"{row['load']:g}", *counts, f"{row['audio_s_per_s']:.1f}", *times_s, memory))
    different, answered = (sum(row[name] for row in report["load"]) for name in ("different", "answered"))
    what = f"Batch size {report['batch_size']}, {report['minutes']:g} minutes in all"
    same = f"{answered - different} of {answered} results are bit-identical to those of a request alone"
    return f"{markdown_table(heads, rows)}\n\n{what}. {same}."


def serving_streams(report: Report) -> str:
    """Write a row for each number of streams."""
    percentiles = (50, 95, 99)
    rows = [
        (
            str(row["streams"]),
            *(f"{row[f'p{share}_ms']:.1f}" for share in percentiles),
            f"{row['streams_per_call']:.2f}",
        )
        for row in report["streams"]
    ]
    return markdown_table(["streams", *(f"p{share}, ms" for share in percentiles), "streams per call"], rows)


def corpus_speed(report: Report) -> str:
    """Write a row for each way to denoise a folder, see benchmarks/corpus.py."""
    rows = []
    times_s = report["times_s"]
    for name, found_s in times_s.items():
        time_s, ratio = median(found_s), times_faster(times_s[CORPUS], found_s)
        speed_up = "" if name == CORPUS else f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
        rows.append((name, f"{time_s:.1f}", f"{time_s / report['audio_s']:.4f}", speed_up))
    heads = ["", "time, s", "real-time factor", "speed-up by `frcrn-accel corpus`"]
    what = f"{report['files']} files, {report['audio_s'] / 60:.0f} minutes of audio; median of {len(found_s)} rounds"
    return f"{markdown_table(heads, rows)}\n\n{what}, loading included. {report['machine']}."


def recognition(what: str) -> Callable[[Report], str]:
    """Return a function that writes a row for each recognizer and treatment, see benchmarks/recognition.py.

    Args:
        what: "wer" for word error rates, "change" for their difference to the noisy speech.
    """
    sign = "+" if what == "change" else ""

    def render(report: Report) -> str:
        found = [row for row in report["rows"] if what == "wer" or row["treatment"] != "noisy"]
        snrs = list(dict.fromkeys(row["snr_db"] for row in found))
        heads = [f"{snr:g} dB" if snr is not None else "no noise" for snr in snrs]
        rates: dict[str, dict[float | None, str]] = {}
        for row in found:
            mean, low, high = (f"{value:{sign}.1f}" for value in row[what])
            rates.setdefault(f"{row['recognizer']}: {row['treatment']}", {})[row["snr_db"]] = (
                f"{mean} ({low} to {high})"
            )
        rows = [(name, *(by_snr[snr] for snr in snrs)) for name, by_snr in rates.items()]
        sentences = {row["recognizer"]: row["sentences"] for row in found}
        counts = ", ".join(f"{name} {count}" for name, count in sentences.items())
        return f"{markdown_table(['', *heads], rows)}\n\n{report['model']} on `ort`; sentences: {counts}."

    return render


def comparison(what: str) -> Callable[[Report], str]:
    """Return a function that writes a row for each denoiser and its scores, see benchmarks/compare.py.

    Args:
        what: "scores", or "difference" for their difference to this project's model.
    """
    sign = "+" if what == "difference" else ""

    def render(report: Report) -> str:
        found = {name: row[what] for name, row in report["denoisers"].items() if any_difference(row) or not sign}
        metrics = list(next(iter(found.values())))
        rows = [
            (name, *(mean_and_interval(metric, scores[metric], sign) for metric in metrics))
            for name, scores in found.items()
        ]
        return f"{markdown_table(['', *metrics], rows)}\n\n{report['clips']} recordings: mean and 95 % interval."

    return render


def any_difference(row: Report) -> bool:
    """Return whether the scores are not those of the model that all others are compared with."""
    return any(value["mean"] for value in row["difference"].values())


def comparison_costs(report: Report) -> str:
    """Write a row for each denoiser: its speed, delay, sizes and licence."""
    heads = ["", "works at", "processor time / duration", "delay, live", "weights, MB", "installed, MB", "licence"]
    rows = []
    for name, row in report["denoisers"].items():
        if "rtf" in row:
            delay = "takes whole files" if row["latency_ms"] is None else f"{row['latency_ms']:.0f} ms"
            rate = f"{row['rate_hz'] // 1000} kHz"
            sizes = f"{row['weights_bytes'] / 1e6:.1f}", f"{row['install_bytes'] / 1e6:.0f}"
            rows.append((f"{name} (`{row['package']}`)", rate, f"{row['rtf']:.3f}", delay, *sizes, row["licence"]))
    machine = report["speed_machine"]
    where = f"{machine['cpu'] or 'unknown CPU'}, {machine['system']}, Python {machine['python']}"
    rounds = f"Processor time: median of {report['rounds']} rounds in turns, on {where}."
    return f"{markdown_table(heads, rows)}\n\n{rounds}"


# For each section: its report, and the function that writes it.
SECTIONS: dict[str, tuple[str, Callable[[Report], str]]] = {
    "speed-released": ("speed-released.json", speed(FEW_COLUMNS, with_notes=False)),
    "speed-small": ("speed-small.json", speed(FEW_COLUMNS, with_notes=False)),
    "speed-released-all": ("speed-released.json", speed(COLUMNS, with_notes=True)),
    "speed-small-all": ("speed-small.json", speed(COLUMNS, with_notes=True)),
    "plot": ("speed-small.json", plot),
    "throughput": ("throughput.json", throughput),
    "quality": ("quality.json", quality),
    "streams-quality": ("streams-quality.json", streams_quality),
    "streams-quality-small-stream": ("streams-quality-small-stream.json", streams_quality),
    "serving-capacity": ("serving.json", serving_capacity),
    "serving-load": ("serving.json", serving_load),
    "serving-streams": ("serving.json", serving_streams),
    "streams-small-stream": ("streams-small-stream.json", streams_speed),
    "streams-small": ("streams-small.json", streams_speed),
    "streams-released": ("streams-released.json", streams_speed),
    "corpus-speed": ("corpus-speed.json", corpus_speed),
    "recognition": ("recognition.json", recognition("wer")),
    "recognition-change": ("recognition.json", recognition("change")),
    "compare": ("compare.json", comparison("scores")),
    "compare-difference": ("compare.json", comparison("difference")),
    "compare-costs": ("compare.json", comparison_costs),
}


def filled(text: str, results: Path) -> str:
    """Return a page with its sections written from their reports.

    Raises:
        KeyError: The name of a section is unknown.
    """

    def section(match: re.Match[str]) -> str:
        file, render = SECTIONS[match["name"]]
        if not (results / file).exists():
            return match[0]
        report = json.loads((results / file).read_text(encoding="utf-8"))
        return f"{match['head']}\n{render(report)}\n\n{match['tail']}"

    return SECTION.sub(section, text)


def pages() -> list[Path]:
    return [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if a section differs")
    options = parser.parse_args()
    stale = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if (new := filled(text, RESULTS)) != text:
            stale.append(str(page.relative_to(REPOSITORY)))
            if not options.check:
                page.write_text(new, encoding="utf-8")
    if stale:
        print(f"{'different from benchmarks/results' if options.check else 'written'}: {', '.join(stale)}")
    if options.check and stale:
        sys.exit(1)


if __name__ == "__main__":
    main()
