"""`make lock`: every lock anew, for the host and for the images.  Needs an index; none is named in a lock.

Host locks hold for Python 3.11 to 3.13 on any system.  Image locks hold for the image's Python and carry `===`
pins: `2.13.0` then never means a local build such as `2.13.0+cpu`, nor the other way round.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "images"
AGENTS = ROOT / "tests" / "agents"
HOST = ("requirements-llm.lock", "requirements.lock", "requirements-mcp.lock", "requirements-dev.lock")
COMMON = (
    "--generate-hashes", "--python-version=3.11", "--no-header", "--no-annotate", "--no-emit-index-url",
    "--no-emit-find-links", "--quiet",
)  # fmt: skip
CPU_TORCH = """\
# PyTorch's own build for the CPU.  It is not on the default index, and its file differs by where it comes from, so it
# carries no hash here: the build refuses anything but this very version without CUDA parts, and records the file's hash.
"""
CUDA_PARTS = ("nvidia-", "cuda-", "triton", "torch==")


def compile_lock(source: Path, *options: str) -> str:
    """What uv makes of `source`."""
    command = ["uv", "pip", "compile", *COMMON, *options, str(source)]
    return subprocess.run(
        [sys.executable, "-m", *command], check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ).stdout


def entries(lock: str) -> list[str]:
    """The lock's requirements, each with its hashes."""
    found: list[str] = []
    for line in lock.splitlines():
        if line.startswith(" "):
            found[-1] += f"\n{line}"
        elif line:
            found.append(line)
    return found


def exact(entry: str) -> str:
    """With `===`."""
    return entry.replace("==", "===", 1)


def main() -> None:
    """Write all locks."""
    project = ROOT / "pyproject.toml"
    llm, runtime, mcp, dev = (ROOT / name for name in HOST)
    # The extra with most demands first: the others then agree with it.
    llm.write_text(compile_lock(project, "--universal", "--extra=llm"))
    agree = ("--universal", f"--constraint={llm}")
    runtime.write_text(compile_lock(project, *agree))
    mcp.write_text(compile_lock(project, *agree, "--extra=mcp"))
    # Tests speak to the server by the SDK's own client.
    dev.write_text(compile_lock(project, *agree, "--extra=dev", "--extra=mcp"))

    # For one Python and one system, so without markers, which pip reads for the host's Python and not the image's.
    # The hashes are those of all wheels of a version, so cpu and prepare serve aarch64 too.
    image = ("--python-platform=x86_64-manylinux_2_28", f"--constraint={dev}")
    for kind in ("cpu", "cuda", "prepare"):
        kept = entries(compile_lock(IMAGES / f"{kind}.in", *image))
        if kind == "cpu":
            torch = next(entry for entry in kept if entry.startswith("torch==")).split()[0]
            kept = [entry for entry in kept if not entry.startswith(CUDA_PARTS)]
            kept.insert(0, f"{CPU_TORCH}{torch}+cpu")
        (IMAGES / f"{kind}.lock").write_text("\n".join(map(exact, kept)) + "\n")

    # What the tests run of other people's; npm's lock is `npm install --package-lock-only --omit-lockfile-registry-resolved`.
    for source in sorted(AGENTS.glob("*.in")):
        source.with_suffix(".lock").write_text(compile_lock(source, "--python-platform=x86_64-manylinux_2_28"))


if __name__ == "__main__":
    main()
