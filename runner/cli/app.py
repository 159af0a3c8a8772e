"""The application object and its one error boundary."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import traceback
from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.exceptions import Abort, Exit, TyperException

from runner import interrupts
from runner.errors import EXIT_DEFECT, AutoresearchError, StateError, Terminated

KEPT = "what was measured is kept, the same command goes on"
EXIT_BROKEN_PIPE = 141
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

run_folder: ContextVar[Path | None] = ContextVar("run_folder", default=None)
"""Set by a command that works on a run: where a traceback belongs."""


class Boundary(TyperGroup):
    """Ends every command in a documented exit code and one message, never in a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; see `runner.errors` for the codes."""
        try:
            interrupts.listen()
            return super().invoke(ctx)
        except AutoresearchError as error:
            _end(f"autoresearch: {error}", error.exit_code)
        except KeyboardInterrupt:
            _end(f"autoresearch: interrupted; {KEPT}", 130)
        except Terminated as error:
            _end(f"autoresearch: terminated; {KEPT}", error.exit_code)
        except BrokenPipeError:
            # Whoever read our output has gone; the interpreter must not try to flush it once more.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(EXIT_BROKEN_PIPE) from None
        except OSError as error:
            if not _of_the_state(error):
                _defect()
            where = error.filename or "the state folder"
            _end(f"autoresearch: cannot write {where}: {error.strerror}. {KEPT.capitalize()}", StateError.exit_code)
        except (TyperException, Exit, Abort):
            raise
        except Exception:  # noqa: BLE001 - the boundary
            _defect()


app = typer.Typer(
    cls=Boundary,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Autonomous research on one training file; every trial in its own fresh, locked-down container.",
)

TaskOption = Annotated[Path, typer.Option("--task", metavar="DIR", help="Folder with autoresearch.yaml.")]
TagOption = Annotated[str | None, typer.Option("--tag", metavar="TAG", help="Which run; by default the latest.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line on standard output.")]
HERE = Path()


def _end(message: str, code: int) -> NoReturn:
    try:
        typer.echo(message, err=True)
    except OSError:  # the terminal has gone; the interpreter must not try to write to it once more
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.dup2(nowhere, sys.stderr.fileno())
    raise SystemExit(code)


def _of_the_state(error: OSError) -> bool:
    """Whether it is about the disk, or about something below the state folder, which is somebody else's doing and no defect."""
    folder = run_folder.get()
    below = folder is not None and error.filename and Path(os.fsdecode(error.filename)).is_relative_to(folder.parent)
    return error.errno in DISK or bool(below)


def _defect() -> NoReturn:
    _end(f"autoresearch: {written_defect()}", EXIT_DEFECT)


def written_defect() -> str:
    """What to say of the exception that is being handled: its traceback is in the run's folder if one is known, else in a private one."""
    name, text = f"defect-{datetime.now(UTC):%Y%m%dT%H%M%S}.txt", traceback.format_exc()
    for folder in (run_folder.get, lambda: Path(tempfile.mkdtemp(prefix="autoresearch-"))):
        with suppress(OSError):
            if (found := folder()) is not None:
                (found / name).write_text(text)
                return f"a defect of ours; please report it with {found / name}"
    last = text.strip().splitlines()[-1]
    return f"a defect of ours, and no disk to write it to: {last}"
