"""Reads one file in a process of its own, whose memory is bounded, and tells what it took.

python measured_reader.py model|picture|transparency|zip FILE LIMIT_MB     (-> one line of JSON)
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from lora_train.core.errors import TrainToolsError
from lora_train.core.inspection import describe, inspect_file
from lora_train.data.images import open_alpha, open_picture
from lora_train.data.uploads import keep_uploads


def read(kind: str, path: Path) -> str:
    """What was said of it."""
    try:
        if kind == "model":
            describe(inspect_file(path))
        elif kind == "picture":
            open_picture(path)
        elif kind == "transparency":
            open_alpha(path)
        else:
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                return " ".join(keep_uploads([(path.name, path)], Path(folder) / "o", Path(folder) / "t"))
    except TrainToolsError as error:
        return error.message
    return ""


def main(kind: str, path: Path, limit_mb: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (limit_mb * 2**20, limit_mb * 2**20))
    before_mb, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, time.process_time()
    said = read(kind, path)
    taken_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before_mb
    print(json.dumps({"said": said, "mb": round(taken_mb), "s": round(time.process_time() - begun, 2)}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
