"""How long a command takes to start, and whether the extra `llm` costs those who do not use it.

    .venv/bin/python bench/start.py              about 20 seconds

Each figure is a median over processes of their own, in turns; the ratios are to a Python that does nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import subprocess
import sys
import time

BARE = "python, nothing"
PROGRAMS = {
    BARE: ["-c", "pass"],
    "import runner.cli": ["-c", "import runner.cli"],
    "autoresearch status --help": ["-c", "from runner.cli import app; app()", "status", "--help"],
    "import runner.agents.litellm_chat": ["-c", "import runner.agents.litellm_chat"],
}
LIBRARY = {"a LitellmChat made": [
    "-c",
    "from runner.agents.litellm_chat import *; LitellmChat(ModelOptions(model='openai/m', api_base='http://127.0.0.1:1'))",
]}  # fmt: skip
LIMIT_SECONDS = 0.5
"""What `status --help` may take on a calm machine."""


def seconds(arguments: list[str]) -> float:
    """Wall seconds of one process."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    installed = importlib.util.find_spec("litellm") is not None
    programs = PROGRAMS | (LIBRARY if installed else {})
    took: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(runs + 1):
        for name, arguments in programs.items():
            found = seconds(arguments)
            if turn:  # the first fills caches
                took[name].append(found)
    print(f"{runs} runs each, litellm {'installed' if installed else 'not installed'}")
    bare = statistics.median(took[BARE])
    for name, values in took.items():
        middle = statistics.median(values)
        print(f"{name:36} {middle:6.3f} s  ({min(values):.3f} to {max(values):.3f})  {middle / bare:6.1f} x")
    over = statistics.median(took["autoresearch status --help"]) > LIMIT_SECONDS
    print(f"status --help is {'over' if over else 'within'} {LIMIT_SECONDS} s")


if __name__ == "__main__":
    main()
