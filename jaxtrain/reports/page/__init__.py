"""One self-contained HTML page of text, tables, plots and pictures: no network, no other file.

    page = Page("My runs", [Section("Loss", [Plot("loss", [Series("train", steps, losses)])])])
    page.write(Path("report.html"))

Plots are drawn by uPlot (MIT licence, in `uplot/`), everything else by the browser. Not here: what a report says.
"""

from jaxtrain.reports.page.charts import Bars, HeatMap
from jaxtrain.reports.page.document import Page
from jaxtrain.reports.page.items import (
    Details,
    Item,
    Link,
    Paragraph,
    Picture,
    Preformatted,
    Section,
    Table,
)
from jaxtrain.reports.page.plots import Mark, Plot, Series

__all__ = [
    "Bars",
    "Details",
    "HeatMap",
    "Item",
    "Link",
    "Mark",
    "Page",
    "Paragraph",
    "Picture",
    "Plot",
    "Preformatted",
    "Section",
    "Series",
    "Table",
]
