"""The frame of the command line: commands loaded when called, errors in a sentence, exit status."""

import atexit
import errno
import gc
import os
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

from verglas import __version__
from verglas.cli.registry import COMMANDS, FAMILIES, GROUPS, STEPS, WHOLE, PlainCommand, StepCommand

if TYPE_CHECKING:
    from cyclopts import App

DONE, FAILED, USER_ERROR, BUG, INTERRUPTED = 0, 1, 2, 70, 130
"""Exit status: all is well; some items failed; the user can mend it; a bug; Ctrl-C."""

# What the machine refuses is for the user to mend, not a bug.
_MENDABLE = {errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EROFS}


def build_app(steps: Sequence[StepCommand] = STEPS, commands: Sequence[PlainCommand] = COMMANDS) -> "App":
    """Make the app of these commands without importing any of them."""
    from cyclopts import App, Group, Parameter

    groups = {name: Group(name, sort_key=rank) for rank, name in enumerate(GROUPS)}
    app = App(
        name="verglas",
        help="Cryo-EM movies, micrographs and tilt series to clean micrographs, tomograms and averages.",
        version=__version__,
        result_action="return_value",
        suppress_keyboard_interrupt=False,
        default_parameter=Parameter(negative_iterable=(), consume_multiple=True),
        group_commands=Group("Other", sort_key=len(GROUPS)),
    )
    estimate = App(
        name="estimate",
        help="Say what a step will take before it runs.",
        group=groups[WHOLE],
        group_commands=Group("Steps"),
    )
    families = {step.name.partition(" ")[0] for step in steps if " " in step.name}
    for step in steps:
        if " " in step.name:  # its family brings it along
            continue
        is_family = step.name in families
        path = f"families:{step.name}" if is_family else f"step_command:{step.step}"
        app.command(f"verglas.cli.{path}", name=step.name, help=step.help, group=groups[step.group])
        path = f"families:estimate_{step.name}" if is_family else f"estimate_command:{step.step}"
        estimate.command(f"verglas.cli.{path}", name=step.name, help=step.help)
    for family in FAMILIES:
        if family.name in families:
            app.command(
                f"verglas.cli.families:{family.name}",
                name=family.name,
                help=family.help,
                group=groups[family.group],
            )
            estimate.command(
                f"verglas.cli.families:estimate_{family.name}", name=family.name, help=family.help
            )
    if steps:
        app.command(estimate)
    for command in commands:
        app.command(command.function, name=command.name, help=command.help, group=groups[command.group])
    return app


def main(tokens: Sequence[str] | None = None, app: "App | None" = None) -> int:
    """Run a command and return the exit status.

    Parameters
    ----------
    tokens
        What the user typed after `verglas`; from the command line when none.
    app
        The commands; those of the registry when none.
    """
    from cyclopts import CycloptsError

    from verglas.errors import VerglasError

    # At its end the process gives all of its memory back: to look for garbage among it first takes a second.
    atexit.register(gc.freeze)
    try:
        return (app or build_app())(tokens, exit_on_error=False, print_error=False) or DONE
    except VerglasError as error:
        return _tell(str(error), USER_ERROR)
    except CycloptsError as error:
        return _tell(str(error), USER_ERROR)
    except OSError as error:
        if error.errno in _MENDABLE:
            return _tell(f"{error.strerror}: {error.filename!r}", USER_ERROR)
        return _tell_bug()
    except KeyboardInterrupt:
        return _tell("interrupted; run the same command again to continue", INTERRUPTED)
    except Exception as error:
        from verglas.cli.validation import describe_validation_error

        if told := describe_validation_error(error):
            return _tell(told, USER_ERROR)
        return _tell_bug()


def _tell(sentence: str, status: int) -> int:
    print("verglas: " + " ".join(sentence.split()), file=sys.stderr)
    return status


def _tell_bug() -> int:
    traceback.print_exc()
    return _tell(
        f"this is a bug in verglas {__version__}; please report it with the lines above and the command: "
        + " ".join(map(os.fspath, sys.argv)),
        BUG,
    )
