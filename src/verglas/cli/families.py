"""Commands that have commands of their own: `verglas fiducials`, `verglas fiducials train`.

`getattr(verglas.cli.families, "name")` is the app of the step `name`, if there is one, and of the steps
`name ...`, which is how cyclopts loads it when it is called and not before.
"""

from typing import TYPE_CHECKING

from verglas.cli.registry import FAMILIES, STEPS

if TYPE_CHECKING:
    from cyclopts import App

_ESTIMATE = "estimate_"


def __getattr__(name: str) -> "App":
    if name.startswith("__"):
        raise AttributeError(name)
    return make_family(name.removeprefix(_ESTIMATE), estimate=name.startswith(_ESTIMATE))


def make_family(name: str, *, estimate: bool = False) -> "App":
    """Make the app of a step or a family and of the steps below it; with `estimate`, of what tells what they take.

    Raises
    ------
    AttributeError
        When there is no such step.
    """
    from cyclopts import App

    from verglas.cli.estimate_command import make_estimate_command
    from verglas.cli.step_command import load_step, make_command

    module = "verglas.cli.estimate_command" if estimate else "verglas.cli.step_command"
    step = next((step for step in STEPS if step.name == name), None)
    named = step or next((family for family in FAMILIES if family.name == name), None)
    if named is None:
        raise AttributeError(name)
    app = App(name=name, help=named.help, result_action="return_value")
    if step is not None:
        make = make_estimate_command if estimate else make_command
        app.default(make(load_step(step.step)))
    for step in STEPS:
        if step.name.startswith(f"{name} "):
            app.command(f"{module}:{step.step}", name=step.name.removeprefix(f"{name} "), help=step.help)
    return app
