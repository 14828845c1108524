"""Draw the metrics against the deletion fraction: `python scripts/curves_figure.py results/quickstart OUT.png`."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd

TITLES = {"acc_corr": "accuracy with the trigger", "acc_retain": "accuracy without it", "asr": "attack success rate"}
COLOURS = ["#000000", "#0072b2", "#56b4e9", "#e69f00", "#cc79a7", "#009e73"]  # Okabe and Ito: distinct for all eyes
MARKERS = "osD^vP"


def main(folder: Path, output: Path, rule: str = "oracle_validation") -> None:
    """One panel a metric, one line a method, means over seeds with their range."""
    mpl.use("Agg")
    curves = pd.read_parquet(folder / "tables" / "curves.parquet")
    curves = curves[curves["rule"] == rule]
    figure, panels = plt.subplots(1, len(TITLES), figsize=(10, 3.4), sharey=True, layout="constrained")
    for panel, (metric, title) in zip(panels, TITLES.items(), strict=True):
        for place, (method, line) in enumerate(curves[curves["metric"] == metric].groupby("method", sort=False)):
            line = line.sort_values("deletion_fraction")
            reach = line["std"].fillna(0)
            style = {"color": COLOURS[place % 6], "marker": MARKERS[place % 6]}
            panel.errorbar(
                line["deletion_fraction"], line["mean"], reach, label=method, capsize=2, markersize=4, linewidth=1.4, **style
            )
        panel.set(title=title, xlabel="share of the manipulated images found", ylim=(-0.03, 1.03))
        panel.grid(alpha=0.25)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    figure.savefig(output, dpi=150)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
