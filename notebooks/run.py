#!/usr/bin/env python3
"""Runs the notebooks from nothing, each in a temporary folder, on the small base.

    python3 notebooks/run.py dist/danlu-*.whl     # installs the wheel into a new environment first
    python3 notebooks/run.py                      # uses the `danlu` on the path

Installs nbclient and ipykernel from PyPI into a temporary environment. Needs Python 3.9.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
CLIENT = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
assert len(codes) == 9, len(codes)
for cell in codes:
    text = "".join(output.get("text", "") for output in cell.outputs)
    # A shell line that fails is no exception in a notebook.
    assert "error:" not in text, text
assert any("image/svg+xml" in output.get("data", {}) for output in codes[6].outputs), "no curve"
print(sys.argv[1], "ok")
"""


def main():
    wheels = [str(Path(wheel).resolve()) for wheel in sys.argv[1:]]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", f"{folder}/venv"], check=True)
        pip = [f"{folder}/venv/bin/pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "nbclient", "nbformat", "ipykernel", *wheels], check=True)
        path = f"{folder}/venv/bin{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "XDG_CACHE_HOME": f"{folder}/cache"}
        for notebook in sorted(FOLDER.glob("*.ipynb")):
            work = Path(folder, notebook.stem)
            work.mkdir()
            command = [f"{folder}/venv/bin/python", "-c", CLIENT, str(notebook)]
            subprocess.run(command, cwd=work, env=environment, check=True)


if __name__ == "__main__":
    main()
