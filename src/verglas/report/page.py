"""Write the page."""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from verglas import __version__
from verglas.errors import UserError
from verglas.exec import format_duration
from verglas.files import write_text
from verglas.report.collect import collect_job
from verglas.report.pictures import embed_pictures
from verglas.report.wording import describe_moment, describe_value, format_value, heading_of

_TEMPLATES = Path(__file__).parent / "templates"


def write_report(folders: Sequence[Path | str], out: Path | str | None = None) -> Path:
    """Write one page on one or several job folders.

    Parameters
    ----------
    folders
        Job folders, in the order of the work.
    out
        The HTML file; `report.html` in the first folder when none.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    UserError
        When a folder holds no job.
    """
    if not folders:
        raise UserError("a report needs at least one job folder; got none")
    out = Path(out) if out else Path(folders[0]) / "report.html"
    jobs = [collect_job(Path(folder)) for folder in folders]
    pictures = embed_pictures([figure.path for job in jobs for figure in job.figures], out.parent)
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "duration": format_duration,
        "moment": describe_moment,
        "heading": heading_of,
        "told": describe_value,
        "value": format_value,
    }
    page = environment.get_template("report.html.j2").render(
        jobs=jobs,
        pictures=pictures,
        style=(_TEMPLATES / "style.css").read_text(encoding="utf-8"),
        title=" → ".join(job.step for job in jobs),
        version=__version__,
    )
    write_text(out, page)
    return out
