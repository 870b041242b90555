"""MNIST as plain arrays: the 5000 images that come as one CSV file."""

from __future__ import annotations

import numpy as np

from transfuse.data.folder import read_bytes
from transfuse.data.images import Labelled
from transfuse.errors import UserError

MNIST_5K = "mnist-5k"


def mnist_5k() -> Labelled:
    """5000 handwritten digits of 28 x 28 pixels scaled to 0 .. 1, 500 of each class, sorted by class.

    Raises:
        UserError: the set is not in the data folder, or not what it should be.
    """
    text = read_bytes(MNIST_5K, "mnist_5k.csv").decode("ascii")
    table = np.fromstring(text.replace("\n", ","), dtype=np.float32, sep=",")
    if table.size != 5000 * 785:
        raise UserError(f"{MNIST_5K}: {table.size} numbers", "5000 rows of 784 pixels and a digit")
    table = table.reshape(5000, 785)
    return Labelled(table[:, :784] / 255.0, table[:, 784].astype(np.int64), np.full(5000, MNIST_5K), 10)
