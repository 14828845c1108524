"""Hold the quickstart's tables to what README says they show: `python scripts/check_quickstart.py results/quickstart`."""

from __future__ import annotations

import sys
from pathlib import Path

import duckdb
import pandas as pd


def main(folder: Path) -> None:
    """Read the tables with pandas and with DuckDB; raise AssertionError where a claim does not hold for a seed."""
    originals = pd.read_parquet(folder / "tables" / "originals.parquet")
    print(originals[["seed", "acc_corr", "acc_retain", "asr"]].round(3).to_string(index=False))
    assert (originals["asr"] >= 0.9).all(), "an original model has not learned the trigger"
    assert (originals["acc_retain"] >= 0.8).all(), "an original model is not accurate"

    best, trials = (str(folder / "tables" / f"{name}.parquet") for name in ("best", "trials"))
    chosen = duckdb.sql(f"""
        select b.method, b.deletion_fraction as fraction, t.seed,
               t.report_acc_corr as acc_corr, t.report_acc_retain as acc_retain, t.report_asr as asr
        from (select *, unnest(trial_keys) as trial_key from '{best}' where rule = 'oracle_validation') b
        join '{trials}' t using (trial_key)
        where b.method in ('exact_unlearning', 'ssd') order by all
    """).df()
    print(chosen.round(3).to_string(index=False))
    retrained, ssd = (chosen[chosen["method"] == method].set_index("fraction") for method in ("exact_unlearning", "ssd"))
    assert (retrained.loc[[0.1], "asr"] >= 0.8).all(), "retraining does not stay poisoned at fraction 0.1"
    assert (retrained.loc[[1.0], "acc_corr"] >= 0.7).all(), "retraining does not heal at fraction 1"
    assert (ssd.loc[[0.1], "asr"] <= 0.3).all(), "SSD leaves the trigger at fraction 0.1"
    assert (ssd.loc[[0.1], "acc_corr"] >= 0.65).all(), "SSD does not heal at fraction 0.1"
    print(f"All claims hold on {len(originals)} seeds.")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
