"""Chips to vectors: normalisation, what the model is told, padding, what is kept, batches under way."""

import platform
import subprocess
import sys
from datetime import UTC, datetime

import numpy as np
import pytest
import torch

from kiln.archives.sensors import WORLDCOVER
from kiln.formats import vectors
from kiln.formats.sensor import Sensor
from kiln.model import batch, clay, weights
from kiln.model.embedder import Embedder, EmbedPolicy
from tests import ROOT
from tests.support import golden
from tests.support.chips import PLAIN, make_chip

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]  # a GPU's way too where there is one


def chips(count: int, seed: int = 4) -> list:
    rng = np.random.default_rng(seed)
    return [make_chip(n, pixels=rng.integers(0, 4000, (4, 16, 16)).astype(np.uint16)) for n in range(count)]


@pytest.mark.parametrize("when", [None, datetime(2020, 2, 19, tzinfo=UTC)])
@pytest.mark.parametrize("metadata", ["zeros", "as_trained"])
def test_time_and_place_are_told_together_or_not_at_all(encoder, metadata, when):
    pixels = np.random.default_rng(2).normal(size=(2, 16, 16)).astype(np.float32)
    chip = make_chip(30, pixels=pixels, datetime=when)
    ours = Embedder(encoder, PLAIN, EmbedPolicy(metadata, 3.0), 2)([chip])["embeddings"]
    known = metadata == "as_trained" and when is not None
    told = {"time": clay.encode_time(when) if known else [0.0] * 4}
    told["latlon"] = clay.encode_latlon(-149.5, 10.5) if known else [0.0] * 4
    told = {k: torch.tensor([v]) for k, v in told.items()}
    theirs = encoder(torch.from_numpy(pixels)[None], wavelengths=torch.tensor([0.5, 0.6]), gsd=3.0, **told)[:, 0]
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)


def test_pixels_are_normalised_by_band_from_whole_numbers(encoder):
    pixels = np.random.default_rng(3).integers(0, 65535, (4, 8, 8)).astype(np.uint16)
    ours = Embedder(encoder, WORLDCOVER, EmbedPolicy("zeros"), 1)([make_chip(1, pixels=pixels)])["embeddings"]
    mean, std = (np.array(v, np.float64).reshape(4, 1, 1) for v in ([1552, 1355, 1105, 2743], [1888, 1757, 1809, 1742]))
    x = torch.from_numpy(((pixels - mean) / std).astype(np.float32))[None]
    unknown = torch.zeros(1, 4)
    waves = torch.tensor([0.665, 0.56, 0.493, 0.842])
    theirs = encoder(x, wavelengths=waves, gsd=10.0, time=unknown, latlon=unknown)[:, 0]
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4)


