"""What all tests share: no network, one thread, and the data folder if it lies beside the checkout."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).resolve().parent.parent
if "TRANSFUSE_DATA" not in os.environ and (ROOT.parent / "shared" / "data").is_dir():
    os.environ["TRANSFUSE_DATA"] = str(ROOT.parent / "shared" / "data")

# Property tests draw the same cases in every run, and are not timed: other work may share the machine.
settings.register_profile("transfuse", deadline=None, derandomize=True)
settings.load_profile("transfuse")
