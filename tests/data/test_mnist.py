"""MNIST as arrays, from a file of the same form."""

from __future__ import annotations

import numpy as np
import pytest

from transfuse.data import mnist
from transfuse.errors import UserError


def test_rows_become_pixels_and_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    table = np.zeros((5000, 785), dtype=int)
    table[:, 784] = np.repeat(np.arange(10), 500)
    table[7, 3], table[4999, 783] = 255, 51
    text = "\n".join(",".join(map(str, row)) for row in table) + "\n"
    monkeypatch.setattr(mnist, "read_bytes", lambda set_id, name: text.encode())
    data = mnist.mnist_5k()
    assert data.features.shape == (5000, 784)
    assert data.features.dtype == np.float32
    assert (data.features[7, 3], data.features[4999, 783]) == (1.0, np.float32(0.2))
    assert data.features.sum() == pytest.approx(1.2)
    assert np.bincount(data.labels).tolist() == [500] * 10
    monkeypatch.setattr(mnist, "read_bytes", lambda set_id, name: b"1,2\n")
    with pytest.raises(UserError, match="2 numbers"):
        mnist.mnist_5k()
