"""For the API reference: give each name of a group in a docstring an entry of its own.

`channels, step_s: See `Denoiser.stream`.` is read as two parameters with the same description, so that each is shown
with its type, and a name that the signature lacks is a warning. An extension of Griffe, named in mkdocs.yml.
"""

from __future__ import annotations

import re
from typing import Any

# Only the documentation needs it, so type checks run with it or without.
import griffe  # type: ignore[import-not-found,unused-ignore]

# An entry, and the lines of it that are indented further.
_GROUP = re.compile(
    r"^(?P<indent> +)(?P<names>\w+(?:, \w+)+)(?P<text>:.*(?:\n(?P=indent) +\S.*)*)$", re.MULTILINE | re.ASCII
)


class SplitGroups(griffe.Extension):  # type: ignore[misc,unused-ignore]
    """Split groups in the docstring of every object."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = _GROUP.sub(_split, obj.docstring.value)


def _split(group: re.Match[str]) -> str:
    names = group["names"].split(", ")
    return "\n".join(f"{group['indent']}{name}{group['text']}" for name in names)
