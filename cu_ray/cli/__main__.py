"""`python -m cu_ray.cli` is `cu-ray`."""

from cu_ray.cli import command

command()
