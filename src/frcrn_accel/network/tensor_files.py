"""Read files of tensors: PyTorch's, safetensors, and NumPy's `.npz`, which MLX writes too.

No code in a file is run, and a file is unpacked only if its unpacked size is within bounds.
"""

from __future__ import annotations

import argparse
import codecs
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.errors import MissingExtraError, ModelError, one_line

__all__ = ["MAX_BYTES", "is_npz", "is_safetensors", "read_npz", "read_safetensors", "read_torch"]

MAX_BYTES = 2 * 1024**3
"""Largest size of a checkpoint, packed and unpacked. The released one has 58 MB, and an optimiser triples that."""

_BFLOAT16 = np.dtype("V2")  # as MLX writes it to `.npz`


def is_safetensors(path: Path) -> bool:
    """Return whether a file starts like a safetensors file: with the length of a JSON header, then the header."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def is_npz(path: Path) -> bool:
    """Return whether a file is a zip archive with NumPy arrays."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".npy") for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return False


def read_torch(path: Path) -> Any:
    """Read a file that `torch.save` wrote, with `weights_only=True`, which never runs code in the file.

    Raises:
        ImportError: torch is not installed.
        ModelError: The file is damaged, unpacks to more than `MAX_BYTES`, or holds objects that are not plain.
    """
    import torch

    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                _check_sizes(archive)
        except (zipfile.BadZipFile, ValueError, NotImplementedError):
            pass  # torch's own reader reports the problem
    try:
        with warnings.catch_warnings(), _harmless_allowed(torch):
            warnings.simplefilter("ignore")  # torch warns of old pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files make the reader fail with nearly any class
        # torch's own message advises to load a rejected file unsafely: do not pass that on.
        if refused := re.search(r"Unsupported global: GLOBAL ([\w.]+)", str(error)):
            raise ModelError(
                f"it is not a file of plain tensors: it also holds a Python object, {refused[1]}. Save the state "
                "dict alone, with torch.save(model.state_dict(), ...)"
            ) from error
        raise ModelError("it is not a file of plain tensors written by torch.save, or is damaged") from error


@contextmanager
def _harmless_allowed(torch: Any) -> Iterator[None]:
    """Let `torch.load` create numpy arrays and scalars, such as a score, and parsed options. These run no code."""
    allow = getattr(torch.serialization, "safe_globals", None)
    if allow is None:  # torch before 2.5
        yield
        return
    array, scalar = np.zeros(1), np.float64(0)
    makers = [maker.__reduce__()[0] for maker in (array, scalar)]
    types = (type(np.dtype(code)) for code in "?bBhHiIlLqQefd")
    with allow([*makers, np.ndarray, np.dtype, *types, codecs.encode, argparse.Namespace]):
        yield


def read_safetensors(path: Path) -> dict[str, Any]:
    """Read a safetensors file, as torch tensors: NumPy has no bfloat16.

    Raises:
        MissingExtraError: The package safetensors is not installed.
        ModelError: The file is damaged: its header contradicts its size or itself.
    """
    try:
        import safetensors
    except ImportError as error:
        raise MissingExtraError("Reading a file of safetensors", "export", error) from error
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  it is not a mapping
    except (safetensors.SafetensorError, ValueError, TypeError, RuntimeError) as error:
        raise ModelError(f"it is a damaged file of safetensors: {one_line(error)}") from error


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Read the arrays of an `.npz` file, without those that hold Python objects: reading these would run code.

    Raises:
        ModelError: The file is damaged, unpacks to more than `MAX_BYTES`, or holds Python objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_sizes(archive)
            arrays = {}
            for member in archive.infolist():
                if member.filename.endswith(".npy"):
                    with archive.open(member) as file:
                        key = member.filename.removesuffix(".npy")
                        arrays[key] = _read_npy(file, key, member.file_size)
            return arrays
    except ModelError:
        raise
    except Exception as error:  # damaged archives make their readers fail with nearly any class
        raise ModelError(f"it is a damaged .npz file: {one_line(error)}") from error


def _read_npy(file: IO[bytes], key: str, length: int) -> NDArray[Any]:
    """Read one array, after comparing its header, which decides what is allocated, with the length of the file."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"{key!r} has version {version[0]}.{version[1]} of the .npy format")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise ModelError(f"{key!r} holds Python objects, which are not read: save arrays of numbers")
    count = int(np.prod(shape, dtype=object))
    if not 0 <= count * dtype.itemsize <= length:
        raise ValueError(f"the header of {key!r} says {count} numbers of {dtype}, which are not there")
    data = file.read(count * dtype.itemsize)
    array = np.frombuffer(data, dtype, count)
    array = array.reshape(shape[::-1]).T if is_fortran else array.reshape(shape)
    if dtype == _BFLOAT16:  # the upper half of a float32
        array = (array.view("<u2").astype(np.uint32) << 16).view(np.float32)
    return array


def _check_sizes(archive: zipfile.ZipFile) -> None:
    """Check the unpacked size of a zip archive. Python reads no more of a member than the archive declares."""
    total = sum(member.file_size for member in archive.infolist())
    if total > MAX_BYTES:
        raise ModelError(
            f"it unpacks to {total / 1e9:.1f} GB, more than any FRCRN needs (at most {MAX_BYTES / 1e9:.1f} GB)"
        )
