"""How much of a copy a picture is: its distance to the nearest training picture, measured by those among themselves.

Carlini et al. 2023 ("Extracting Training Data from Diffusion Models", section 4) find copies by such a relative
distance: what is near depends on how alike the pictures of a set are anyway. Distances are taken between small soft
versions of the pictures without their mean colour and contrast, so that size, a little noise, JPEG and a paler copy
don't count, and to the mirror image too.

Legend: N and M pictures, S the side of the small versions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE_PX = 8
_LEAST_SPREAD = 0.05
"""Of values from 0 to 1; added to a picture's own spread, so that a plain one's noise doesn't become its content."""
_LEAST_DISTANCE = 0.05
"""In units of the spread; below it pictures are the same but for noise."""

Small = NDArray[np.float32]


def small(pictures: Sequence[Image.Image]) -> Small:
    """(N, S, S, 3): pictures of any size as soft squares, each channel's mean taken off, in units of the spread."""
    size = (SIDE_PX, SIDE_PX)
    rows = [np.asarray(picture.convert("RGB").resize(size, Image.Resampling.BOX)) for picture in pictures]
    values = np.stack(rows).astype(np.float32) / 255
    values -= values.mean((1, 2), keepdims=True)
    return values / (values.std((1, 2, 3), keepdims=True) + _LEAST_SPREAD)


def distances(pictures: Small, others: Small) -> NDArray[np.float32]:
    """(N, M): root mean square difference, to the picture or to its mirror image, whichever is nearer."""
    flat = pictures.reshape(len(pictures), 1, -1)
    sides = [others, others[:, :, ::-1]]
    both = [np.sqrt(((flat - side.reshape(1, len(others), -1)) ** 2).mean(-1)) for side in sides]
    return np.minimum(*both)


class CopyFinder:
    """Finds the training picture that is nearest to a drawn one, and whether it is nearer than a fresh one would be."""

    def __init__(self, training: Sequence[Image.Image], ordinary: Sequence[Image.Image]) -> None:
        """`ordinary` are what the base model draws of the same prompts: the measure where there is but one picture."""
        self._training = small(training)
        if len(training) > 1:
            apart = distances(self._training, self._training)
            np.fill_diagonal(apart, np.inf)
        else:
            apart = distances(small(ordinary), self._training)
        self.usual = max(_LEAST_DISTANCE, float(np.median(apart.min(1))))
        """How far a training picture is from its nearest neighbour, usually."""

    def find(self, pictures: Sequence[Image.Image]) -> tuple[list[int], list[float]]:
        """For each picture the number of the nearest training picture, and its score.

        The score is 1 - distance / usual distance, from 0 to 1: 1 is a plain copy, 0 as far away as training pictures
        are from each other, or farther.
        """
        apart = distances(small(pictures), self._training)
        scores = np.clip(1 - apart.min(1) / self.usual, 0, 1)
        return apart.argmin(1).tolist(), [float(score) for score in scores]
