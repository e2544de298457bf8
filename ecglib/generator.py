"""Heart beats of people who do not exist: the Pulse2Pulse generator in the wheel `deepfake-ecg`.

Thambawita et al., Sci. Rep. 11, 21896, 2021; trained on 7,233 people with normal or nearly normal ECGs.
"""

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

SAMPLING_RATE = 500.0  # Hz
SHAPE = (8, 5000)  # records.LEADS_8, samples
_LENGTHS = {1: 2, 2: 10, 3: 50, 5: 250, 6: 500, 7: 2500}  # samples that each layer deconv_<number> is given
_MV = 6.0  # the output times 6,000 is in microvolts


def generate(noise: np.ndarray) -> np.ndarray:
    """Waveforms in mV from noise, uniform in (-1, 1); both float32 (n, 8, 5000).

    On one thread: the order of summation, so the bytes, could depend on their number.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            return _generator()(torch.from_numpy(noise)).numpy() * np.float32(_MV)
    finally:
        torch.set_num_threads(threads)


@cache
def _generator() -> Any:
    """The generator with the weights from its wheel, ready to run fast."""
    import deepfakeecg

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it names an initialiser that torch has renamed
        generator = deepfakeecg.Generator()
    generator.load_state_dict(_weights())
    generator.eval().requires_grad_(False)
    for number, length in _LENGTHS.items():
        name = f"deconv_{number}"
        setattr(generator, name, _folded(getattr(generator, name), length))
    return generator


def _weights() -> dict[str, Any]:
    import deepfakeecg
    import torch

    path = Path(deepfakeecg.__file__).parent / "checkpoints" / "g_stat.pt"
    return torch.load(path, map_location="cpu", weights_only=True)["stat_dict"]


def _folded(layer: Any, length: int) -> Any:
    """The same layer in fewer multiplications.

    The layer repeats each sample `factor` times and convolves with 25 taps, most of which then meet equal
    samples. Their weights can be added up once: one short convolution for each of the `factor` phases.
    Taps that never reach one of its `length` input samples are left out.
    """
    import torch

    factor, weight = int(layer.upsample), layer.conv1d.weight
    n_out, n_in, n_taps = weight.shape
    reach = n_taps // 2 // factor + (n_taps // 2 % factor > 0)
    short = torch.zeros(n_out, factor, n_in, 2 * reach + 1)
    for phase in range(factor):
        for tap in range(n_taps):
            short[:, phase, :, (phase + tap - n_taps // 2) // factor + reach] += weight[:, :, tap]
    used = min(reach, length - 1)
    short = short[..., reach - used : reach + used + 1].reshape(n_out * factor, n_in, -1)
    bias = layer.conv1d.bias.repeat_interleave(factor)

    class Folded(torch.nn.Module):
        def forward(self, *inputs: Any) -> Any:
            x = torch.nn.functional.conv1d(torch.cat(inputs, 1), short, bias, padding=used)
            return (
                x.reshape(len(x), n_out, factor, length)
                .transpose(2, 3)
                .reshape(len(x), n_out, length * factor)
            )

    return Folded()
