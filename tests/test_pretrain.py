"""Pretraining learns, goes on after a kill to the same bytes, and is the same on one process or two."""

import errno
import io
import math
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, BinaryIO
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from ecglib import beit, shards
from ecglib.beit import MaskedImageModel, normalise
from ecglib.checkpoints import read_checkpoint
from ecglib.datasets import CohortSettings, open_cohort
from ecglib.errors import EcglibError
from ecglib.filtering import FilterSettings
from ecglib.image import ImageSettings
from ecglib.masking import MaskedCorpus
from ecglib.pretrain import Callback, PretrainSettings, learning_rate_at, pretrain
from ecglib.shards import ImageStore, JoinedImages, write_images

N_IMAGES, VOCAB = 12, 20
SETTINGS: dict[str, object] = {
    "size": "minute", "steps": 30, "batch_size": 8, "warmup_steps": 3, "mask_target": 6,
    "checkpoint_every": 10, "precision": "32-true",
}  # fmt: skip
ROWS = np.arange(1, N_IMAGES)


MINUTE = (24, 2, 2)


@pytest.fixture(scope="module", autouse=True)
def _minute_size() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(beit.SIZES, "minute", MINUTE)
        yield


def settings_with(**changes: object) -> PretrainSettings:
    return PretrainSettings(**SETTINGS | changes)  # pyright: ignore[reportArgumentType]


def images(n: int = N_IMAGES, size: int = 64) -> ImageStore:
    pixels = np.random.default_rng(0).integers(0, 256, (n, size, size), dtype=np.uint8)
    return ImageStore(Path("memory"), pd.DataFrame(index=range(n)), (pixels,), {"images": "0"})


def tokens() -> np.ndarray:
    """Half of them are 0."""
    drawn = np.random.default_rng(1).integers(0, VOCAB, (N_IMAGES, 16))
    return np.where(np.arange(16) % 2, drawn, 0).astype(np.uint16)


def run(folder: Path, *, callbacks: Sequence[Callback] = (), **changes: object) -> pd.DataFrame:
    """Pretrain on the tiny corpus and return the history."""
    settings = settings_with(**changes)
    pretrain(images(), tokens(), ROWS, VOCAB, settings, folder, callbacks, {"commit": "test"})
    return pd.read_parquet(folder / "history.parquet")


def run_in_subprocess(command: Sequence[str], folder: Path, changes: str) -> subprocess.CompletedProcess[str]:
    """Run `main` below."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [*command, __file__, str(folder), changes]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300, check=False)


def without_timing(history: pd.DataFrame) -> pd.DataFrame:
    return history.drop(columns="images_per_second")


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """A folder of twelve drawn ECGs in shards of five."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_SIZE", 5)
        cohort = open_cohort(CohortSettings(n_patients=50))
        write_images(
            cohort, FilterSettings(), ImageSettings(size=64), tmp_path / "images", rows=range(12), workers=1
        )
    return tmp_path / "images"


@pytest.mark.parametrize("joined", [False, True])
def test_images_that_changed_on_disk_are_never_learnt_from(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, joined: bool
) -> None:
    monkeypatch.setattr(shards, "SHARD_SIZE", 5)
    store = JoinedImages((images(4), ImageStore.open(drawn))) if joined else ImageStore.open(drawn)
    words = np.tile(tokens(), (2, 1))[: len(store)]
    settings = settings_with(steps=1, warmup_steps=0)
    pretrain(store, words, np.arange(4), VOCAB, settings, tmp_path / "whole")
    with open(drawn / "images-00001.npy", "rb+") as stream:
        stream.seek(-1000, os.SEEK_END)
        stream.write(b"\x07")
    with pytest.raises(EcglibError) as caught:
        pretrain(store, words, np.arange(4), VOCAB, settings, tmp_path / "changed")
    assert str(caught.value) == (
        f"{drawn / 'images-00001.npy'}: its bytes differ from its checksum; prepare the images again"
    )
    assert not (tmp_path / "changed").exists()


# --- learning ---


def test_first_loss_is_that_of_guessing(tmp_path: Path) -> None:
    ids = np.random.default_rng(1).integers(0, 512, (2, 196)).astype(np.uint16)
    settings = PretrainSettings(steps=1, warmup_steps=0, batch_size=4, precision="32-true")
    pretrain(images(2, 224), ids, np.arange(2), 512, settings, tmp_path)
    loss = pd.read_parquet(tmp_path / "history.parquet").loss[0]
    assert loss == pytest.approx(math.log(512), abs=0.3)


