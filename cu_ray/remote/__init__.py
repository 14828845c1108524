"""Sweeps on a cluster that Ray's own launcher started (`ray up`): sent there, followed from here, their results brought home."""