@pytest.mark.parametrize("keep_patches", [False, True])
@pytest.mark.parametrize("embedding", vectors.EMBEDDINGS)
@pytest.mark.parametrize("case", golden.CASES)
def test_class_tokens_means_and_patches_are_those_of_the_reference(
    monkeypatch, checkpoint_file, case, embedding, keep_patches
):
    about, reference = golden.CASES[case], golden.figures(case)
    told = {name: iter(reference[name].tolist()) for name in ("time", "latlon")}
    monkeypatch.setattr(batch, "encode_time", lambda when: next(told["time"]))
    monkeypatch.setattr(batch, "encode_latlon", lambda lon, lat: next(told["latlon"]))
    bands, waves = tuple("abcdefghij"[: len(about["waves"])]), tuple(about["waves"])
    sensor = Sensor("golden", bands, (0.0,) * len(bands), (1.0,) * len(bands), waves, about["gsd"])
    chips = [make_chip(n, pixels=p) for n, p in enumerate(golden.pixels(case).numpy())]
    policy = EmbedPolicy("as_trained", about["gsd"], "float32", embedding, keep_patches)
    ours = Embedder(weights.load_encoder(checkpoint_file), sensor, policy, len(chips))(chips)
    if keep_patches:
        patches = ours.pop("patches").reshape(len(chips), -1, 64)
        assert (patches.dtype, patches.shape[1]) == (np.float16, (about["size"] // 8) ** 2)
        np.testing.assert_allclose(patches[:, 0], reference["patch_first"].numpy(), atol=4e-3)
        np.testing.assert_allclose(patches[:, -1], reference["patch_last"].numpy(), atol=4e-3)
    expected = {"class": "cls", "mean": "patch_mean"}
    assert list(ours) == list(vectors.KINDS[embedding])
    for name, kind in vectors.KINDS[embedding].items():
        assert ours[name].dtype == np.float32
        np.testing.assert_allclose(ours[name], reference[expected[kind]].numpy(), atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("embedding", ["class", "mean", "both"])
@pytest.mark.parametrize("patches", [False, True])
def test_what_is_kept_is_what_all_tokens_say(encoder, encoder_file, embedding, patches, device):
    some = chips(3)
    there = weights.load_encoder(encoder_file, device=device)
    made = Embedder(there, WORLDCOVER, EmbedPolicy("zeros", 10.0, "float32", embedding, patches), 4)(some)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (WORLDCOVER.mean, WORLDCOVER.std))
    x = torch.stack([torch.from_numpy(c.pixels.astype(np.float32)) for c in some])
    unknown = torch.zeros(3, 4)
    waves = torch.tensor(WORLDCOVER.wavelengths)
    tokens = encoder((x - mean) / std, wavelengths=waves, gsd=10.0, time=unknown, latlon=unknown)
    wanted = {"class": tokens[:, 0], "mean": tokens[:, 1:].mean(1)}
    names = {"class": ["class"], "mean": ["mean"], "both": ["class", "mean"]}[embedding]
    for column, name in zip(("embeddings", "embeddings_mean"), names, strict=False):
        np.testing.assert_allclose(made.pop(column), wanted[name].numpy(), atol=2e-5)
    if patches:
        np.testing.assert_allclose(made.pop("patches"), tokens[:, 1:].flatten(1).numpy(), atol=5e-3)
    assert not made


@pytest.mark.parametrize("device", DEVICES)
def test_batches_under_way_do_not_disturb_one_another(encoder_file, device):
    embed = Embedder(weights.load_encoder(encoder_file, device=device), WORLDCOVER, EmbedPolicy("zeros"), 4)
    groups = [chips(4, seed) for seed in range(5)] + [chips(2, 9)]
    alone = [embed(group)["embeddings"] for group in groups]
    started, made = [], []
    for group in groups:
        started.append(embed.start(group))
        if len(started) > embed.ahead:
            made.append(started.pop(0)()["embeddings"])
    made += [collect()["embeddings"] for collect in started]
    assert [len(m) for m in made] == [4, 4, 4, 4, 4, 2]
    for ours, theirs in zip(made, alone, strict=True):
        assert np.array_equal(ours, theirs)


def test_a_batch_of_another_shape_or_type_finds_room(encoder):
    embed = Embedder(encoder, WORLDCOVER, EmbedPolicy("zeros"), 2)
    small, large = chips(2), [make_chip(0, pixels=np.full((4, 24, 24), 700, np.uint16))]
    first = embed(small)["embeddings"]
    assert embed(large)["embeddings"].shape == (1, first.shape[1])
    for chip in small:
        chip.pixels = chip.pixels.astype(np.float32)
    assert np.array_equal(embed(small)["embeddings"], first)


FREED = """\
import resource, torch
from kiln.model.embedder import keep_memory
kept = keep_memory()
for _ in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(kept, faults * resource.getpagesize())
"""


def test_freed_memory_is_kept_for_the_next_batch():
    """64 MB, taken again and again in a process of its own: in the end no page is faulted in. Not glibc says so."""
    done = subprocess.run([sys.executable, "-c", FREED], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    kept, faulted = done.stdout.split()
    assert kept == str(platform.libc_ver()[0] == "glibc")
    assert kept == "False" or int(faulted) < 1 << 22
