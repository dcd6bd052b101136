"""The list of commands in `frcrn-accel --help`."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

__all__ = ["GroupedCommands"]

_LONGEST_SUMMARY = 200  # characters; a summary is wrapped, not cut


class GroupedCommands(TyperGroup):
    """Lists commands under the headings that they were registered with, in plain text.

    Typer shows headings (`rich_help_panel`) only in boxes, which leave little room for the help of options.
    """

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each heading, in the order of the commands."""
        sections: dict[str, list[tuple[str, str]]] = {}
        names = self.list_commands(ctx)
        width = max(map(len, names))
        for name in names:
            command: Any = self.get_command(ctx, name)
            summary = command.get_short_help_str(_LONGEST_SUMMARY)
            sections.setdefault(command.rich_help_panel, []).append((name.ljust(width), summary))
        for heading, rows in sections.items():
            with formatter.section(heading):
                formatter.write_dl(rows)
