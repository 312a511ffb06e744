"""One page that tells what jobs did: self-contained, readable by day and by night, printable."""

from verglas.report.page import write_report

__all__ = ["write_report"]
