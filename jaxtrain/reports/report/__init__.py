"""The report of a run: one HTML page that shows all that its folder holds."""

from jaxtrain.reports.report.report import report

__all__ = ["report"]
