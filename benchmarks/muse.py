"""Reading a MUSE export against ElementTree and base64, which check nothing: same voltages, how much time.

Prints milliseconds of processor time (median of 200) and a ratio. Run: python benchmarks/muse.py EXPORT.xml
"""

import base64
import sys
import time
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from ecglib.muse import read_muse

N_READS = 200


def by_etree(path: Path) -> np.ndarray:
    """Rhythm waveform (leads, samples) in mV as float32, by the whole tree of the document."""
    waveforms = ElementTree.parse(path).getroot().findall("Waveform")
    rhythm = next(w for w in waveforms if w.findtext("WaveformType") == "Rhythm")
    rows = []
    for lead in rhythm.findall("LeadData"):
        counts = np.frombuffer(base64.b64decode(lead.findtext("WaveFormData", "")), "<i2")
        rows.append(counts * (float(lead.findtext("LeadAmplitudeUnitsPerBit", "")) * 1e-3))
    return np.array(rows, np.float32)


def milliseconds(read: Callable[[Path], object], path: Path) -> float:
    """Median processor time of one call."""
    times = []
    for _ in range(N_READS):
        start = time.process_time()
        read(path)
        times.append(time.process_time() - start)
    return 1e3 * float(np.median(times))


def main() -> None:
    """Time both, check that they agree, print the ratio."""
    path = Path(sys.argv[1])
    difference = np.abs(read_muse(path).record.waveform - by_etree(path)).max()
    ours, theirs = milliseconds(read_muse, path), milliseconds(by_etree, path)
    print(f"ecglib {ours:.2f} ms, ElementTree without checks {theirs:.2f} ms an export")
    print(f"largest difference {difference:.1e} mV")
    print(f"ratio {theirs / ours:.2f}")


if __name__ == "__main__":
    main()
