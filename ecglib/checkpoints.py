"""Files of BEiT weights, whoever wrote them: read into one form, built into networks, written for others.

Read are the files of ecglib, Microsoft's BEiT (which HeartBEiT used), timm and Hugging Face; who wrote a file
is found out from its content. The one form is Microsoft's parameter names, which timm shares. Nothing is
unpickled but tensors and plain values.
"""

import argparse
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import save as to_bytes
from timm.models.beit import Beit
from torch import Tensor

from ecglib.beit import LAYER_SCALE, SHARED_BIAS, SIZES, MaskedImageModel, make_encoder
from ecglib.errors import EcglibError
from ecglib.masking import PATCH_SIZE
from ecglib.preprocessing import fingerprint, require_same
from ecglib.provenance import atomic_path, file_sha256
from ecglib.tensorfiles import read_pickle, read_tensors, write_tensors

# What a pretraining leaves in its folder: the network, and how its loss fell.
ENCODER, COURSE = "encoder.safetensors", "history.parquet"
BLOCK_BIAS = "attn.relative_position_bias_table"
# What only pretraining needs, what only a classifier needs: the rest every BEiT has.
PRETRAINING = ("mask_token", "norm.weight", "norm.bias", "lm_head.weight", "lm_head.bias")
CLASSIFYING = ("fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias")
# Recomputed from the image's size, or without effect: a bias of the keys shifts all scores of a query alike.
BUFFERS = ("relative_position_index", "attn.k_bias")
WRAPPERS = ("model", "state_dict", "module")  # under which training scripts keep the weights
PREFIXES = re.compile(r"^(?:module\.|_orig_mod\.|backbone\.|encoder\.(?!layer\.|relative_position_bias\.))+")
LAYER_NORM_EPS = 1e-6

# Microsoft's name of a parameter or module -> Hugging Face's, in files; the second within a block.
HUGGING_FACE = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "rel_pos_bias": "encoder.relative_position_bias",
    "fc_norm": "pooler.layernorm",
    "norm": "layernorm",
    "lm_head": "lm_head",
    "head": "classifier",
}
HUGGING_FACE_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "gamma_1": "lambda_1",
    "gamma_2": "lambda_2",
    "attn.q.weight": "attention.attention.query.weight",
    "attn.k.weight": "attention.attention.key.weight",
    "attn.v.weight": "attention.attention.value.weight",
    "attn.q_bias": "attention.attention.query.bias",
    "attn.v_bias": "attention.attention.value.bias",
    BLOCK_BIAS: "attention.attention.relative_position_bias.relative_position_bias_table",
    "attn.relative_position_index": "attention.attention.relative_position_bias.relative_position_index",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
