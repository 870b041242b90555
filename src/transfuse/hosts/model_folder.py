"""Models that somebody else made: weights as safetensors, no code, and one line for whatever is wrong with them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transfuse.errors import UserError
from transfuse.nets.encoder import quiet_loading

# For `from_pretrained`: pickles can run code as they are read, and code of a folder's own is never run.
SAFELY: dict[str, Any] = {"trust_remote_code": False, "use_safetensors": True}


@contextlib.contextmanager
def loading(name: str | Path) -> Iterator[None]:
    """Around a host's loading of a model by folder or hub name.

    Inside stand calls of the host only. What they raise about a folder is of any kind, from a validator's own errors
    to a recursion without end, so all of it becomes one line.

    Raises:
        UserError: there is no such model, it is damaged, it is a pickle, or it needs code of its own.
    """
    _refuse_pickles(Path(name))
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # hosts log tables of weights before they raise
    try:
        with quiet_loading():
            yield
    except UserError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines()
        reason = lines[0][:160] if lines else type(error).__name__
        raise UserError(
            f"no model could be loaded from {str(name)!r} ({reason})", "a model folder or a hub name"
        ) from None
    finally:
        logging.disable(disabled)


def _refuse_pickles(folder: Path) -> None:
    """Weights that are there as pickle only, also those of a part in a folder below."""
    for pickle in sorted([*folder.glob("*.bin"), *folder.glob("*/*.bin")]):
        if pickle.name.startswith(("pytorch_model", "adapter_model")) and not any(pickle.parent.glob("*.safetensors")):
            raise UserError(
                f"{str(pickle)!r} holds weights as a pickle, which is never read",
                "safetensors",
                "load it where you trust it and save it again with save_pretrained",
            )