def test_two_images_can_be_memorised(tmp_path: Path) -> None:
    ids = np.random.default_rng(1).integers(0, VOCAB, (2, 9)).astype(np.uint16)
    settings = settings_with(
        steps=500, learning_rate=2e-2, mask="uniform", mask_target=3, checkpoint_every=500
    )
    pretrain(images(2, 48), ids, np.arange(2), VOCAB, settings, tmp_path)
    end = pd.read_parquet(tmp_path / "history.parquet").tail(10)
    assert end.loss.mean() < 0.1
    assert end.accuracy.mean() > 0.98


def test_history_says_what_an_independent_count_says(tmp_path: Path) -> None:
    settings = settings_with(steps=4, batch_size=9)
    history = run(tmp_path, steps=4, batch_size=9)
    corpus = MaskedCorpus(images(), tokens(), ROWS, VOCAB, kind="blockwise", target=6, batch_size=9, seed=0)
    assert corpus.commonest == 0
    for step in range(4):
        _, masks, hidden = corpus.batch(step)
        assert history.majority_accuracy[step] == pytest.approx((hidden == 0).mean())
        assert history.learning_rate[step] == learning_rate_at(step, settings)
    pixels, masks, hidden = corpus.batch(0)
    model = MaskedImageModel("minute", VOCAB, image_size=64)
    logits = model(normalise(torch.from_numpy(pixels)), torch.from_numpy(masks))
    targets = torch.from_numpy(hidden)
    assert history.loss[0] == pytest.approx(nn.functional.cross_entropy(logits, targets).item(), abs=1e-5)
    assert history.accuracy[0] == pytest.approx((logits.argmax(1) == targets).float().mean().item())
    assert history.step.tolist() == [1, 2, 3, 4]
    assert (history.images_per_second > 0).all()


def test_learning_rate_warms_up_and_falls_along_a_cosine() -> None:
    settings = settings_with(steps=101, warmup_steps=20, learning_rate=2e-3, min_learning_rate=1e-4)
    rates = np.array([learning_rate_at(step, settings) for step in range(101)])
    assert rates[:20] == pytest.approx(np.arange(1, 21) * 1e-4)
    assert rates[60] == pytest.approx((2e-3 + 1e-4) / 2)
    assert rates[100] == pytest.approx(1e-4)
    assert (np.diff(rates[20:]) < 0).all()


def test_bfloat16_learns_nearly_the_same(tmp_path: Path) -> None:
    narrow, full = run(tmp_path / "a", precision="bf16-mixed"), run(tmp_path / "b")
    assert not narrow.loss.equals(full.loss)
    assert narrow.loss.to_numpy() == pytest.approx(full.loss.to_numpy(), abs=0.05)


def test_only_matrices_decay(tmp_path: Path) -> None:
    # Learning nothing, AdamW still shrinks what it decays by weight_decay times learning_rate.
    changes = {
        "steps": 1,
        "warmup_steps": 0,
        "weight_decay": 1000.0,
        "learning_rate": 1e-6,
        "min_learning_rate": 0.0,
    }
    run(tmp_path, **changes)
    after = read_checkpoint(tmp_path / "encoder.safetensors").state
    before = MaskedImageModel("minute", VOCAB, image_size=64).state_dict()
    shrunk = set()
    for name, tensor in before.items():
        now = after[name.removeprefix("encoder.")]
        if (now - tensor * (1 - 1e-3)).abs().max() < (now - tensor).abs().max():
            shrunk.add(name)
    matrices = {
        name for name, p in before.items() if p.ndim > 1 and not name.endswith(("token", "bias_table"))
    }
    assert shrunk == matrices


@pytest.mark.parametrize("accumulate", [2, 5, 99])  # 9 images: parts of unequal size, one image each
def test_batch_in_parts_learns_what_the_whole_batch_does(tmp_path: Path, accumulate: int) -> None:
    changes = {"steps": 4, "batch_size": 9, "drop_path": 0.0}
    whole = run(tmp_path / "whole", **changes, accumulate=1)
    parts = run(tmp_path / "parts", **changes, accumulate=accumulate)
    for column in ("loss", "accuracy", "majority_accuracy"):
        assert parts[column].to_numpy() == pytest.approx(whole[column].to_numpy(), abs=1e-5), column
    weights = [read_checkpoint(tmp_path / name / "encoder.safetensors").state for name in ("whole", "parts")]
    assert all((weights[0][name] - weights[1][name]).abs().max() < 1e-3 for name in weights[0])


