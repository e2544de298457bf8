"""The public files of pretrained weights, with the card that says what they are and how they were made.

The card's form follows Mitchell et al., "Model Cards for Model Reporting" (arXiv 1810.03993).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ecglib import figures
from ecglib.checkpoints import COURSE, ENCODER, read_checkpoint
from ecglib.errors import EcglibError
from ecglib.pretrain import HISTORY
from ecglib.provenance import atomic_path, file_sha256
from ecglib.published import publish, training_hours
from ecglib.tokenizer import FILE_NAME, load_tokenizer

LARGEST_MB = 25  # of a public folder, which lies in the repository
_FILES = (ENCODER, FILE_NAME, COURSE)
_BEGUN_AGAIN = """

The run is of two parts. At step {step:,} its checkpoint was lost: the network kept until then (its SHA-256
`{weights_sha256}`, commit `{commit}`, images `{data_hash}`) went on with a fresh optimiser, warmed up again,
on images drawn anew. Steps, order and masks count on as in an unbroken run."""


def publish_run(name: str, runs: Path, target: Path) -> str:
    """Write the weights `name` that `recipes.make_weights` left in `runs` into the folder `target`.

    Where pretraining has not come to its end the network of its last checkpoint is taken, and the card says
    so. Returns one line on what was written. Raises EcglibError where there is no network yet, or the files
    are too large for a repository.
    """
    run = runs / name
    encoder = next((run / file for file in (ENCODER, "latest.safetensors") if (run / file).exists()), None)
    if encoder is None:
        raise EcglibError(f"{run} holds no network yet: run `ecglib pretrain {name}` first")
    metadata = read_checkpoint(encoder).metadata
    words = _tokenizer_of(metadata, runs)
    publish(encoder, words, target)
    history = _history(run)
    with atomic_path(target / COURSE) as path:
        history.to_parquet(path, index=False)
    plot = figures.pretraining(history, metadata["vocab_size"])
    (target / "loss.png").write_bytes(plot._repr_png_())
    report, probes = json.loads((words / "report.json").read_text(encoding="utf-8")), _probes(run)
    with atomic_path(target / "README.md") as path:
        path.write_text(_card(name, target, metadata, history, report, probes), encoding="utf-8")
    size = sum(path.stat().st_size for path in target.iterdir()) / 1e6
    if size > LARGEST_MB:
        raise EcglibError(f"{target} has {size:.1f} MB: at most {LARGEST_MB} may lie in the repository")
    return f"{target}: {len(history):,} steps, {size:.1f} MB"


def _tokenizer_of(metadata: Mapping[str, Any], runs: Path) -> Path:
    """The folder of the tokenizer whose words the encoder learnt."""
    for path in runs.glob(f"tokenizer/*/{FILE_NAME}"):
        if load_tokenizer(path.parent).metadata["weights_sha256"] == metadata["tokenizer_sha256"]:
            return path.parent
    raise EcglibError(
        f"{runs / 'tokenizer'} does not hold the tokenizer of this encoder: give the run's folder"
    )


def _history(run: Path) -> pd.DataFrame:
    if (run / COURSE).exists():
        return pd.read_parquet(run / COURSE)
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    return pd.DataFrame(state["history"].numpy(), columns=pd.Index(HISTORY)).astype({"step": int})


def _probes(run: Path) -> pd.DataFrame:
    """Mean and spread over the draws of the probes, by step."""
    found = pd.read_csv(run / "probes.csv") if (run / "probes.csv").exists() else pd.DataFrame()
    return found.groupby("step").auroc.agg(["mean", "std", "size"]) if len(found) else found


def _card(
    name: str,
    target: Path,
    metadata: Mapping[str, Any],
    history: pd.DataFrame,
    report: Mapping[str, float],
    probes: pd.DataFrame,
) -> str:
    settings = metadata["settings"]
    sha, n_steps = metadata["commit"][:12], len(history)
    n_images = n_steps * settings["batch_size"]
    hours = training_hours(history, settings)
    last = history.tail(max(1, n_steps // 100)).agg("mean").to_dict()
    ended = "" if n_steps == settings["steps"] else f" **Not finished: step {n_steps:,} of the planned run.**"
    audit = _markdown(pd.DataFrame(metadata["audit"]).T.rename_axis("source").reset_index())
    made = _markdown(pd.DataFrame(settings.items(), columns=pd.Index(["setting", "value"])))
    sums = "\n".join(f"- `{file}`: `{file_sha256(target / file)}`" for file in _FILES)
    begun = metadata.get("begun", {})
    again = _BEGUN_AGAIN.format(**begun) if begun else ""
    probed = _markdown(probes.round(3).reset_index()) if len(probes) else "None yet."
    return f"""# {name}

A vision transformer (BEiT, width and depth by the name `{settings["size"]}`) pretrained on images of ECGs: it
learnt to name the hidden patches of an image from the rest, without any label.{ended}

```python
import ecglib

model = ecglib.load("{name}")
features = model.features(model.images(waveforms, sampling_rate))
```

`waveforms` is (n, 8, samples) in mV, leads I, II, V1-V6, at least five seconds. `model.classifier()` is to be
fine-tuned. Images drawn otherwise than in pretraining are refused.

## How it was made

`ecglib pretrain {name} --data PTBXL_DIR`, commit `{sha}`: {n_steps:,} steps, {n_images:,} images seen,
{hours:.1f} hours; hash of the images `{metadata["data_hash"]}`. At the end the loss on hidden patches is
{last["loss"]:.3f} nats and {100 * last["accuracy"]:.1f} % of their tokens are named right; always naming the
commonest would have given {100 * last["majority_accuracy"]:.1f} %.{again}

![Loss and accuracy over the steps](loss.png)

{made}

Tokenizer: {metadata["vocab_size"]} codes, of which held-out images use {report["codes_used"]}; perplexity
{report["perplexity"]:.0f}, share of the commonest code {report["commonest_share"]:.3f}, error
{report["error_ratio"]:.2f} of the mean image's.

## Whom it has seen

{audit}

"train" of the split `official`: folds 1-8. Records and patients of folds 9 and 10 (and of the generated
external site) among them are counted in the table; `seen_of_seed42_test` is the share of the ECGs in the
paper's own test part (`seed42`) that were seen here, without labels: scores on that split are not clean.

## What it knew meanwhile

Linear heads on frozen features, any infarction, each learnt from 1 % of the training patients: AUROC on
fold 9 over several draws (mean, standard deviation, draws). This is a course, not a result: results with
intervals, and with random weights beside them, are in the book.

{probed}

## Limits

It has learnt from one European collection of 1989-1996 and from generated ECGs, at five seconds and one
layout. It is for research and teaching, not for patients.

## Files (SHA-256)

{sums}

## Licence

CC BY 4.0. Derived from PTB-XL (Wagner et al., *PTB-XL, a large publicly available electrocardiography
dataset*, Scientific Data 7, 154, 2020; doi 10.13026/x4td-x982), CC BY 4.0, and from ECGs made with the
generator of Thambawita et al. (*DeepFake electrocardiograms*, Scientific Reports 11, 21896, 2021), MIT.
"""


def _markdown(table: pd.DataFrame) -> str:
    """A Markdown table; numbers as they are, shares with three digits."""

    def text(value: object) -> str:
        if not isinstance(value, float):
            return str(value)
        return f"{value:g}" if value.is_integer() else f"{value:.3g}"

    lines = [list(map(str, table.columns)), ["---"] * table.shape[1]]
    lines += [[text(value) for value in row] for row in table.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
