"""Check that two runs of the same benchmark agree; exit with 1 if they do not.

    python benchmarks/agreement.py FIRST.json SECOND.json [--percent 10]

The files are reports of `frcrn-accel bench --json`. For each configuration and baseline the table shows how many
times faster it was in each run, and the difference in percent. A difference above `--percent` is excused by noise, if
the 95 % intervals overlap, or by other work, if the machine had any in one of the runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from frcrn_accel.bench.tables import is_disturbed


def ratios(report: dict[str, Any]) -> dict[tuple[Any, ...], dict[str, float]]:
    """Return ratios by model, length, threads, configuration and baseline."""
    return {
        (group["model"], group["length_s"], group["threads"], row["configuration"], baseline): ratio
        for group in report["groups"]
        for row in group["rows"]
        for baseline, ratio in row["times_faster"].items()
        if baseline != row["configuration"]
    }


def compare(first: dict[str, Any], second: dict[str, Any], percent: float) -> tuple[list[list[str]], bool]:
    """Return the rows of a table, and whether all runs agree or noise explains why they do not."""
    before, after = ratios(first), ratios(second)
    rows, agree = [], True
    verdict_beyond_noise = "other work" if any(map(is_disturbed, first["groups"] + second["groups"])) else "DIFFER"
    for key in before.keys() & after.keys():
        one, other = before[key], after[key]
        difference = 100 * (other["median"] / one["median"] - 1)
        overlap = one["low"] <= other["high"] and other["low"] <= one["high"]
        verdict = "agree" if abs(difference) <= percent else "noise" if overlap else verdict_beyond_noise
        agree &= verdict != "DIFFER"
        model, length_s, threads, configuration, baseline = key
        shown = [f"{r['median']:.2f} ({r['low']:.2f} to {r['high']:.2f})" for r in (one, other)]
        what = f"{model}, {length_s:g} s, {threads} thread(s)"
        rows.append([what, configuration, baseline, *shown, f"{difference:+.1f} %", verdict])
    return sorted(rows), agree


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--percent", type=float, default=10.0)
    options = parser.parse_args()
    first, second = (json.loads(path.read_text(encoding="utf-8")) for path in (options.first, options.second))
    rows, agree = compare(first, second, options.percent)
    if not rows:
        sys.exit("the two runs have no configuration in common with the same baseline")
    print(f"began {first['began']} and {second['began']}")
    for one, other in zip(first["groups"], second["groups"], strict=False):
        noise = " and ".join(f"{group['noise_percent']:.0f} %" for group in (one, other))
        work = " and ".join(str(group["other_cpus"] and round(group["other_cpus"], 2)) for group in (one, other))
        print(f"{one['model']}: noise {noise}, CPUs busy with other work {work}")
    print("| model | configuration | times faster than | first | second | difference | |")
    print("|---" * 7 + "|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    if not agree:
        sys.exit(f"some ratios differ by more than {options.percent:g} %, and noise does not explain it")


if __name__ == "__main__":
    main()