@pytest.mark.parametrize("accumulate", [0, 3])
def test_threads_learn_what_one_does_and_the_same_in_every_run(tmp_path: Path, accumulate: int) -> None:
    changes: dict[str, Any] = {"steps": 4, "batch_size": 9, "accumulate": accumulate}
    run(tmp_path / "one", **changes)
    torch.set_num_threads(2)
    try:
        for name in ("two", "again"):
            run(tmp_path / name, **changes)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert_alike([tmp_path / "one", tmp_path / "two"])
    two, again = ((tmp_path / name / "encoder.safetensors").read_bytes() for name in ("two", "again"))
    assert two == again


def test_threads_do_without_the_flag_by_which_fabric_knows_a_backward_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flag is one for all threads: the first to end its pass would lower it for the others."""
    monkeypatch.setattr("ecglib.pretrain.Fabric.backward", Mock(side_effect=AssertionError))
    torch.set_num_threads(2)
    try:
        assert len(run(tmp_path, steps=4, precision="bf16-mixed")) == 4
    finally:
        torch.set_num_threads(1)


# --- order of things ---


def test_same_call_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    histories = [
        run(tmp_path / name, seed=seed, drop_path=0.2, steps=5)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    first, again, other = ((tmp_path / name / "encoder.safetensors").read_bytes() for name in "abc")
    assert first == again != other
    assert without_timing(histories[0]).equals(without_timing(histories[1]))
    assert torch.equal(state, torch.get_rng_state())


def test_callbacks_see_the_network_at_each_checkpoint_and_change_nothing(tmp_path: Path) -> None:
    seen = []

    def look(step: int, model: nn.Module) -> None:
        seen.append((step, model.training, torch.rand(1).item()))

    run(tmp_path / "a", callbacks=[look], steps=25, drop_path=0.2)
    run(tmp_path / "b", steps=25, drop_path=0.2)
    assert [(step, training) for step, training, _ in seen] == [(10, False), (20, False), (25, False)]
    assert (tmp_path / "a/encoder.safetensors").read_bytes() == (
        tmp_path / "b/encoder.safetensors"
    ).read_bytes()


def test_encoder_says_how_it_was_made(tmp_path: Path) -> None:
    run(tmp_path, steps=4)
    metadata = read_checkpoint(tmp_path / "encoder.safetensors").metadata
    assert metadata["settings"]["steps"] == 4
    assert metadata["data_hash"] == images().data_hash
    assert metadata["commit"] == "test"
    assert (metadata["size"], metadata["vocab_size"], metadata["image_size"]) == ("minute", VOCAB, 64)


# --- kill, resume, refuse ---


def test_killed_and_resumed_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    killed, unbroken = tmp_path / "killed", tmp_path / "unbroken"
    process = run_in_subprocess([sys.executable], killed, "drop_path=0.2, kill_at=20")
    assert process.returncode == -signal.SIGKILL, process.stderr
    # It died before it could write the checkpoint of step 20.
    assert [path.name for path in killed.iterdir()] == ["checkpoint.pt"]
    assert len(torch.load(killed / "checkpoint.pt", weights_only=True)["history"]) == 10
    histories = [run(folder, drop_path=0.2) for folder in (killed, unbroken)]
    assert without_timing(histories[0]).equals(without_timing(histories[1]))
    assert (killed / "encoder.safetensors").read_bytes() == (unbroken / "encoder.safetensors").read_bytes()


def fork(work: Callable[[], object]) -> BaseProcess:
    """Start a process that has all imports already."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(20))
def test_run_killed_at_random_moments_ends_with_the_same_bytes(tmp_path: Path, attempt: int) -> None:
    rng = np.random.default_rng(attempt)
    changes = {"drop_path": 0.2, "steps": 60, "checkpoint_every": int(rng.integers(1, 4))}
    started = time.perf_counter()
    process = fork(lambda: run(tmp_path / "unbroken", **changes))
    process.join()
    seconds = time.perf_counter() - started
    kills = 0
    while process.exitcode != 0 or kills == 0:
        process = fork(lambda: run(tmp_path / "killed", **changes))
        process.join(rng.uniform(0.1, 0.9) * seconds)
        process.kill()  # SIGKILL, if it still runs
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    encoders = [(tmp_path / name / "encoder.safetensors").read_bytes() for name in ("unbroken", "killed")]
    assert encoders[0] == encoders[1]
    histories = [pd.read_parquet(tmp_path / name / "history.parquet") for name in ("unbroken", "killed")]
    assert without_timing(histories[0]).equals(without_timing(histories[1]))


