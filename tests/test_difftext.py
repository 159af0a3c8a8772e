"""The diff that we make ourselves."""

from __future__ import annotations

from runner.difftext import unified_diff


def test_a_diff_is_made_from_two_texts() -> None:
    assert unified_diff("a\nb\n", "a\nc", "train.py") == (
        "--- a/train.py\n+++ b/train.py\n@@ -1,2 +1,2 @@\n a\n-b\n+c\n\\ No newline at end of file\n"
    )
