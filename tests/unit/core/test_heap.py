"""Python's collector leaves alone what was there before, and frees what came later. In processes of their own."""

from __future__ import annotations

import subprocess
import sys

_SCRIPT = """
import gc, weakref
import lora_train.core.jobs
from lora_train.core.heap import collect_less_garbage

class Own:
    pass

before = len(gc.get_objects())
collect_less_garbage()
made = Own()
made.itself = made
seen = weakref.ref(made)
looked_through = len(gc.get_objects())
del made
gc.collect()
print(before, looked_through, seen() is None, gc.get_threshold()[0])
"""


def test_what_is_there_is_looked_through_no_more() -> None:
    ended = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=True)
    before, looked_through, is_freed, threshold = ended.stdout.split()
    assert int(looked_through) < int(before) / 100
    assert is_freed == "True"
    assert int(threshold) > 2000, "of that many pictures"
