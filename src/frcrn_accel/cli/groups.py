"""The commands of `frcrn-accel`, by the headings of its help. A command is imported once it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from frcrn_accel.cli.usage import check_numbers

__all__ = ["GroupedCommands"]

_MODELS = "Make and check models"
# A command is the function of that name in the module of that name, with _ for -.
_COMMANDS = {
    "Denoise": ("denoise", "corpus", "live", "serve"),
    "Look at this machine": ("doctor", "backends", "bench"),
    _MODELS: ("export", "quantize", "build-engine", "evaluate", "train", "models"),
}
_HEADINGS = {name: heading for heading, names in _COMMANDS.items() for name in names}
_LONGEST_SUMMARY = 200  # characters; a summary is wrapped, not cut


class GroupedCommands(TyperGroup):
    """Lists commands under headings, in plain text, and loads those that are asked for.

    Typer shows headings (`rich_help_panel`) only in boxes, which leave little room for the help of options.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands, in their order."""
        return list(_HEADINGS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command; None if there is none of that name."""
        wanted = [cmd_name] if cmd_name in _HEADINGS else [*_HEADINGS]  # all, to suggest the nearest
        for name in wanted:
            if name not in self.commands:
                self.commands[name] = _load(name)
        return self.commands.get(cmd_name)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each heading, in the order of the commands."""
        width = max(map(len, _HEADINGS))
        for heading, names in _COMMANDS.items():
            commands = [self.get_command(ctx, name) for name in names]
            summaries = [command.get_short_help_str(_LONGEST_SUMMARY) for command in commands]
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(width), text) for name, text in zip(names, summaries, strict=True)])


def _load(name: str) -> Any:
    """Import a command."""
    attribute = name.replace("-", "_")
    found = getattr(import_module(f"frcrn_accel.cli.{attribute}"), attribute)
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.callback()(lambda: None)  # with it, one command is a group as well
    if isinstance(found, typer.Typer):
        app.add_typer(found, name=name)
    else:
        app.command(name)(found)
    group: Any = typer.main.get_command(app)
    command = group.commands[name]
    check_numbers(command)
    return command
