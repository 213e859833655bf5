"""Time and memory of many case reports in one process: `report`'s own work on each nodule, one after the other.

    OMP_NUM_THREADS=1 python benchmarks/report_memory.py --run RUN [--nodules 285]

Prints processor seconds a nodule and the resident memory after every fifty, which must stay flat, and what 854 nodules
on two cores would take.
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `reports` is the room, not the benchmark beside this one

from reports.stage import _gather, _work

COHORT, CORES = 854, 2


def resident_mib() -> float:
    """Memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--nodules", type=int, default=285)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        _, items = _gather(given.run, None, "cdam", None, None, Path(folder))
        opening = time.process_time() - began
        print(f"opening the run {opening:.1f} s, {resident_mib():.0f} MiB")
        began = time.process_time()
        for place, item in enumerate(items[: given.nodules], 1):
            result = _work(item)
            if "reason" in result:
                print(result)
            if place % 50 == 0 or place == 1:
                each = (time.process_time() - began) / place
                print(f"{place:4d} nodules: {each:.3f} s each, {resident_mib():.0f} MiB")
    whole = opening + COHORT * each / CORES
    print(f"{COHORT} nodules on {CORES} cores: about {whole / 60:.1f} min of processor time on each")


if __name__ == "__main__":
    main()
