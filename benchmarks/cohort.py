"""How long the cohort stage takes on all 1018 scans: `python benchmarks/cohort.py` (aim: at most 10 s)."""

import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from preprocessing.annotations import consensus, load_nodules
from preprocessing.cohort import cohort

# ru_maxrss counts bytes on macOS and KiB elsewhere.
PEAK_UNIT_MIB = 1 / (1 << 20) if sys.platform == "darwin" else 1 / (1 << 10)


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print how long the block took by the clock, and how long this process worked on it (other load left out)."""
    clock, work = time.perf_counter(), time.process_time()
    yield
    print(f"{what}: {time.perf_counter() - clock:.2f} s, of which {time.process_time() - work:.2f} s work")


def main() -> None:
    """Print seconds of the parts and of the whole stage, and the process's peak memory."""
    with timed("load_nodules"):
        nodules = load_nodules()
    with timed(f"consensus of {len(nodules)} nodules"):
        for nodule in nodules:
            consensus(nodule)
    with tempfile.TemporaryDirectory() as folder:
        costly = Path(folder) / "costly.yaml"
        costly.write_text("min_readers: 1\nclustering: mm\ncrowded: split\nrequire_crop_inside: true\n")
        for preset in ("all", "paper", str(costly)):
            out = Path(folder) / Path(preset).stem
            with timed(f"cohort --preset {Path(preset).name}"):
                cohort(out, preset)
            with timed(f"cohort --out {out.name} --describe"):
                cohort(out, describe=True)
    print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * PEAK_UNIT_MIB:.0f} MiB")


if __name__ == "__main__":
    main()
