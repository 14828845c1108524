"""The table of a sweep as a DataFrame: what the terminal shows, in numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cu_ray.places import Place
from cu_ray.report.terminal import best_rows, cells_of, method_of, metrics_of

if TYPE_CHECKING:
    import pandas as pd


def best_frame(tables: Place, rule: str | None = None) -> pd.DataFrame:
    """Means over seeds and standard deviations (`_std`) by method and fraction, and by setting where there are several."""
    import pandas as pd

    rows = best_rows(tables, rule)
    columns = {f"{name}{end}": f"{name}{part}" for name in metrics_of(rows) for end, part in (("", "_mean"), ("_std", "_std"))}
    columns |= {"seconds": "unlearn_seconds_mean", "n": "n"}
    frame = pd.DataFrame([{name: row[column] for name, column in columns.items()} for row in rows])
    cells = cells_of(rows)
    index = {"setting": cells} if len(set(cells)) > 1 else {}
    index |= {"method": list(map(method_of, rows)), "fraction": [row["deletion_fraction"] for row in rows]}
    return frame.set_index(pd.MultiIndex.from_arrays(list(index.values()), names=list(index)))
