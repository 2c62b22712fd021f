"""Chips to vectors: normalisation, inputs of the model, padding, kinds of vectors, concurrent batches."""

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

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]  # also on a GPU if there is one


def chips(count: int, seed: int = 4) -> list:
    rng = np.random.default_rng(seed)
    return [make_chip(n, pixels=rng.integers(0, 4000, (4, 16, 16)).astype(np.uint16)) for n in range(count)]


@pytest.mark.parametrize("when", [None, datetime(2020, 2, 19, tzinfo=UTC)])
@pytest.mark.parametrize("metadata", ["zeros", "as_trained"])
def test_time_and_place_are_passed_to_the_model_together_or_not_at_all(encoder, metadata, when):
    pixels = np.random.default_rng(2).normal(size=(2, 16, 16)).astype(np.float32)
    chip = make_chip(30, pixels=pixels, datetime=when)
    ours = Embedder(encoder, PLAIN, EmbedPolicy(metadata, 3.0), 2)([chip])["embeddings"]
    known = metadata == "as_trained" and when is not None
    inputs = {"time": clay.encode_time(when) if known else [0.0] * 4}
    inputs["latlon"] = clay.encode_latlon(-149.5, 10.5) if known else [0.0] * 4
    inputs = {k: torch.tensor([v]) for k, v in inputs.items()}
    theirs = encoder(torch.from_numpy(pixels)[None], wavelengths=torch.tensor([0.5, 0.6]), gsd=3.0, **inputs)[:, 0]
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
    about, reference = golden.CASES[case], golden.reference_outputs(case)
    metadata = {name: iter(reference[name].tolist()) for name in ("time", "latlon")}
    monkeypatch.setattr(batch, "encode_time", lambda when: next(metadata["time"]))
    monkeypatch.setattr(batch, "encode_latlon", lambda lon, lat: next(metadata["latlon"]))
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
def test_every_kind_of_vector_follows_from_all_tokens(encoder, encoder_file, embedding, patches, device):
    some = chips(3)
    device_encoder = weights.load_encoder(encoder_file, device=device)
    columns = Embedder(device_encoder, WORLDCOVER, EmbedPolicy("zeros", 10.0, "float32", embedding, patches), 4)(some)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (WORLDCOVER.mean, WORLDCOVER.std))
    x = torch.stack([torch.from_numpy(c.pixels.astype(np.float32)) for c in some])
    unknown = torch.zeros(3, 4)
    waves = torch.tensor(WORLDCOVER.wavelengths)
    tokens = encoder((x - mean) / std, wavelengths=waves, gsd=10.0, time=unknown, latlon=unknown)
    expected = {"class": tokens[:, 0], "mean": tokens[:, 1:].mean(1)}
    names = {"class": ["class"], "mean": ["mean"], "both": ["class", "mean"]}[embedding]
    for column, name in zip(("embeddings", "embeddings_mean"), names, strict=False):
        np.testing.assert_allclose(columns.pop(column), expected[name].numpy(), atol=2e-5)
    if patches:
        np.testing.assert_allclose(columns.pop("patches"), tokens[:, 1:].flatten(1).numpy(), atol=5e-3)
    assert not columns


@pytest.mark.parametrize("device", DEVICES)
def test_concurrent_batches_do_not_affect_one_another(encoder_file, device):
    embed = Embedder(weights.load_encoder(encoder_file, device=device), WORLDCOVER, EmbedPolicy("zeros"), 4)
    groups = [chips(4, seed) for seed in range(5)] + [chips(2, 9)]
    alone = [embed(group)["embeddings"] for group in groups]
    started, results = [], []
    for group in groups:
        started.append(embed.start(group))
        if len(started) > embed.ahead:
            results.append(started.pop(0)()["embeddings"])
    results += [collect()["embeddings"] for collect in started]
    assert [len(m) for m in results] == [4, 4, 4, 4, 4, 2]
    for ours, theirs in zip(results, alone, strict=True):
        assert np.array_equal(ours, theirs)


def test_a_batch_of_another_shape_or_type_is_embedded(encoder):
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
enabled = keep_memory()
for _ in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(enabled, faults * resource.getpagesize())
"""


def test_freed_memory_is_reused_by_the_next_batch():
    """A process allocates 64 MB repeatedly: in the end no page is faulted in. Without glibc `keep_memory` is False."""
    done = subprocess.run([sys.executable, "-c", FREED], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    enabled, faulted = done.stdout.split()
    assert enabled == str(platform.libc_ver()[0] == "glibc")
    assert enabled == "False" or int(faulted) < 1 << 22
