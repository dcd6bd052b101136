"""Execute examples/tutorial.ipynb, and write it with its results, and as the page docs/tutorial.md.

    python scripts/tutorial.py [--parameters FILE.py] [--dry-run]

`--parameters` replaces the cell that is tagged so. `--dry-run` executes only, and prints what the cells print. Sound
goes into the page, as MP3, but not into the notebook, which stays small.
"""

from __future__ import annotations

import argparse
import base64
import io
import re
import shutil
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOK = EXAMPLES / "tutorial.ipynb"
PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"
HEAD = "<!-- Written by scripts/tutorial.py from examples/tutorial.ipynb: edit the notebook. -->\n\n"
COLOURS = 48
PRINTED = "```text\n"
PLAYER = re.compile(r'src="data:audio/wav;base64,([^"]+)"')


def read() -> Any:
    import nbformat

    return nbformat.read(NOTEBOOK, as_version=4)


def execute(notebook: Any) -> None:
    """Run the cells, in the folder of the notebook."""
    from nbclient import NotebookClient

    NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": str(EXAMPLES)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # the times of the run


def text_of(output: Any) -> str:
    """Return what a cell printed; "" for other outputs."""
    return str(output.get("text", "")) if output.output_type == "stream" and output.name == "stdout" else ""


def page_source(cell: Any) -> str:
    """Return a cell without its results, as it is on the page."""
    if cell.cell_type == "markdown":
        return re.sub(r"\]\(\.\./docs/", "](", cell.source)
    return f"```python\n{cell.source}\n```"


def shrink_pictures(notebook: Any) -> None:
    """Give the pictures few colours, which is a fifth of the bytes."""
    from PIL import Image

    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                small = io.BytesIO()
                picture = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
                picture.convert("RGB").quantize(COLOURS).save(small, "PNG", optimize=True)
                output.data["image/png"] = base64.b64encode(small.getvalue()).decode("ascii")


def write_page(notebook: Any) -> None:
    """Write the page, and its pictures and sounds beside it."""
    import soundfile

    files = PAGE.with_suffix("")
    shutil.rmtree(files, ignore_errors=True)
    files.mkdir()
    parts = []
    for cell in notebook.cells:
        parts.append(page_source(cell))
        for output in cell.get("outputs", ()):
            name, data = f"{len(list(files.iterdir()))}", output.get("data", {})
            if text_of(output):
                if parts[-1].startswith(PRINTED):  # printed in several pieces
                    parts[-1] = parts[-1].removesuffix("```") + text_of(output) + "```"
                else:
                    parts.append(f"{PRINTED}{text_of(output)}```")
            elif "image/png" in data:
                (files / f"{name}.png").write_bytes(base64.b64decode(data["image/png"]))
                parts.append(f"![Spectrograms]({files.name}/{name}.png)")
            elif found := PLAYER.search(data.get("text/html", "")):
                samples, rate_hz = soundfile.read(io.BytesIO(base64.b64decode(found[1])))
                soundfile.write(files / f"{name}.mp3", samples, rate_hz)
                parts.append(f'<audio controls src="{name}.mp3"></audio>')
    PAGE.write_text(HEAD + "\n\n".join(parts) + "\n", encoding="utf-8")


def without_sound(notebook: Any) -> None:
    """Remove the players from the results."""
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = [
                one for one in cell.outputs if not PLAYER.search(one.get("data", {}).get("text/html", ""))
            ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    import nbformat

    notebook = read()
    if arguments.parameters:
        [cell] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
        cell.source = arguments.parameters.read_text(encoding="utf-8")
    execute(notebook)
    if arguments.dry_run:
        print("".join(text_of(output) for cell in notebook.cells for output in cell.get("outputs", ())))
        return
    shrink_pictures(notebook)
    write_page(notebook)
    without_sound(notebook)
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
