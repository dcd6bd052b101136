"""Open files with PyAV, the same way with all of its versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["open_input"]

# From this version on, PyAV decodes text as UTF-8 with `surrogateescape`, and has no option for it.
_WITHOUT_METADATA_OPTION = 19


def open_input(source: Any, **options: Any) -> Any:
    """Open an input container. Text in it that is not UTF-8 has surrogate escapes.

    From a file object, no other file or address is opened: a playlist in disguise must not read one.

    Args:
        source: Path as a string, or a file object.
        **options: Other arguments of `av.open`.
    """
    import av

    if int(av.__version__.partition(".")[0]) < _WITHOUT_METADATA_OPTION:
        options["metadata_errors"] = "surrogateescape"
    given: Mapping[str, str] = options.pop("container_options", {})
    protocols = "file" if isinstance(source, str) else "none"
    return av.open(source, "r", container_options={"protocol_whitelist": protocols, **given}, **options)
