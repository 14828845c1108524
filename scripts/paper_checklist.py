"""Hold a sweep's tables to what the paper says.

    python scripts/paper_checklist.py results/fashion_paper results/fashion_noise docs/fashion-paper

Prints Markdown: which of the paper's claims hold by the thresholds below; the recovered share (acc_corr - no unlearning) /
(retraining at fraction 1 - no unlearning) of each method, in each cell and at each fraction; the controls; the noise floor.
Writes OUT.png and OUT.csv.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd

RULE = "oracle_validation"
STAYS, WORKS = 0.5, 0.8  # a recovered share below the first: the harm stays; above the second: the method works
MUCH = 0.2  # of accuracy: an original that is harmed by less has hardly learned the manipulation, and shares of that say nothing
CONVENTIONAL = ("catastrophic_forgetting", "scrub", "bad_teaching")
COLOURS = {
    "no_unlearning": "#000000",
    "retraining": "#0072b2",
    "exact_unlearning": "#56b4e9",
    "catastrophic_forgetting": "#e69f00",
    "scrub": "#cc79a7",
    "bad_teaching": "#8c564b",
    "ssd": "#009e73",
}


def chosen(folder: Path) -> pd.DataFrame:
    """A row for each cell, method, fraction and seed: the trial that the rule chose; retraining as a method of its own."""
    tables = {name: pd.read_parquet(folder / "tables" / f"{name}.parquet") for name in ("best", "trials")}
    trials = tables["trials"].assign(
        cell=lambda rows: rows["manipulation"] + " " + rows["manipulation_size"].astype(str),
        acc_corr=lambda rows: rows["report_acc_corr"],
        acc_retain=lambda rows: rows["report_acc_retain"],
    )
    best = tables["best"][tables["best"]["rule"] == RULE].explode("trial_keys")
    best = best[best["control"].isna()][["trial_keys", "deletion_fraction", "method"]]
    columns = ["trial_key", "cell", "seed", "acc_corr", "acc_retain"]
    picked = best.merge(trials[columns], left_on="trial_keys", right_on="trial_key")
    whole = (trials["method"] == "exact_unlearning") & trials["hp_k"].isna()
    retraining = trials[whole & ~trials["held_out"] & (trials["unlearning_seed"] == 0)].assign(method="retraining")
    parts = [picked, retraining[[*columns, "method", "deletion_fraction"]]]
    return pd.concat(parts)[["cell", "method", "deletion_fraction", "seed", "acc_corr", "acc_retain"]]


def recovered(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with the recovered share, by seed, and what is lost of acc_retain; null where retraining gains too little."""
    by = ["cell", "seed"]
    none = rows[rows["method"] == "no_unlearning"].groupby(by)[["acc_corr", "acc_retain"]].first()
    healed = rows[(rows["method"] == "retraining") & (rows["deletion_fraction"] == 1)].groupby(by)["acc_corr"].first()
    joined = rows.join(none.add_suffix("_none"), on=by).join(healed.rename("healed"), on=by)
    gain = joined["healed"] - joined["acc_corr_none"]
    share = (joined["acc_corr"] - joined["acc_corr_none"]) / gain.where(gain >= MUCH)
    lost = (joined["acc_retain_none"] - joined["acc_retain"]).where(gain >= MUCH)
    return joined.assign(recovered=share, lost=lost, harm=gain)


