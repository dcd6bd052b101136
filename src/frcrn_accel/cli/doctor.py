"""`frcrn-accel doctor`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console

from frcrn_accel.cli.output import echo

__all__ = ["doctor"]


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, for a bug report.")] = False,
) -> None:
    """Examine packages, backends, CPU, GPU, cache and models. The exit code is 1 if something needs repair.

    Every backend that can run denoises a second of noise with the packaged model. Nothing is sent anywhere, and names
    of users, hosts and home folders are left out.
    """
    from frcrn_accel.doctor import examine

    console = Console(stderr=True, highlight=False)
    with console.status("") as status:
        report = examine(status.update).to_json()
    if as_json:
        typer.echo(json.dumps(report, indent=2, allow_nan=False))
    else:
        for line in _lines(report):
            echo(line)
    if report["problems"]:
        raise typer.Exit(1)


def _lines(report: dict[str, Any]) -> list[str]:
    """Return the lines of the report for people."""
    packages = report["packages"]
    return [
        f"frcrn-accel {report['version']}, Python {report['python']}, {report['system']}",
        f"packages: {', '.join(f'{name} {found}' for name, found in packages.items() if found)}",
        f"  not installed: {', '.join(name for name, found in packages.items() if not found) or 'none'}",
        "backends:",
        *(f"  {backend['name']:<16}  {_backend(backend)}" for backend in report["backends"]),
        *_cpu_lines(report["cpu"]),
        *_gpu_lines(report["gpu"]),
        *_cache_lines(report["cache"]),
        "models:",
        *(f"  {model['name']:<16}  {_model(model)}" for model in report["models"]),
        "problems:" if report["problems"] else "problems: none",
        *(f"  {problem}" for problem in report["problems"]),
    ]


def _backend(backend: dict[str, Any]) -> str:
    if backend["usable"]:
        return f"runs in {backend['precision']} on {backend['device']}{' (auto)' if backend['auto'] else ''}"
    return f"cannot run: {backend['reason']}; {backend['remedy']}"


def _cpu_lines(cpu: dict[str, Any]) -> list[str]:
    allowed = "all" if cpu["affinity_cpus"] is None else cpu["affinity_cpus"]
    quota = "none" if cpu["quota_cpus"] is None else f"{cpu['quota_cpus']} CPU(s)"
    lines = [
        f"CPU: {cpu['model'] or 'unknown'}, {cpu['architecture']}",
        f"  {cpu['logical_cpus']} CPU(s), affinity {allowed}, container quota {quota}: {cpu['threads']} thread(s)",
    ]
    if cpu["features"]:
        present = [name for name, found in cpu["features"].items() if found]
        absent = [name for name, found in cpu["features"].items() if not found]
        lines.append(f"  has {', '.join(present) or 'nothing that matters here'}")
        lines += [f"  lacks {', '.join(absent)}"] if absent else []
    return [*lines, f"  INT8: {cpu['int8']}", f"  bfloat16: {cpu['bf16']}"]


def _gpu_lines(gpu: dict[str, Any]) -> list[str]:
    lines = [f"GPU: driver {gpu['driver']}, CUDA up to {gpu['driver_cuda']}" if gpu["driver"] else "GPU: no driver"]
    if gpu["problem"]:
        lines[0] += f" ({gpu['problem']})"
    lines += [
        f"  {device['name']}, {device['memory_mb'] / 1e3:.0f} GB, compute capability {device['compute_capability']}"
        for device in gpu["devices"]
    ]
    packages = ", ".join(f"{name} {found}" for name, found in gpu["packages"].items())
    libraries = ", ".join(f"{name} {found or 'not found'}" for name, found in gpu["libraries"].items())
    return [*lines, f"  packages: {packages or 'none'}", f"  libraries of the system: {libraries}"]


def _cache_lines(cache: dict[str, Any]) -> list[str]:
    state = "" if cache["exists"] else ", not made yet"
    state += "" if cache["writable"] else ", not writable"
    damaged = sum(file["problem"] is not None for file in cache["files"])
    files = f"{len(cache['files'])} file(s), {damaged} damaged"
    return [f"cache: {cache['folder']}{state}, {files}, {cache['bytes'] / 1e6:.1f} MB"]


def _model(model: dict[str, Any]) -> str:
    if model["place"] == "absent":
        return "not here"
    state = "verified" if model["verified"] else "damaged"
    variants = f", quantized: {', '.join(model['variants'])}" if model["variants"] else ""
    return f"{model['place']}, {state}{variants}"
