"""A run as one HTML file that opens from the disk.

- ``collect``: what the run's folder holds.
- ``results``: what it came to, and how sure that is.
- ``warnings``: what in its curves should worry a reader.
- ``drawings``, ``palette``: figures as SVG in the page's own colours, light and dark.
- ``page``, ``report.html``, ``report.css``, ``report.js``: all of it as HTML.
"""

from customized_grpo.reporting.collect import Run, collect
from customized_grpo.reporting.page import REPORT, write_report
from customized_grpo.reporting.warnings import Finding, find_warnings, notes_of

__all__ = ["REPORT", "Finding", "Run", "collect", "find_warnings", "notes_of", "write_report"]
