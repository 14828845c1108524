"""What a sweep has cost, by method: images, seconds and GPU-hours, as they were really paid."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from cu_ray.report.results import Results

ORIGINALS = "training the originals"


def costs(results: Results) -> pd.DataFrame:
    """A row for each method, and one for the originals: trials, failed, images, seconds, GPU-hours.

    `seconds` are of unlearning (or training) and evaluating, memos shared between trials paid once. `gpu_hours` are these
    seconds times the share of a GPU that the trial had; null where none had one. A trial that has failed counts as a trial; its
    time is not known, nor is that of what was imported. What is known of none is null.
    """
    import pandas as pd

    trials = results.trials
    trials = trials.assign(
        failed=trials["status"] != "ok",
        forward=trials["images_forward_spent"],
        backward=trials["images_backward_spent"],
        seconds=trials[["unlearn_seconds_spent", "eval_seconds"]].sum(axis=1, min_count=1),
    )
    originals = results.originals
    originals = originals.assign(
        method=ORIGINALS,
        failed=originals["status"] != "ok",
        forward=float("nan"),
        backward=float("nan"),
        seconds=originals[["train_seconds", "eval_seconds"]].sum(axis=1, min_count=1),
    )
    columns = ["method", "failed", "forward", "backward", "seconds", "gpu_share"]
    rows = pd.concat([originals[columns], trials[columns]]).assign(
        gpu_hours=lambda all_: all_["seconds"] * all_["gpu_share"] / 3600
    )
    grouped = rows.groupby("method", sort=False)
    summed = grouped[["forward", "backward", "seconds", "gpu_hours"]].sum(min_count=1)
    counts = grouped.agg(trials=("failed", "size"), failed=("failed", "sum"))
    return counts.join(summed).reset_index()
