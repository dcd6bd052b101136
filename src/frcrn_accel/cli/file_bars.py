"""Progress bars of files that are denoised. It needs rich: import it only where there is a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

__all__ = ["file_bars"]


def file_bars(console: Console) -> Progress:
    """Return bars with the real-time factor."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), _RealTimeFactor(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)


class _RealTimeFactor(ProgressColumn):
    """The real-time factor (RTF) so far: processing time divided by audio time."""

    def render(self, task: Task) -> Text:
        if not task.completed or task.elapsed is None:
            return Text("RTF -----")
        return Text(f"RTF {task.elapsed / task.completed:.3f}")