def test_run_killed_in_the_middle_of_a_checkpoint_goes_on_from_the_one_before(tmp_path: Path) -> None:
    def die_while_writing_the_second() -> None:
        whole = io.BytesIO()
        save = torch.save

        def save_half(state: dict[str, Any], stream: BinaryIO) -> None:
            if len(state["history"]) == 10:
                return save(state, stream)
            save(state, whole)
            stream.write(whole.getvalue()[: whole.tell() // 2])
            stream.flush()
            os.kill(os.getpid(), signal.SIGKILL)

        torch.save = save_half
        run(tmp_path)

    process = fork(die_while_writing_the_second)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".checkpoint.pt.*.partial"))) == 1
    assert len(torch.load(tmp_path / "checkpoint.pt", weights_only=True)["history"]) == 10
    history = run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint.pt", "encoder.safetensors", "history.parquet",
    ]  # fmt: skip
    assert without_timing(history).equals(without_timing(run(tmp_path / "unbroken")))
    encoders = [(folder / "encoder.safetensors").read_bytes() for folder in (tmp_path, tmp_path / "unbroken")]
    assert encoders[0] == encoders[1]


def test_full_disk_is_one_line_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def write_less_than_a_checkpoint() -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
        for folder in (tmp_path, tmp_path / "new"):
            try:
                run(folder, steps=20)
            except EcglibError as error:
                sender.send(str(error))

    def stop(step: int, model: nn.Module) -> None:
        if step == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, steps=20, callbacks=[stop])
    before = (tmp_path / "checkpoint.pt").read_bytes()
    fork(write_less_than_a_checkpoint).join()
    first, second = receiver.recv(), receiver.recv()
    assert "cannot be written ([Errno 27] File too large); the last one is kept: free space" in first
    assert "there is none yet" in second
    assert "\n" not in first + second
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("name", ["encoder.safetensors", "history.parquet"])
def test_full_disk_at_the_end_is_one_line_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with monkeypatch.context() as patch:
        if name == "history.parquet":
            patch.setattr(pd.DataFrame, "to_parquet", lambda _, path, **__: fill_disk(path))
        else:
            patch.setattr(Path, "write_bytes", lambda path, _: fill_disk(path))
        with pytest.raises(EcglibError) as caught:
            run(tmp_path, steps=10)
    assert str(caught.value) == (
        f"{tmp_path / name} cannot be written ([Errno 28] No space left on device); "
        "the checkpoint is kept: free space and go on"
    )
    assert not (tmp_path / name).exists()
    assert not list(tmp_path.rglob("*.partial"))
    history = run(tmp_path, steps=10)
    assert without_timing(history).equals(without_timing(run(tmp_path / "unbroken", steps=10)))


def fill_disk(path: Path) -> None:
    with open(path, "wb") as stream:
        stream.write(b"half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("checkpoint")
    run(folder, steps=20)
    return (folder / "checkpoint.pt").read_bytes()


def pickled_code() -> bytes:
    stream = io.BytesIO()
    torch.save({"identity": {}, "model": os.system}, stream)
    return stream.getvalue()


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "text": lambda content: b"not a checkpoint",
    "one bit wrong": lambda content: content[:200_000] + bytes([content[200_000] ^ 1]) + content[200_001:],
    "code inside": lambda content: pickled_code(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_checkpoint_is_refused(tmp_path: Path, checkpoint: bytes, damage: str) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(DAMAGE[damage](checkpoint))
    with pytest.raises(EcglibError, match=r"checkpoint.pt is damaged: delete it") as caught:
        run(tmp_path, steps=20)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "change"), [("size", "other"), ("vocab_size", VOCAB + 1)])
def test_checkpoint_of_another_network_is_refused(
    tmp_path: Path, checkpoint: bytes, monkeypatch: pytest.MonkeyPatch, name: str, change: Any
) -> None:
    monkeypatch.setitem(beit.SIZES, "other", (16, 2, 2))
    (tmp_path / "checkpoint.pt").write_bytes(checkpoint)
    settings = settings_with(steps=20, size=change if name == "size" else "minute")
    vocab_size = change if name == "vocab_size" else VOCAB
    with pytest.raises(EcglibError, match=rf"made otherwise: {name} was .* and is {change!r}; set it back"):
        pretrain(images(), tokens(), ROWS, vocab_size, settings, tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == checkpoint


def test_tokens_of_a_larger_vocabulary_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EcglibError, match=r"token \d+ is not below vocab_size 5: make the tokens again"):
        pretrain(images(), tokens(), ROWS, 5, settings_with(), tmp_path)


