"""Show a report as tables, on a terminal and in Markdown, from its JSON, so that old reports can be shown too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

__all__ = [
    "COLUMNS",
    "COMPARED_COLUMNS",
    "TIME_COLUMNS",
    "Table",
    "group_title",
    "left_out_lines",
    "machine_line",
    "machine_text",
    "markdown",
    "markdown_table",
    "notes",
    "speed_table",
    "throughput_advice",
    "throughput_table",
    "throughput_title",
]

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        heads: Heads of the columns.
        rows: Cells of each row.
    """

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """Return the table in Markdown; the first column holds names."""
        return markdown_table(self.heads, [(f"`{name}`", *cells) for name, *cells in self.rows])


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown.

    >>> from frcrn_accel.bench.tables import markdown_table
    >>> print(markdown_table(["", "p50, ms"], [["one stream", "1.2"], ["two streams", "2.4"]]))
    |  | p50, ms |
    |---|---|
    | one stream | 1.2 |
    | two streams | 2.4 |

    Args:
        heads: Heads of the columns.
        rows: Cells of each row.
    """
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(cells)} |" for cells in rows)])


def _quality(field: str, shown: Callable[[Any], str]) -> Callable[[Json], str]:
    def cell(row: Json) -> str:
        value = None if row["quality"] is None else row["quality"][field]
        return "" if value is None else shown(value)

    return cell


def _change(digits: int) -> Callable[[Json], str]:
    def shown(change: Json) -> str:
        # Adding zero avoids "-0.00".
        mean, low, high = (f"{round(change[name], digits) + 0.0:+.{digits}f}" for name in ("mean", "low", "high"))
        return f"{mean} ({low} to {high})"

    return shown


def _memory(row: Json) -> str:
    peak_bytes = row["peak_memory_bytes"]
    return "" if peak_bytes is None else f"{peak_bytes / 1e6:.0f}"


# Head and cell of each column, by its name. The columns of the baselines stand between time and quality.
_TIME: dict[str, tuple[str, Callable[[Json], str]]] = {
    "median": ("median s", lambda row: f"{row['median_s']:.3f}"),
    "p95": ("p95 s", lambda row: f"{row['p95_s']:.3f}"),
    "rtf": ("RTF", lambda row: f"{row['real_time_factor']:.3f}"),
    "first": ("first s", lambda row: f"{row['first_s']:.2f}"),
    "load": ("load s", lambda row: f"{row['load_s']:.2f}"),
    "memory": ("peak MB", _memory),
    "file": ("file MB", lambda row: f"{row['file_bytes'] / 1e6:.1f}"),
}
_SOUND: dict[str, tuple[str, Callable[[Json], str]]] = {
    "si-sdr": ("SI-SDR to fp32, dB", _quality("si_sdr_to_fp32_db", "{:.1f}".format)),
    "pesq": ("PESQ-WB, %", _quality("pesq_change_percent", _change(2))),
    "dnsmos": ("DNSMOS OVRL", _quality("dnsmos_change", _change(3))),
}
_BUSY_CPUS = 0.1  # more other work slows engines unequally; those whose threads sleep between layers suffer most
BASELINES = "baselines"
COLUMNS = (*_TIME, BASELINES, *_SOUND)
_SETTING = ("workers", "threads", "batch")
TIME_COLUMNS = tuple(_TIME)  # a terminal is too narrow for all columns, so they are shown in two tables
COMPARED_COLUMNS = (BASELINES, *_SOUND)


def speed_table(group: Json, baselines: Sequence[str], columns: Sequence[str] = COLUMNS) -> Table:
    """Return the table of a group, the fastest row first, without columns that are empty.

    Args:
        group: One of `groups` of the JSON report.
        baselines: Names of baselines; each has a column, "times faster than", with a 95 % interval.
        columns: Names of the columns to show, of `COLUMNS`.
    """
    rows = sorted(group["rows"], key=lambda row: float(row["median_s"]))
    cells: list[tuple[str, list[str]]] = [("configuration", [row["configuration"] for row in rows])]
    for column in columns:
        if column == BASELINES:
            for baseline in baselines:
                cells.append((f"times faster than {baseline}", [_ratio(row, baseline) for row in rows]))
        else:
            head, cell = (_TIME | _SOUND)[column]
            cells.append((head, [cell(row) for row in rows]))
    cells = [(head, texts) for head, texts in cells if any(texts)]
    return Table(tuple(head for head, _ in cells), tuple(zip(*(texts for _, texts in cells), strict=True)))


def throughput_table(found: Json) -> Table:
    """Return the table of the settings of one configuration."""
    heads = ("workers x threads x windows", "times real time", "times as fast as the best", "peak MB")
    rows = []
    for row in found["rows"]:
        is_best = all(row[name] == value for name, value in found["best"].items())
        setting = " x ".join("-" if value is None else str(value) for value in (row[name] for name in _SETTING))
        share = "best" if is_best else _interval(row["to_best"])
        rows.append((setting, f"{row['times_real_time']:.1f}", share, _memory(row)))
    return Table(heads, tuple(rows))


def group_title(group: Json, rounds: int) -> str:
    """Return the title of a group: what its rows have in common."""
    weights = ", random weights" if group["random_weights"] else ""
    size = f"{group['channels']} channels, {group['unets']} U-Net(s){weights}"
    return (
        f"{group['model']} ({size}), {group['length_s']:g} s clip, {group['threads']} thread(s), {rounds} rounds, "
        f"noise {group['noise_percent']:.0f} %"
    )


def throughput_title(found: Json, rounds: int) -> str:
    """Return the title of a throughput table: what its rows have in common."""
    return f"{found['model']} on {found['configuration']}, files of {found['file_s']:g} s, {rounds} rounds"


def throughput_advice(found: Json) -> str:
    """Return advice for many files."""
    best = found["best"]
    backend, _, precision = found["configuration"].partition(":")
    options = {"backend": backend, "precision": precision, "threads": best["threads"], "batch_size": best["batch"]}
    arguments = ", ".join(f"{name}={value!r}" for name, value in options.items() if value)
    return f"best: {best['workers']} process(es) side by side, each with Denoiser({arguments})"


def machine_line(report: Json) -> str:
    """Describe the machine that was measured, and the version of this library."""
    return machine_text(report["machine"], {"frcrn-accel": report["version"]})


def machine_text(machine: Json, more_packages: Mapping[str, str] = MappingProxyType({})) -> str:
    """Describe a machine on one line.

    Args:
        machine: `machine` of the JSON report.
        more_packages: Versions of packages to name before those of the engines.
    """
    features = f" ({', '.join(machine['features'])})" if machine["features"] else ""
    gpus = "".join(f", {name}" for name in machine["gpus"])
    packages = "".join(f", {name} {version}" for name, version in {**more_packages, **machine["engines"]}.items())
    return (
        f"{machine['cpu'] or 'unknown CPU'}{features}, {machine['cpus']} CPU(s){gpus}, {machine['system']}, Python "
        f"{machine['python']}{packages}"
    )


def is_disturbed(group: Json) -> bool:
    """Return whether the machine had so much other work that the ratios may be wrong."""
    return (group["other_cpus"] or 0) > _BUSY_CPUS


def notes(group: Json) -> list[str]:
    """Return notes on a group's table: which rows do not clearly differ, and which scores are missing."""
    lines = [
        f"too noisy to tell apart: {' and '.join(pair['configurations'])}, {_interval(pair['times_faster'])}"
        for pair in group["alike"]
    ]
    if is_disturbed(group):
        lines.append(
            f"other work kept {group['other_cpus']:.1f} CPU(s) busy on average: measure again on an idle machine"
        )
    return lines + list(dict.fromkeys(row["quality"]["note"] for row in group["rows"] if _note(row)))


