"""The sweep: the only folder that imports Ray or Optuna."""
