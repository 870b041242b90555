"""Where costly pieces that can be made again are kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$TRANSFUSE_CACHE``, or the user's cache folder."""
    if folder := os.environ.get("TRANSFUSE_CACHE"):
        return Path(folder)
    import platformdirs

    return Path(platformdirs.user_cache_dir("transfuse"))
