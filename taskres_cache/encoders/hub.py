"""Loading from the Hugging Face hub without waiting for a network that is not there."""

from collections.abc import Iterator
from contextlib import contextmanager

import huggingface_hub
from huggingface_hub import constants

SECONDS = 5.0  # to reach the hub; the clients retry each file several times, which took a minute


@contextmanager
def offline_if_unreachable() -> Iterator[bool]:
    """Use downloaded files only if the hub cannot be reached; yields True if so."""
    if constants.HF_HUB_OFFLINE or _is_reachable():
        yield bool(constants.HF_HUB_OFFLINE)
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield True
    finally:
        constants.HF_HUB_OFFLINE = False


def _is_reachable() -> bool:
    """Return True if the hub answers, by way of the proxies and mirror that the user has configured."""
    try:
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception:  # noqa: BLE001  of whichever HTTP client huggingface_hub uses
        return False
    return True
