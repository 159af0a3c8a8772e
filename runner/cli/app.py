"""The application object and its one error boundary."""

from __future__ import annotations

import signal
import sys
import tempfile
import traceback
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.exceptions import Abort, Exit, TyperException

from runner.errors import EXIT_DEFECT, AutoresearchError, Interrupted

run_folder: ContextVar[Path | None] = ContextVar("run_folder", default=None)
"""Set by a command that works on a run: where a traceback belongs."""


class Boundary(TyperGroup):
    """Ends every command in a documented exit code and one message, never in a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; see `runner.errors` for the codes."""
        try:
            signal.signal(signal.SIGTERM, _terminated)
            return super().invoke(ctx)
        except AutoresearchError as error:
            _end(f"autoresearch: {error}", error.exit_code)
        except KeyboardInterrupt:
            _end("autoresearch: interrupted; what was measured is kept, the same command goes on", 130)
        except BrokenPipeError:
            sys.stderr.close()
            raise SystemExit(0) from None
        except (TyperException, Exit, Abort):
            raise
        except Exception:  # noqa: BLE001 - the boundary
            path = _keep_traceback()
            _end(f"autoresearch: a defect of ours; please report it with {path}", EXIT_DEFECT)


app = typer.Typer(
    cls=Boundary,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Autonomous research on one training file; every trial in its own fresh, locked-down container.",
)

TaskOption = Annotated[Path, typer.Option("--task", metavar="DIR", help="Folder with autoresearch.yaml.")]
TagOption = Annotated[str | None, typer.Option("--tag", metavar="TAG", help="Which run [default: the latest].")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line on standard output.")]
HERE = Path()


def _end(message: str, code: int) -> NoReturn:
    typer.echo(message, err=True)
    raise SystemExit(code)


def _terminated(_signal: int, _frame: FrameType | None) -> None:
    # A second one ends the process at once; whatever was under way is taken up by the next start.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    message = "terminated; what was measured is kept, the same command goes on"
    raise Interrupted(message, exit_code=143)


def _keep_traceback() -> Path:
    """Write the traceback into the run's folder if one is known, else into a private temporary one."""
    folder = run_folder.get() or Path(tempfile.mkdtemp(prefix="autoresearch-"))
    path = folder / f"defect-{datetime.now(UTC):%Y%m%dT%H%M%S}.txt"
    path.write_text(traceback.format_exc())
    return path
