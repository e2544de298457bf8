"""Drawing an ECG at 224 x 224 against matplotlib at 1000 x 1000 and a PIL resize, in the same run.

Prints processor times, so that waiting for other processes does not count, and two ratios: against matplotlib
as it is mostly used, a new figure for each ECG, and at its best, one figure whose lines are moved. Then the
whole way from a record's files to its image, and judging a record's faults. Without --data the ECGs are made
up: Gaussian waves and noise.
Run: python benchmarks/drawing.py [--data PTBXL_DIR] [--rate 100|500] [--records N]
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ecglib.errors import EcglibError
from ecglib.filtering import preprocess
from ecglib.image import ImageSettings, draw, lead_time_to_pixel, paper_png
from ecglib.quality import QualitySettings, faults
from ecglib.records import LEADS_8, LEADS_12, derive_limb_leads, read_wfdb

PAPER = ImageSettings(size=1000)
SMALL = (224, 224)


def write_made_up_records(folder: Path, n_records: int, rate: int) -> list[Path]:
    """Ten seconds of twelve leads in PTB-XL's format: Gaussian P, QRS and T waves, 60-100 beats a minute."""
    rng = np.random.default_rng(0)
    seconds = np.arange(10 * rate) / rate
    for record in range(n_records):
        period = rng.uniform(0.6, 1.0)
        phase = seconds % period / period
        waves = [
            np.exp(-(((phase - at) / width) ** 2)) for at, width in ((0.2, 0.03), (0.4, 0.02), (0.7, 0.06))
        ]
        heights = rng.normal([0.1, 0.8, 0.3], [0.03, 0.6, 0.15], (8, 3))
        eight = heights @ waves + rng.normal(0, 0.02, (8, len(seconds)))
        leads = dict(zip(LEADS_8, eight, strict=True)) | derive_limb_leads(eight[0], eight[1])
        digital = np.rint(1000 * np.stack([leads[name] for name in LEADS_12])).astype(np.int16)
        write_format_16(folder / f"{record:05d}", digital, rate)
    return sorted(folder.glob("*.hea"))


def write_format_16(path: Path, digital: np.ndarray, rate: int) -> None:
    """Write int16 microvolts (12, samples) as a header and a signal file."""
    sums = digital.sum(axis=1, dtype=np.int64) % 65536
    lines = [f"{path.name} 12 {rate} {digital.shape[1]}"]
    for name, samples, total in zip(LEADS_12, digital, sums, strict=True):
        lines.append(f"{path.name}.dat 16 1000(0)/mV 16 0 {samples[0]} {total} 0 {name}")
    path.with_suffix(".hea").write_text("\n".join(lines) + "\n")
    path.with_suffix(".dat").write_bytes(digital.T.astype("<i2").tobytes())


def prepare(header: Path) -> np.ndarray:
    """From a record's files to the waveform that is drawn."""
    record = read_wfdb(header)
    return preprocess(record.select(LEADS_8), record.sampling_rate)


class Matplotlib:
    """The paper's picture by matplotlib's Agg canvas, made small by PIL."""

    def __init__(self, n_samples: int) -> None:
        self.times = (np.arange(n_samples) + 0.5) / n_samples
        self.canvas, self.lines = self.new_figure()

    def new_figure(self) -> tuple[FigureCanvasAgg, list]:
        figure = Figure(figsize=(10, 10), dpi=100, facecolor="white")
        axes = figure.add_axes((0, 0, 1, 1), xlim=(-0.5, 999.5), ylim=(999.5, -0.5))
        axes.set_axis_off()
        width_points = PAPER.line_width * 1000 / 224 * 72 / 100
        columns, rows = self.positions(np.zeros((8, len(self.times))))
        lines = [axes.plot(columns, row, color="black", linewidth=width_points)[0] for row in rows]
        return FigureCanvasAgg(figure), lines

    def positions(self, waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows, columns = lead_time_to_pixel(np.arange(8)[:, None], self.times, PAPER, waveform)
        return columns, rows

    def draw_anew(self, waveform: np.ndarray) -> np.ndarray:
        return self.render(*self.new_figure(), waveform)

    def draw_again(self, waveform: np.ndarray) -> np.ndarray:
        return self.render(self.canvas, self.lines, waveform)

    def render(self, canvas: FigureCanvasAgg, lines: list, waveform: np.ndarray) -> np.ndarray:
        for line, row in zip(lines, self.positions(waveform)[1], strict=True):
            line.set_ydata(row)
        canvas.draw()
        big = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        return np.asarray(big.resize(SMALL))


def processor_ms(function: Callable, item: object) -> float:
    start = time.process_time()
    function(item)
    return 1000 * (time.process_time() - start)


def report(headers: list[Path], source: str) -> None:
    """Time all ways in turns on the same ECGs and print the ratios."""
    waveforms = [prepare(header) for header in headers]
    peer = Matplotlib(waveforms[0].shape[1])
    ways: list[tuple[Callable, Sequence]] = [
        (draw, waveforms),
        (paper_png, waveforms),
        (peer.draw_anew, waveforms),
        (peer.draw_again, waveforms),
        (lambda header: draw(prepare(header)), headers),
        (lambda record: faults(record, QualitySettings()), [read_wfdb(header) for header in headers]),
    ]
    times = [[processor_ms(way, items[ecg]) for way, items in ways] for ecg in range(len(headers))]
    ours, paper, anew, again, whole, judging = np.median(times, axis=0)
    alike = np.corrcoef(draw(waveforms[0]).ravel(), peer.draw_anew(waveforms[0])[:, :, 0].ravel())[0, 1]
    print(f"{len(headers)} {source}; milliseconds of one core, median")
    print(f"ecglib, straight to 224 x 224                        {ours:7.2f}")
    print(f"ecglib, the paper's 1000 x 1000 x 3                  {paper:7.2f}")
    print(f"matplotlib 1000 x 1000 + PIL resize, a figure each   {anew:7.2f}   ratio {anew / ours:.0f}")
    print(f"matplotlib 1000 x 1000 + PIL resize, one figure      {again:7.2f}   ratio {again / ours:.0f}")
    print(f"ecglib, from files to 224 x 224 image                {whole:7.2f}   (limit 4)")
    print(f"ecglib, judging a record's faults                    {judging:7.2f}   (limit 0.3)")
    print(f"correlation of both small pictures of the first ECG  {alike:7.3f}")


def main() -> None:
    """Read the arguments and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="PTB-XL folder; without it the ECGs are made up")
    parser.add_argument("--rate", type=int, choices=(100, 500), default=100, help="Hz; default 100")
    parser.add_argument("--records", type=int, default=50, help="how many ECGs; default 50")
    arguments = parser.parse_args()
    if arguments.records < 1:
        parser.error("--records must be at least 1")
    if arguments.data is None:
        with tempfile.TemporaryDirectory() as folder:
            headers = write_made_up_records(Path(folder), arguments.records, arguments.rate)
            report(headers, f"made-up ECGs at {arguments.rate} Hz")
        return
    found = sorted((arguments.data / f"records{arguments.rate}").rglob("*.hea"))[: arguments.records]
    if not found:
        parser.error(f"{arguments.data / f'records{arguments.rate}'}: no .hea file; give a PTB-XL folder")
    try:
        report(found, f"records at {arguments.rate} Hz of {arguments.data.name}")
    except EcglibError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
