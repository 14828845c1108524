"""cu-ray: distributed sweeps for corrective machine unlearning."""

__version__ = "0.1.0"
