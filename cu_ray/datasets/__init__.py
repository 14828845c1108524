"""Data sets: images with true labels, their augmentation and normalisation."""

from __future__ import annotations

from cu_ray.plugins import Plugin
from cu_ray.types import Dataset as LoadedDataset
from cu_ray.types import DatasetFacts


class Dataset(Plugin):
    """A source of images. Its fields are its settings."""

    def facts(self) -> DatasetFacts:
        """Sizes, image shape and class names, known without loading the images."""
        raise NotImplementedError

    def is_here(self) -> bool:
        """Whether `load` needs no download."""
        return True

    def load(self) -> LoadedDataset:
        """The images. Raises UserError where they are missing, saying which files go where."""
        raise NotImplementedError
