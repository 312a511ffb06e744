"""The commands.

To add a step, export it as a `Step` from a module in `verglas.steps` and add it to `STEPS` in
`verglas.cli.registry`::

    StepCommand("stack", "verglas.steps.stack.STACK_STEP", TILT_SERIES, "Stack the views of tilt series.")

Flags come from the fields of its parameters: the first one, when it is required, is the positional argument,
every other a flag; descriptions are the help. `verglas estimate`, exit status, report and resume come with
it. A command that is no step is a function in `verglas.cli.commands` and a line in `COMMANDS`. Both are
imported only when they are called.
"""

from verglas.cli.app import main

__all__ = ["main"]