# transformers 5 calls some otherwise in memory, and so in a state_dict that was saved as it is.
IN_MEMORY = {"shared_position_bias": "encoder.relative_position_bias"}
IN_MEMORY_BLOCK = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "relative_position_bias": "attention.attention.relative_position_bias",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Weights in one form, whoever wrote them, and what was found out about them."""

    path: Path
    writer: str  # ecglib, Microsoft, timm or Hugging Face
    state: Mapping[str, Tensor]  # float32, under Microsoft's names
    metadata: Mapping[str, Any]  # empty where another program wrote the file
    dropped: tuple[str, ...]  # what the file holds and a BEiT has not
    notes: tuple[str, ...] = ()  # what else is not as here

    @property
    def width(self) -> int:
        """Numbers in a token."""
        return self.state["cls_token"].shape[-1]

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len({name.split(".")[1] for name in self.state if name.startswith("blocks.")})

    @property
    def heads(self) -> int:
        """Heads of attention in a block."""
        return self._bias_table.shape[1]

    @property
    def patch_size(self) -> int:
        """Rows and columns of a patch, pixels."""
        return self.state["patch_embed.proj.weight"].shape[-1]

    @property
    def image_size(self) -> int:
        """Rows and columns of the image, pixels: a grid of g x g patches has (2g - 1)^2 + 3 biases."""
        return (math.isqrt(len(self._bias_table) - 3) + 1) // 2 * self.patch_size

    @property
    def vocab_size(self) -> int | None:
        """Tokens that the pretraining head tells apart; None without that head."""
        return len(self.state["lm_head.weight"]) if "lm_head.weight" in self.state else None

    @property
    def n_classes(self) -> int | None:
        """Classes of the classifier's head; None without that head."""
        return len(self.state["head.weight"]) if "head.weight" in self.state else None

    @property
    def shared_bias(self) -> bool:
        """Whether all blocks share one table of relative-position biases, as in pretraining."""
        return SHARED_BIAS in self.state

    @property
    def kind(self) -> str:
        """`masked-image model`, `classifier`, or `encoder` where neither head is whole."""
        if self.state.keys() >= set(PRETRAINING):
            return "masked-image model"
        return "classifier" if self.state.keys() >= set(CLASSIFYING) else "encoder"

    @property
    def missing(self) -> tuple[str, ...]:
        """Parameters of either head that the file lacks: what is built with that head starts them afresh."""
        return tuple(name for name in (*PRETRAINING, *CLASSIFYING) if name not in self.state)

    @property
    def preprocessing(self) -> Mapping[str, Any] | None:
        """Fingerprint of the images that the weights learnt from; None where nothing is known."""
        return self.metadata.get("preprocessing")

    @property
    def size(self) -> str:
        """Name of the network's size in SIZES. Raises EcglibError where it has none."""
        shape = (self.width, self.depth, self.heads)
        names = [name for name, other in SIZES.items() if other == shape]
        if not names or self.patch_size != PATCH_SIZE:
            raise EcglibError(
                f"{self.path} has {self._shape}: a network here is one of {', '.join(SIZES)}, "
                f"with patches of {PATCH_SIZE}"
            )
        return names[0]

    def report(self) -> str:
        """What the file is, what was dropped and what is missing, in a few lines."""
        heads = {"tokens": self.vocab_size, "classes": self.n_classes}
        sizes = ", ".join(f"{n} {name}" for name, n in heads.items() if n is not None)
        lines = [
            f"{self.path}: {self.kind} of {self.writer}, {self._shape}{', ' if sizes else ''}{sizes}",
            f"dropped: {_summary(self.dropped)}",
            f"missing: {_summary(self.missing)}",
        ]
        return "\n".join([*lines, *self.notes])

    @property
    def _shape(self) -> str:
        return (
            f"width {self.width}, {self.depth} blocks, {self.heads} heads, "
            f"patches of {self.patch_size}, images of {self.image_size} pixels"
        )

    @cached_property
    def _bias_table(self) -> Tensor:
        return self.state[SHARED_BIAS if self.shared_bias else f"blocks.0.{BLOCK_BIAS}"]


def _summary(names: tuple[str, ...]) -> str:
    """Names, those of the blocks put together: `blocks.*.attn.relative_position_index`."""
    return ", ".join(dict.fromkeys(re.sub(r"^blocks\.\d+", "blocks.*", name) for name in names)) or "nothing"


# --- reading ---


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a file of BEiT weights, or a folder that Hugging Face's `save_pretrained` wrote.

    Raises EcglibError where it is missing or damaged, would run code, or is of another kind of network.
    """
    weights, config = _locate(path)
    content, metadata = _read(weights)
    state, dropped = _unwrap(content, path)
    hugging_face = any("embeddings.cls_token" in name for name in state)
    if hugging_face:
        state = _from_hugging_face(state, path)
    for name in [name for name in state if not _belongs(name)]:
        dropped.append(name)
        del state[name]
    if metadata is not None:
        writer = "ecglib"
    elif hugging_face:
        writer = "Hugging Face"
    else:
        from_script = "mask_token" in state or any(name.endswith(BUFFERS) for name in dropped)
        writer = "Microsoft" if from_script or "args" in dropped else "timm"
    notes = []
    if (eps := config.get("layer_norm_eps", LAYER_NORM_EPS)) != LAYER_NORM_EPS:
        notes.append(f"layer_norm_eps is {eps:g} there, {LAYER_NORM_EPS:g} here")
    checkpoint = Checkpoint(
        path=path,
        writer=writer,
        # Copied: torch's files are mapped, and may change under a tensor that is not.
        state={name: t.to(torch.float32, copy=True).contiguous() for name, t in sorted(state.items())},
        metadata=metadata or config.get("ecglib") or {},
        dropped=tuple(dropped),
        notes=tuple(notes),
    )
    _require_beit(checkpoint)
    return checkpoint


def _locate(path: Path) -> tuple[Path, dict[str, Any]]:
    """The file of weights and the configuration of Hugging Face, empty where there is none."""
    if not path.is_dir():
        return path, {}
    files = [path / name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).is_file()]
    if not files or not (path / "config.json").is_file():
        raise EcglibError(f"{path} has no config.json with model.safetensors: name a file or such a folder")
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except ValueError:
        raise EcglibError(f"{path / 'config.json'} is not JSON: fetch the folder again") from None
    if not isinstance(config, dict) or config.get("model_type") != "beit":
        raise EcglibError(f"{path / 'config.json'} is not of a BEiT: only BEiT's weights can be read")
    return files[0], config


def _read(path: Path) -> tuple[Any, dict[str, Any] | None]:
    """Content of a file of either format, told apart by its first bytes, and ecglib's metadata."""
    if path.is_file():
        with open(path, "rb") as stream:
            start = stream.read(9)
        if start[:2] in (b"PK", b"\x80\x02"):  # torch's format of today, and the one before
            return read_pickle(path, [argparse.Namespace]), None
    return read_tensors(path)


