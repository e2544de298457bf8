"""What a profile would cost here: floating-point operations of each step over what this machine can do."""

import time

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from ecglib.beit import MaskedImageModel
from ecglib.classifiers import untrained_classifier
from ecglib.cost import TRAINING_PASSES
from ecglib.datasets import CohortSettings, DataPaths
from ecglib.finetune import FinetuneSettings
from ecglib.grid import Cell, GridSettings
from ecglib.opening import open_data
from ecglib.patchbook import GRID, PATCH
from ecglib.precision import resolve_precision
from ecglib.pretrain import PretrainSettings
from ecglib.profiles import Profile
from ecglib.published import WeightsSettings, load
from ecglib.splits import assign
from ecglib.tokenizer import TokenizerSettings, make_networks

PTBXL_RECORDS = 21_799  # where no folder is given
TRAIN_SHARE, SCORED_SHARE = 0.8, 0.2
SECONDS_PER_IMAGE = 0.003  # reading, filtering and drawing one record on one core
# Share of the matrix-multiply peak that training reaches, as measured on two AVX512-BF16 cores: from .15
# (MobileNetV2) to .45 (the classifier of heartbeit_tiny), and in pretraining by the size of the network.
UTILISATION = 0.3
PRETRAINING_UTILISATION = {"heartbeit_nano": 0.35, "heartbeit_tiny": 0.6, "heartbeit_base": 0.75}


def estimate_steps(profile: Profile, data: DataPaths) -> pd.DataFrame:
    """One row a step: page, step, size, hours. Nothing is trained; the machine's peak is measured."""
    records, train, scored = _sizes(profile, data)
    size, peak = _size(profile), peak_flops(profile.settings(PretrainSettings).precision)
    rate = peak * UTILISATION
    rows = [
        (
            "01_cohorts",
            "read, judge and draw",
            f"{records:,} ECGs",
            records * SECONDS_PER_IMAGE / (torch.get_num_threads()),
        ),
        *(() if profile.settings(WeightsSettings).weights else _pretraining_rows(profile, records, peak)),
    ]
    for outcome in profile.outcomes:
        cells = profile.settings(GridSettings).cells(outcome)
        rows += _cell_rows(profile, outcome, [c for c in cells if c.kind == "finetuned"], train, scored, rate)
    models = {
        cell.model
        for cell in profile.settings(GridSettings).cells(profile.outcomes[0])
        if cell.kind == "head"
    }
    seconds = sum(records * _classifier_flops(model, size) / rate for model in models)
    rows.append(
        ("05_finetuning", "features for heads", f"{records:,} images x {len(models)} models", seconds)
    )
    table = pd.DataFrame.from_records(rows, columns=["page", "step", "size", "seconds"])
    return table.assign(hours=(table.pop("seconds") / 3600).round(3))


def _size(profile: Profile) -> str:
    """HeartBEiT's network: that of the published weights, where the profile names some."""
    weights = profile.settings(WeightsSettings).weights
    return load(weights).model.size if weights else profile.settings(PretrainSettings).size


def _pretraining_rows(profile: Profile, records: int, peak: float) -> list[tuple[str, str, str, float]]:
    tokens, pretraining = profile.settings(TokenizerSettings), profile.settings(PretrainSettings)
    rate, pretraining_rate = peak * UTILISATION, peak * PRETRAINING_UTILISATION[pretraining.size]
    return [
        (
            "03_tokens",
            "train the tokenizer",
            *_training(tokens.steps * tokens.batch_size, _tokenizer_flops(tokens), rate),
        ),
        ("03_tokens", "encode", f"{records:,} images", records * _tokenizer_flops(tokens) / 2 / rate),
        (
            "04_pretraining",
            f"masked image modelling, {pretraining.size}",
            *_training(
                pretraining.steps * pretraining.batch_size,
                _encoder_flops(pretraining, tokens),
                pretraining_rate,
            ),
        ),
    ]


def _sizes(profile: Profile, data: DataPaths) -> tuple[int, int, int]:
    """Records in all, for training, and scored."""
    if profile.settings(CohortSettings).source != "embedded" and data.folder is None:
        return PTBXL_RECORDS, int(PTBXL_RECORDS * TRAIN_SHARE), int(PTBXL_RECORDS * SCORED_SHARE)
    part = assign(open_data(profile, data)[1].manifest, "official")
    train = int((part == "train").sum())
    return len(part), train, len(part) - train


def _training(images: int, flops: float, rate: float) -> tuple[str, float]:
    return f"{images:,} images seen", images * flops * TRAINING_PASSES / rate


def _cell_rows(
    profile: Profile, outcome: str, cells: list[Cell], train: int, scored: int, rate: float
) -> list[tuple[str, str, str, float]]:
    settings, size = profile.settings(FinetuneSettings), _size(profile)
    rows = []
    for model in dict.fromkeys(cell.model for cell in cells):
        sizes = [max(2, round(cell.fraction * train)) for cell in cells if cell.model == model]
        seen = sum(settings.total_steps(n) * min(settings.batch_size, n) for n in sizes)
        predicted = len(sizes) * settings.score_points * scored
        seconds = (seen * TRAINING_PASSES + predicted) * _classifier_flops(model, size) / rate
        rows.append(
            ("05_finetuning", f"{outcome}: {model}, {len(sizes)} cells", f"{seen:,} images seen", seconds)
        )
    return rows


def _classifier_flops(model: str, size: str) -> float:
    classifier = untrained_classifier(model, size)
    return _flops(classifier, torch.zeros(1, 224, 224, dtype=torch.uint8))


def _encoder_flops(settings: PretrainSettings, tokens: TokenizerSettings) -> float:
    model = MaskedImageModel(settings.size, tokens.vocab_size)
    mask = torch.zeros(1, 196, dtype=torch.bool)
    mask[:, : settings.mask_target] = True
    return _flops(model, torch.zeros(1, 1, 224, 224), mask)


def _tokenizer_flops(settings: TokenizerSettings) -> float:
    if settings.kind == "kmeans":  # a product of each patch with each code; it looks back for nothing
        return 2 * GRID**2 * PATCH**2 * settings.vocab_size
    encoder, decoder = make_networks(settings)
    codes = torch.zeros(1, settings.vocab_size, 14, 14)
    return _flops(encoder, torch.zeros(1, 3, 112, 112)) + _flops(decoder, codes)


def _flops(model: torch.nn.Module, *inputs: torch.Tensor) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(*inputs)
    return counter.get_total_flops()


def peak_flops(precision: str) -> float:
    """Operations a second of a large matrix product in the precision that training takes."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = torch.bfloat16 if resolve_precision(precision).startswith("bf16") else torch.float32
    a = torch.ones(2048, 2048, dtype=kind, device=device)
    products, started = 0, time.perf_counter()
    while time.perf_counter() - started < 1:
        (a @ a)[0, 0].item()
        products += 1
    return products * 2 * 2048**3 / (time.perf_counter() - started)