def claims(mean: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Each claim, what was seen over all cells and fractions it speaks of, and in how many of these it holds."""

    def shares(methods: tuple[str, ...], kind: str, fractions: list[float]) -> pd.Series:
        found = mean[mean["method"].isin(methods) & mean["cell"].str.startswith(kind)]
        return found[found["deletion_fraction"].isin(fractions)]["recovered"].dropna()

    def seen(values: pd.Series) -> str:
        return f"recovered {values.min():.2f} to {values.max():.2f}" if len(values) else "nothing"

    def holds(values: pd.Series) -> str:
        return f"{'yes' if values.all() else 'no'}, {values.sum()} of {len(values)}" if len(values) else "-"

    fractions = sorted(mean["deletion_fraction"].dropna().unique())
    low, middle = fractions[:1], fractions[1:-1]
    harm = mean[mean["method"] == "no_unlearning"].groupby("cell")["harm"].first().dropna()
    retrained, middling = shares(("retraining",), "", low), shares(("retraining",), "", middle)
    others, all_found = shares(CONVENTIONAL, "", low + middle), shares(CONVENTIONAL, "", [1.0])
    ssd_low, ssd_confused = shares(("ssd",), "backdoor", low), shares(("ssd",), "interclass", low + middle)
    lost = mean[(mean["method"] == "ssd") & mean["cell"].str.startswith("backdoor")]["lost"]
    return [
        (
            "1. Without unlearning acc_corr is far below that of a model retrained without the manipulated set",
            f"by {harm.min():.2f} to {harm.max():.2f}",
            holds(harm > MUCH),
        ),
        (f"2a. Retraining stays poisoned at {low[0]:g}", seen(retrained), holds(retrained < STAYS)),
        ("2b. and at middle fractions", seen(middling), holds(middling < STAYS)),
        ("3. CF, SCRUB and bad teaching do not remove what the samples not found taught", seen(others), holds(others < STAYS)),
        (
            f"4. SSD heals backdoors already at {low[0]:g}",
            f"{seen(ssd_low)}; acc_retain lost {lost.min():.2f} to {lost.max():.2f}",
            holds(ssd_low > STAYS),
        ),
        ("5. SSD does not repair interclass confusion", seen(ssd_confused), holds(ssd_confused < STAYS)),
        ("6. With all found, CF, SCRUB and bad teaching work", seen(all_found), holds(all_found > WORKS)),
    ]


def controls(folder: Path) -> pd.DataFrame:
    """Mean scores on the report half of originals as they are: manipulated, with the trigger alone, never manipulated."""
    trials = pd.read_parquet(folder / "tables" / "trials.parquet")
    trials = trials[trials["method"] == "no_unlearning"].assign(control=lambda rows: rows["control"].fillna("manipulated"))
    scores = ["report_acc_corr", "report_acc_retain", "report_asr", "report_confusion_rate"]
    return trials.groupby(["manipulation", "manipulation_size", "control"])[scores].mean().reset_index()


def noise(folder: Path) -> pd.DataFrame:
    """Standard deviation of acc_corr and acc_retain over the unlearning seeds of one trial."""
    trials = pd.read_parquet(folder / "tables" / "trials.parquet")
    repeated = trials[trials["unlearning_seed"] > 0].groupby(["manipulation", "method", "hyperparameters"])["trial_key"].count()
    trials = trials.set_index(["manipulation", "method", "hyperparameters"]).loc[repeated.index]
    spread = trials.groupby(["manipulation", "method"])[["report_acc_corr", "report_acc_retain"]]
    return spread.agg(["std", "count"]).reset_index()


def printed(table: pd.DataFrame, header: list[str]) -> None:
    """The table as Markdown."""
    print(f"\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in table.itertuples(index=False):
        cells = ["-" if pd.isna(cell) else f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row]
        print(f"| {' | '.join(cells)} |")


def draw(mean: pd.DataFrame, output: Path) -> None:
    """One panel a cell and metric, one line a method."""
    mpl.use("Agg")
    cells = list(dict.fromkeys(mean["cell"]))
    figure, panels = plt.subplots(2, len(cells), figsize=(2.7 * len(cells), 5), sharex=True, sharey=True, layout="constrained")
    for column, cell in enumerate(cells):
        for panel, metric in zip(panels[:, column], ("acc_corr", "acc_retain"), strict=True):
            for method, colour in COLOURS.items():
                line = mean[(mean["cell"] == cell) & (mean["method"] == method)].sort_values("deletion_fraction")
                panel.plot(line["deletion_fraction"], line[metric], "o-", color=colour, label=method, markersize=3, linewidth=1.3)
            panel.grid(alpha=0.25)
        panels[0, column].set_title(cell.replace("_", " "), fontsize=10)
        panels[1, column].set_xlabel("deletion fraction")
    panels[0, 0].set_ylabel("acc_corr")
    panels[1, 0].set_ylabel("acc_retain")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(output, dpi=130)


def main(folder: Path, noise_folder: Path, output: Path) -> None:
    """Print the tables; write the figure and the numbers."""
    rows = recovered(chosen(folder))
    rows["place"] = rows["method"].map(list(COLOURS).index)
    rows = rows.assign(size=rows["cell"].str.split().str[1].astype(int), kind=rows["cell"].str.split().str[0])
    rows = rows.sort_values(["kind", "size", "place", "deletion_fraction", "seed"])
    by = ["cell", "method", "deletion_fraction"]
    scores = ["acc_corr", "acc_retain", "recovered", "lost", "harm"]
    mean = rows.groupby(by, sort=False)[scores].mean().reset_index()
    spread = rows.groupby(by, sort=False)[scores[:3]].std().add_suffix("_std").reset_index()
    counts = rows.groupby(by, sort=False).agg(n=("seed", "nunique"), n_recovered=("recovered", "count")).reset_index()
    mean.drop(columns="harm").merge(spread, on=by).merge(counts, on=by).round(4).to_csv(output.with_suffix(".csv"), index=False)
    draw(mean, output.with_suffix(".png"))
    fractions = sorted(mean["deletion_fraction"].dropna().unique())
    print("| claim | seen | holds |\n|---|---|---|")
    for line in claims(mean):
        print(f"| {' | '.join(line)} |")
    print("\n| cell | method | " + " | ".join(f"{fraction:g}" for fraction in fractions) + " | acc_retain lost |")
    print("|---|---|" + "---|" * (len(fractions) + 1))
    for (cell, method), line in mean.groupby(["cell", "method"], sort=False):
        if method != "no_unlearning" and line["recovered"].notna().any():
            by_fraction = line.set_index("deletion_fraction")["recovered"]
            shares = " | ".join(f"{by_fraction.get(fraction, float('nan')):.2f}" for fraction in fractions)
            print(f"| {cell} | {method} | {shares} | {line['lost'].min():.3f} to {line['lost'].max():.3f} |")

    printed(controls(folder), ["manipulation", "size", "original", "acc_corr", "acc_retain", "asr", "confusion_rate"])
    floor = noise(noise_folder)
    floor.columns = ["manipulation", "method", "corr", "n", "retain", "n2"]
    printed(floor.drop(columns="n2"), ["manipulation", "method", "acc_corr", "n", "acc_retain"])


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