def test_checkpoint_of_other_settings_is_refused(tmp_path: Path, checkpoint: bytes) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(checkpoint)
    with pytest.raises(
        EcglibError, match=r"made otherwise: learning_rate was 0.0015 and is 0.002; set it back"
    ):
        run(tmp_path, steps=20, learning_rate=0.002)
    with pytest.raises(EcglibError, match="made otherwise: tokens was "):
        pretrain(images(), tokens()[::-1], ROWS, VOCAB, settings_with(steps=20), tmp_path)
    # How often checkpoints are written changes no result.
    assert len(run(tmp_path, steps=20, checkpoint_every=7)) == 20


def test_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    explosive = {"learning_rate": 1e25, "warmup_steps": 0, "checkpoint_every": 1}
    with pytest.raises(EcglibError, match=r"at step \d+, not finite: lower learning_rate") as caught:
        run(tmp_path, **explosive)
    assert "\n" not in str(caught.value)
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert torch.isfinite(kept["history"]).all()
    assert all(torch.isfinite(tensor).all() for tensor in kept["model"].values())
    assert not (tmp_path / "encoder.safetensors").exists()


@pytest.mark.parametrize(
    "change",
    ["size='huge'", "steps=0", "batch_size=0", "learning_rate=0.0", "min_learning_rate=1.0", "seed=-1",
     "warmup_steps=30", "weight_decay=-1.0", "mask='lead'", "mask_target=0", "drop_path=1.0",
     "clip_norm=-1.0", "accumulate=-1", "precision='fp8'", "strategy='fsdp'", "checkpoint_every=0"],
)  # fmt: skip
def test_impossible_setting_is_named(change: str) -> None:
    name = change.split("=")[0]
    with pytest.raises(EcglibError, match=name) as caught:
        replace(settings_with(), **eval(f"dict({change})"))
    assert "\n" not in str(caught.value)


# --- processes ---


def torchrun(n_processes: int) -> list[str]:
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*words, "--nproc-per-node", str(n_processes)]


def assert_alike(folders: Sequence[Path]) -> None:
    """Two runs learnt the same but for rounding."""
    one, other = (pd.read_parquet(folder / "history.parquet") for folder in folders)
    for column in ("loss", "accuracy", "majority_accuracy"):
        assert other[column].to_numpy() == pytest.approx(one[column].to_numpy(), abs=1e-4), column
    weights = [read_checkpoint(folder / "encoder.safetensors").state for folder in folders]
    assert all((weights[0][name] - weights[1][name]).abs().max() < 1e-3 for name in weights[0])


@pytest.mark.parametrize(
    "n_processes", [pytest.param(2, id="two"), pytest.param(4, id="four", marks=pytest.mark.slow)]
)
def test_several_processes_agree_with_one(tmp_path: Path, n_processes: int) -> None:
    several, one = tmp_path / "several", tmp_path / "one"
    # Batches of 7 cannot be shared evenly, and the shares hide unequal numbers of patches.
    changes = "steps=10, batch_size=7, strategy='ddp'"
    process = run_in_subprocess(torchrun(n_processes), several, changes)
    assert process.returncode == 0, process.stderr
    assert sorted(path.name for path in several.glob("called-*")) == [f"called-0-10-{n_processes}"]
    run(one, steps=10, batch_size=7)
    assert_alike([one, several])


@pytest.mark.slow
def test_run_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    changed, one = tmp_path / "changed", tmp_path / "one"
    for n_processes, kill_at in ((4, 10), (2, 15)):
        changes = f"steps=20, batch_size=7, checkpoint_every=5, kill_at={kill_at}"
        process = run_in_subprocess(torchrun(n_processes), changed, changes)
        assert process.returncode != 0
        state = torch.load(changed / "checkpoint.pt", weights_only=True)
        assert len(state["history"]) == kill_at - 5
    run(changed, steps=20, batch_size=7)
    run(one, steps=20, batch_size=7)
    assert_alike([one, changed])


def test_more_processes_than_images_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ecglib.pretrain.Fabric", lambda **_: Mock(world_size=9))
    with pytest.raises(EcglibError, match="batch_size 8 is too small for 9 processes: raise it"):
        run(tmp_path)


def main(folder: Path, kill_at: int = 0, **changes: object) -> None:
    """What the subprocesses do: `run`, and at each callback leave a file or kill themselves."""

    def leave_a_trace(step: int, model: nn.Module) -> None:
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)  # torchrun then stops the other processes
        if not kill_at:
            (folder / f"called-{os.environ['RANK']}-{step}-{os.environ['WORLD_SIZE']}").touch()

    torch.set_num_threads(1)
    beit.SIZES["minute"] = MINUTE
    run(folder, callbacks=[leave_a_trace], **changes)


if __name__ == "__main__":
    main(Path(sys.argv[1]), **eval(f"dict({sys.argv[2]})"))
