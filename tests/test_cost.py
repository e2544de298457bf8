"""The cost of pretraining: hand-worked operations, hours that follow from them, and what was measured."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ecglib import cost, cost_tables
from ecglib.beit import make_encoder
from ecglib.cost import CostSettings, paper_utilisation, useful_flops
from ecglib.cost_tables import measured_sentence, measured_speed
from ecglib.errors import EcglibError


@pytest.mark.parametrize("size", ["heartbeit_nano", "heartbeit_tiny"])
def test_operations_are_those_that_torch_counts(size: str) -> None:
    encoder = make_encoder(size, shared_bias=True)
    head = torch.nn.Linear(encoder.embed_dim, 512)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        head(encoder.forward_features(torch.zeros(1, 3, 224, 224))[0, :78])
    assert useful_flops(size, 512, 78) == pytest.approx(3 * counter.get_total_flops(), rel=1e-9)


def test_the_paper_used_a_few_percent_of_its_machines() -> None:
    # 8.5 million images in 6 hours are 394 a second; 108.3 GFLOP each; four times 312 TFLOP/s.
    assert paper_utilisation() == pytest.approx(393.5 * 108.3e9 / (4 * 312e12), rel=1e-3)
    settings = CostSettings(utilisation=paper_utilisation(), parallel=1)
    table = cost.cost(settings).set_index(["gpu", "n_gpus"])
    assert table.days["A100", 4] == pytest.approx(75)


def test_hours_fall_with_machines_and_share_and_rise_with_the_work() -> None:
    base = cost.cost(CostSettings(parallel=0.9)).set_index(["gpu", "n_gpus"])
    assert base.hours["A100", 1] / base.hours["A100", 4] == pytest.approx(4 * 0.9)
    assert base.gpu_hours["A100", 8] == pytest.approx(8 * base.hours["A100", 8])
    twice = cost.cost(CostSettings(parallel=0.9, epochs=600, utilisation=0.8)).set_index(["gpu", "n_gpus"])
    assert twice.hours.to_numpy() == pytest.approx(base.hours.to_numpy())
    curve = cost.over_utilisation(CostSettings())
    assert (curve.days * curve.utilisation).std() < 1e-9 * curve.days.max()


def test_sentences_and_table_say_the_numbers() -> None:
    settings = CostSettings()
    assert "394 images a second and 75 days" in cost_tables.work_sentence(settings)
    assert "426 GB" in cost_tables.storage_sentence(settings)  # 8.5 million x 50,176 bytes
    table = cost_tables.cost_table(settings)
    assert list(table.index) == list(cost.PEAKS)
    assert table["1 GPU (days)"].iloc[0] == round(cost.cost(settings).days[0], 1)


@pytest.mark.parametrize("change", ["size='huge'", "n_ecgs=0", "epochs=0", "utilisation=0.0", "parallel=1.2"])
def test_impossible_setting_is_named(change: str) -> None:
    with pytest.raises(EcglibError, match=change.split("=")[0]):
        CostSettings(**eval(f"dict({change})"))


def test_measured_speed_is_what_the_benchmark_wrote(tmp_path: Path) -> None:
    rows = [
        {"size": "heartbeit_tiny", "contender": name, "images_per_second": speed, "ratio": 30 / speed}
        for name, speed in (("ecglib", 30.0), ("peer", 20.0))
    ]
    rows = [{**row, "utilisation": 0.6, "peak_gflops": 1890.4} for row in rows]
    made = {"machine": {"processor": "Some CPU"}, "threads": 2, "precision": "bf16-mixed", "batch_size": 32}
    made |= {"commit": "0123456789abcdef", "rows": rows}
    (tmp_path / "some.json").write_text(json.dumps(made))
    (tmp_path / "other.json").write_text(json.dumps({**made, "machine": {"processor": "Other CPU"}}))
    table = measured_speed(tmp_path)
    assert table.index.get_level_values("processor").tolist() == ["Other CPU"] * 2 + ["Some CPU"] * 2
    assert table["images a second"].tolist() == ["30.00", "20.00"] * 2
    assert table["ecglib's lead"].tolist() == ["", "1.50 times"] * 2
    sentence = measured_sentence(tmp_path)
    assert all(word in sentence for word in ("Some CPU (2 threads", "0123456789ab", "peak 1,890 GFLOP/s"))


@pytest.mark.parametrize("content", [None, "{", "[]", '{"rows": []}'])
def test_damaged_measurements_are_one_line_with_the_command(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "speed.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(EcglibError, match=r"run python benchmarks/pretrain.py --out") as caught:
        measured_speed(tmp_path)
    assert "\n" not in str(caught.value)
