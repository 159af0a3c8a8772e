"""What can go wrong with data, in one line that a person can act on."""

from __future__ import annotations


class CorpusError(Exception):
    """The data are missing, damaged, too small or not to be had; the message says what to do."""