def _unwrap(content: Any, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors under names without wrappers and prefixes, and what lay beside them."""
    dropped: list[str] = []
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            dropped += [str(name) for name in content if name != wrapper]
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise EcglibError(f"{path} holds a {type(content).__name__}, not named weights: save a state_dict")
    state = {PREFIXES.sub("", str(k)): v for k, v in content.items() if isinstance(v, Tensor)}
    dropped += [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    return state, dropped


def _rename(name: str, table: Mapping[str, str]) -> str:
    """The name with its longest beginning, up to a dot, put into the table's words."""
    for stop in (len(name), *(match.start() for match in reversed(list(re.finditer(r"\.", name))))):
        if name[:stop] in table:
            return table[name[:stop]] + name[stop:]
    return name


def _from_hugging_face(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Microsoft's names, with queries, keys and values in one matrix."""
    top = {theirs: ours for ours, theirs in HUGGING_FACE.items()}
    within = {theirs: ours for ours, theirs in HUGGING_FACE_BLOCK.items()}
    mapped: dict[str, Tensor] = {}
    for name, tensor in state.items():
        name = name.removeprefix("beit.")
        block = re.match(r"(?:encoder\.layer|layers)\.(\d+)\.(.+)", name)
        if block:
            ours = f"blocks.{block[1]}.{_rename(_rename(block[2], IN_MEMORY_BLOCK), within)}"
        else:
            ours = _rename(_rename(name, IN_MEMORY), top)
        if ours in mapped:
            raise EcglibError(f"{path} has two final norms: only one can be kept; make it with mean pooling")
        mapped[ours] = tensor
    for name in [name for name in mapped if name.endswith("attn.q.weight")]:
        stem = name.removesuffix("q.weight")
        parts = [mapped.pop(f"{stem}{part}.weight", None) for part in "qkv"]
        if missing := [part for part, weight in zip("qkv", parts, strict=True) if weight is None]:
            raise EcglibError(f"{path} lacks {stem}{missing[0]}.weight: fetch it again")
        mapped[f"{stem}qkv.weight"] = torch.cat([weight for weight in parts if weight is not None])
    return mapped


def _belongs(name: str) -> bool:
    """Whether a tensor is one of a BEiT's, or would be computed with if it were here."""
    known = name in ("cls_token", "pos_embed", SHARED_BIAS, *PRETRAINING, *CLASSIFYING)
    return (known or bool(re.match(r"patch_embed\.|blocks\.\d+\.", name))) and not name.endswith(BUFFERS)


def _require_beit(checkpoint: Checkpoint) -> None:
    """EcglibError, naming the first parameter, where the state is not one of a BEiT as it is built here."""
    path, state = checkpoint.path, checkpoint.state
    if "pos_embed" in state:
        raise EcglibError(
            f"{path} has absolute positions (pos_embed): the network here has relative ones alone"
        )
    table = SHARED_BIAS if checkpoint.shared_bias else f"blocks.0.{BLOCK_BIAS}"
    ranks = {"cls_token": 3, "patch_embed.proj.weight": 4, table: 2}
    ranks |= {name: 2 for name in ("lm_head.weight", "head.weight") if name in state}
    for name, rank in ranks.items():
        if name not in state or state[name].ndim != rank or not state[name].numel():
            raise EcglibError(f"{path} is no BEiT with relative positions: {name} is missing or of no use")
    n_biases, heads = state[table].shape
    if n_biases < 4 or math.isqrt(n_biases - 3) ** 2 != n_biases - 3 or n_biases % 2:
        raise EcglibError(f"{path} has {n_biases} relative positions in {table}: no square grid has so many")
    if checkpoint.width % heads:
        raise EcglibError(f"{path} is no BEiT: its {heads} heads do not divide width {checkpoint.width}")
    expected = _expected_shapes(checkpoint)
    optional = {*PRETRAINING, *CLASSIFYING}
    for name, shape in expected.items():
        if name not in state and name not in optional:
            raise EcglibError(f"{path} lacks {name}: it is cut short or of another kind of network")
        if name in state and state[name].shape != shape:
            raise EcglibError(
                f"{path} has {name} of shape {tuple(state[name].shape)}, not {tuple(shape)}: "
                f"it does not fit the rest, {checkpoint._shape}"
            )
    if unknown := sorted(state.keys() - expected.keys()):
        raise EcglibError(f"{path} has {unknown[0]}, which BEiT's network has not: it is of another kind")


def _expected_shapes(checkpoint: Checkpoint) -> dict[str, torch.Size]:
    with torch.device("meta"):
        arguments = _network_arguments(checkpoint) | {"num_classes": 0, "global_pool": ""}
        shapes = {name: tensor.shape for name, tensor in Beit(**arguments).state_dict().items()}
    width, per_token = checkpoint.width, torch.Size([checkpoint.width])
    shapes |= {
        "mask_token": torch.Size([1, 1, width]),
        "fc_norm.weight": per_token,
        "fc_norm.bias": per_token,
    }
    for head, n in (("lm_head", checkpoint.vocab_size), ("head", checkpoint.n_classes)):
        shapes |= {f"{head}.weight": torch.Size([n or 0, width]), f"{head}.bias": torch.Size([n or 0])}
    return shapes


def _network_arguments(checkpoint: Checkpoint) -> dict[str, Any]:
    """timm's arguments of the encoder: `timm.models.beit.Beit(**arguments)`."""
    return {
        "img_size": checkpoint.image_size,
        "patch_size": checkpoint.patch_size,
        "embed_dim": checkpoint.width,
        "depth": checkpoint.depth,
        "num_heads": checkpoint.heads,
        "init_values": LAYER_SCALE,
        "use_abs_pos_emb": False,
        "use_rel_pos_bias": not checkpoint.shared_bias,
        "use_shared_rel_pos_bias": checkpoint.shared_bias,
    }


# --- building networks ---


def load_masked_image_model(path: Path, *, vocab_size: int | None = None) -> MaskedImageModel:
    """The masked-image model at `path`, in evaluation mode, for a tokenizer of `vocab_size` codes if given.

    Raises EcglibError where the file is unreadable, lacks a part of the model, or has another vocabulary.
    """
    checkpoint = read_checkpoint(path)
    absent = [name for name in PRETRAINING if name not in checkpoint.state]
    if absent or not checkpoint.shared_bias or checkpoint.vocab_size is None:
        raise EcglibError(f"{path} is no masked-image model: it lacks {(*absent, SHARED_BIAS)[0]}")
    if vocab_size not in (None, checkpoint.vocab_size):
        raise EcglibError(
            f"{path} predicts {checkpoint.vocab_size} tokens, the tokenizer has {vocab_size} codes: "
            "take the tokenizer that it was pretrained with"
        )
    model = MaskedImageModel(checkpoint.size, checkpoint.vocab_size, image_size=checkpoint.image_size).eval()
    names = {name: name.removeprefix("encoder.") for name in model.state_dict()}
    model.load_state_dict({name: checkpoint.state[ours] for name, ours in names.items()})
    return model


def read_course(path: Path) -> pd.DataFrame:
    """The course of a training, a row a step. EcglibError where it was not kept with the weights."""
    if not path.is_file():
        raise EcglibError(f"{path} is missing: publish the weights with their history")
    return pd.read_parquet(path)


def load_classifier(path: Path) -> Beit:
    """The fine-tuned classifier at `path` with its own head: (n, 3, h, w) -> logits (n, classes)."""
    checkpoint = read_checkpoint(path)
    absent = [name for name in CLASSIFYING if name not in checkpoint.state]
    if absent or checkpoint.n_classes is None:
        raise EcglibError(
            f"{path} is no classifier that averages patches: it lacks {absent[0]}; use it as an encoder"
        )
    classifier = make_encoder(
        checkpoint.size, image_size=checkpoint.image_size, shared_bias=False, n_classes=checkpoint.n_classes
    )
    classifier.load_state_dict(_with_block_biases(checkpoint, leave=PRETRAINING))
    return classifier.eval()


def classifier_from_encoder(
    size: str,
    path: Path | None,
    n_classes: int = 2,
    seed: int = 0,
    *,
    image_size: int = 224,
    drop_path: float = 0.0,
    preprocessing: Mapping[str, Any] | None = None,
    allow_unknown_preprocessing: bool = False,
) -> Beit:
    """BEiT classifier on the pretrained encoder at `path`, or on random weights where `path` is None.

    Each block starts from a copy of the shared relative-position bias; mean pooling, `fc_norm` and a head
    scaled by 0.001 start afresh (BEiT, fine-tuning). (n, 3, h, w) -> logits (n, n_classes).
    preprocessing: `fingerprint` of the images to come, by default that of the default settings.
    Raises EcglibError if the file is unreadable, of another size of network or image, or learnt from images
    drawn otherwise; one that does not say how they were drawn passes with `allow_unknown_preprocessing`.
    """
    classifier = make_encoder(
        size, image_size=image_size, drop_path=drop_path, shared_bias=False, n_classes=n_classes, seed=seed
    )
    if path is None:
        return classifier
    checkpoint = read_checkpoint(path)
    _require_size(checkpoint, size, image_size)
    ours = preprocessing or fingerprint()
    require_same(checkpoint.preprocessing, ours, path, allow_unknown=allow_unknown_preprocessing)
    fresh = {name: classifier.state_dict()[name] for name in CLASSIFYING}
    classifier.load_state_dict(_with_block_biases(checkpoint, leave=(*PRETRAINING, *CLASSIFYING)) | fresh)
    return classifier


def _require_size(checkpoint: Checkpoint, size: str, image_size: int) -> None:
    width, depth, heads = SIZES[size]
    wanted = {
        "width": width,
        "depth": depth,
        "heads": heads,
        "patch_size": PATCH_SIZE,
        "image_size": image_size,
    }
    for name, value in wanted.items():
        if (found := getattr(checkpoint, name)) != value:
            raise EcglibError(
                f"{checkpoint.path} has {name} {found}, not {value} as {size} here: ask for what it holds, "
                f"{checkpoint._shape}"
            )


def _with_block_biases(checkpoint: Checkpoint, leave: tuple[str, ...]) -> dict[str, Tensor]:
    """The state without some parameters, a shared table of biases copied into every block."""
    state = {name: tensor for name, tensor in checkpoint.state.items() if name not in leave}
    if checkpoint.shared_bias:
        table = state.pop(SHARED_BIAS)
        state |= {f"blocks.{i}.{BLOCK_BIAS}": table.clone() for i in range(checkpoint.depth)}
    return state


# --- writing ---


def save_encoder(
    path: Path, model: MaskedImageModel, metadata: Mapping[str, Any], dtype: torch.dtype = torch.float32
) -> None:
    """Write all weights in a number format, with `metadata` and what describes the network.

    The same weights and metadata give the same bytes. `read_checkpoint` gives float32 back.
    """
    state = {name.removeprefix("encoder."): tensor for name, tensor in model.state_dict().items()}
    described = {"size": model.size, "vocab_size": model.vocab_size, "image_size": model.image_size}
    write_tensors(path, state, {**metadata, **described}, dtype)


def convert(source: Path, target: Path, to: str, dtype: torch.dtype = torch.float32) -> Checkpoint:
    """Write the weights at `source` for another program; returns what was read.

    to: `ecglib` (a safetensors file with everything), `timm` (a safetensors file that
    `timm.models.beit.Beit(**arguments)` loads strictly, `arguments` being in its header) or `huggingface` (a
    folder for `from_pretrained`). timm has no place for the mask token and the pretraining head.
    """
    writers = {"ecglib": _write_ecglib, "timm": _write_timm, "huggingface": _write_hugging_face}
    if to not in writers:
        raise EcglibError(f"format {to!r} is unknown: choose one of {', '.join(writers)}")
    checkpoint = read_checkpoint(source)
    writers[to](checkpoint, target, dtype)
    return checkpoint


def _metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """ecglib's own metadata, or where the weights came from."""
    if checkpoint.metadata:
        return dict(checkpoint.metadata)
    weights, _ = _locate(checkpoint.path)
    return {
        "converted_from": checkpoint.writer,
        "source": weights.name,
        "source_sha256": file_sha256(weights),
    }


def _write_ecglib(checkpoint: Checkpoint, path: Path, dtype: torch.dtype) -> None:
    described = {"vocab_size": checkpoint.vocab_size, "image_size": checkpoint.image_size}
    write_tensors(path, checkpoint.state, {**_metadata(checkpoint), **described}, dtype)


def _write_timm(checkpoint: Checkpoint, path: Path, dtype: torch.dtype) -> None:
    classifier, pooled = checkpoint.kind == "classifier", "fc_norm.weight" in checkpoint.state
    leave = {"mask_token", "lm_head.weight", "lm_head.bias"}
    leave |= {"norm.weight", "norm.bias"} if pooled else set()
    leave |= set() if classifier else {"head.weight", "head.bias"}
    arguments = _network_arguments(checkpoint) | {
        "num_classes": checkpoint.n_classes if classifier else 0,
        "global_pool": "avg" if pooled else "",
        "use_rel_pos_bias": True,
        "use_shared_rel_pos_bias": False,
    }
    state = _with_block_biases(checkpoint, leave=tuple(leave))
    write_tensors(path, state, {**_metadata(checkpoint), "arguments": arguments}, dtype)


def _write_hugging_face(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype) -> None:
    """config.json and model.safetensors; transformers itself is not needed."""
    kind, has_norm = checkpoint.kind, "norm.weight" in checkpoint.state
    architecture, unused = {
        "masked-image model": ("BeitForMaskedImageModeling", CLASSIFYING),
        "classifier": ("BeitForImageClassification", PRETRAINING),
        "encoder": ("BeitModel", ("head.", "lm_head.", "fc_norm." if has_norm else "norm.")),
    }[kind]
    state = {name: tensor for name, tensor in checkpoint.state.items() if not name.startswith(unused)}
    config = {
        "architectures": [architecture],
        "model_type": "beit",
        "dtype": str(dtype).removeprefix("torch."),
        "hidden_size": checkpoint.width,
        "num_hidden_layers": checkpoint.depth,
        "num_attention_heads": checkpoint.heads,
        "intermediate_size": 4 * checkpoint.width,
        "hidden_act": "gelu",
        "layer_norm_eps": LAYER_NORM_EPS,
        "image_size": checkpoint.image_size,
        "patch_size": checkpoint.patch_size,
        "vocab_size": checkpoint.vocab_size or 8192,
        "use_mask_token": "mask_token" in state,
        "use_relative_position_bias": not checkpoint.shared_bias,
        "use_shared_relative_position_bias": checkpoint.shared_bias,
        "use_mean_pooling": kind != "encoder" or not has_norm,
        "ecglib": _metadata(checkpoint),
    }
    if kind == "classifier":
        config["id2label"] = {str(i): f"LABEL_{i}" for i in range(checkpoint.n_classes or 0)}
    renamed = _to_hugging_face(state, bare=kind == "encoder")
    stored = {name: tensor.to(dtype).contiguous() for name, tensor in renamed.items()}
    with atomic_path(folder / "config.json") as partial:
        partial.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    with atomic_path(folder / "model.safetensors") as partial:
        partial.write_bytes(to_bytes(stored, {"format": "pt"}))


def _to_hugging_face(state: Mapping[str, Tensor], *, bare: bool) -> dict[str, Tensor]:
    """Hugging Face's names in files: `bare` those of BeitModel, else those of a model with a head."""
    mapped: dict[str, Tensor] = {}
    for name, tensor in state.items():
        block = re.match(r"blocks\.(\d+)\.(.+)", name)
        if block and block[2] == "attn.qkv.weight":
            for part, weight in zip("qkv", tensor.chunk(3), strict=True):
                theirs = HUGGING_FACE_BLOCK[f"attn.{part}.weight"]
                mapped[f"encoder.layer.{block[1]}.{theirs}"] = weight
        elif block:
            mapped[f"encoder.layer.{block[1]}.{_rename(block[2], HUGGING_FACE_BLOCK)}"] = tensor
        else:
            mapped[_rename(name, HUGGING_FACE)] = tensor
    if bare:
        return mapped
    heads = ("layernorm.", "lm_head.", "classifier.")
    return {name if name.startswith(heads) else f"beit.{name}": tensor for name, tensor in mapped.items()}