def left_out_lines(report: Json) -> list[str]:
    """Return what was not measured, and why."""
    return [f"left out: {each['configuration']} ({each['model']}): {each['reason']}" for each in report["left_out"]]


def markdown(report: Json) -> str:
    """Return all tables of a report in Markdown, with the machine."""
    parts = [machine_line(report)]
    for group in report["groups"]:
        parts.append(f"**{group_title(group, report['rounds'])}**")
        parts.append(speed_table(group, report["baselines"]).markdown())
        if found := notes(group):
            parts.append("\n".join(f"- {line}" for line in found))
    for found in report["throughput"]:
        parts.append(f"**{throughput_title(found, report['rounds'])}**")
        parts.append(throughput_table(found).markdown())
    return "\n\n".join(parts) + "\n"


def _note(row: Json) -> bool:
    return row["quality"] is not None and bool(row["quality"]["note"])


def _ratio(row: Json, baseline: str) -> str:
    ratio = row["times_faster"].get(baseline)
    if ratio is None:
        return ""
    return "1" if row["configuration"] == baseline else _interval(ratio)


def _interval(ratio: Json) -> str:
    """Format a ratio, with two decimals below 10, one below 100, none above."""
    values = (ratio["median"], ratio["low"], ratio["high"])
    median, low, high = (f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}" for value in values)
    return f"{median} ({low} to {high})"
