"""The encoder against the reference's numbers: tokens, shapes, encodings, the published sizes."""

import copy
import json
import math
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from kiln.model import clay, weights
from tests import DATA
from tests.support import golden
from tests.support.golden import encode

QKV = "model.encoder.transformer.layers.1.0.to_qkv.weight"


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def micro(request: pytest.FixtureRequest, checkpoint_file: Path) -> clay.ClayEncoder:
    return weights.load_encoder(checkpoint_file, precision=request.param)


@pytest.fixture(scope="module")
def micro32(checkpoint_file: Path) -> clay.ClayEncoder:
    return weights.load_encoder(checkpoint_file)


# ---------------------------------------------------------------------------------------- golden numbers


@pytest.mark.parametrize("case", golden.CASES)
def test_tokens_equal_the_reference_implementation(micro, case):
    about, reference = golden.CASES[case], golden.reference_outputs(case)
    tokens = micro(
        golden.pixels(case),
        wavelengths=torch.tensor(about["waves"]),
        gsd=about["gsd"],
        time=reference["time"],
        latlon=reference["latlon"],
    )
    assert tokens.shape == (about["batch"], 1 + (about["size"] // 8) ** 2, 64)
    tokens = tokens.float()
    ours = {
        "cls": tokens[:, 0],
        "patch_mean": tokens[:, 1:].mean(1),
        "patch_first": tokens[:, 1],
        "patch_last": tokens[:, -1],
    }
    for kind in golden.OUTPUTS:
        if micro.cls_token.dtype == torch.float32:
            torch.testing.assert_close(ours[kind], reference[kind], rtol=0, atol=1e-4)
        assert torch.cosine_similarity(ours[kind], reference[kind]).min() >= 0.999, kind


def test_the_drawn_checkpoint_and_pixels_are_the_reference_s():
    state = golden.checkpoint()["state_dict"]  # if the last draws are right, so are all before them
    assert state["model.proj.weight"][0, 0].item() == pytest.approx(-1.5500636, abs=1e-6)
    assert state["model.encoder.cls_token"][0, 0, 0].item() == pytest.approx(-0.0102160, abs=1e-6)
    for case, last in (("sentinel2_256", -0.851), ("naip_256", -1.11), ("worldcover_512", 0.207)):
        assert golden.pixels(case)[-1, -1, -1, -1].item() == pytest.approx(last, abs=1e-3)


def test_the_drawn_checkpoint_is_bit_equal_to_the_stored_one(shared):
    if shared is None:
        pytest.skip("no shared test data")
    stored = torch.load(shared / "golden/clay_v1.5_micro.ckpt", weights_only=True)["state_dict"]
    drawn = golden.checkpoint()["state_dict"]
    assert list(stored) == list(drawn)
    assert [k for k in stored if not torch.equal(stored[k], drawn[k])] == []


# ----------------------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize("size", [(8, 8), (8, 40), (24, 16), (64, 32)])
def test_chips_of_any_multiple_of_the_patch_are_encoded(micro32, size):
    tokens = encode(micro32, torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(1)))
    assert tokens.shape == (2, 1 + size[0] * size[1] // 64, 64)
    assert tokens.isfinite().all()


def test_patches_of_an_oblong_chip_are_in_row_major_order(micro32):
    embed = micro32.patch_embedding
    kernel, bias = embed.kernels(torch.tensor([0.665, 0.56, 0.493, 0.842]))
    assert kernel.shape == (64, 4, 8, 8)
    pixels = torch.randn(1, 4, 16, 32, generator=torch.Generator().manual_seed(2))
    patch = torch.einsum("dchw,chw->d", kernel, pixels[0, :, 8:16, 16:24]) + bias  # row 1, column 2: patch 6
    seen = {}
    hook = micro32.transformer.register_forward_pre_hook(lambda m, args: seen.update(x=args[0]))
    encode(micro32, pixels)
    hook.remove()
    position = torch.tensor(hand_position(1, 2, 56, 10.0) + [0.0] * 8)
    torch.testing.assert_close(seen["x"][0, 1 + 6], patch + position, rtol=0, atol=2e-5)
    torch.testing.assert_close(seen["x"][0, 0], micro32.cls_token[0, 0])


def test_a_vector_depends_on_gsd_time_place_and_wavelengths(micro32):
    pixels = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    plain = encode(micro32, pixels)[0, 0]
    assert (encode(micro32, pixels, gsd=1.0)[0, 0] - plain).abs().max() > 1e-4
    assert (encode(micro32, pixels, waves=[0.65, 0.56, 0.48, 0.842])[0, 0] - plain).abs().max() > 1e-4
    for given in ({"time": torch.ones(1, 4)}, {"latlon": torch.ones(1, 4)}):
        inputs = {"time": torch.zeros(1, 4), "latlon": torch.zeros(1, 4)} | given
        waves = torch.tensor([0.665, 0.56, 0.493, 0.842])
        assert (micro32(pixels, wavelengths=waves, gsd=10.0, **inputs)[0, 0] - plain).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("shape", "waves", "meta", "message"),
    [
        ((1, 4, 12, 16), 4, (1, 4), "expected H and W in multiples of 8"),
        ((1, 4, 16, 15), 4, (1, 4), "expected H and W in multiples of 8"),
        ((1, 4, 0, 16), 4, (1, 4), "expected H and W in multiples of 8"),
        ((1, 4, 16, 16), 3, (1, 4), r"pixels: expected \[B, 3, H, W\]"),
        ((4, 16, 16), 4, (4, 4), r"pixels: expected \[B, 4, H, W\]"),
        ((2, 4, 16, 16), 4, (1, 4), r"time and latlon: expected \[2, 4\]"),
        ((1, 4, 16, 16), 4, (1, 2), r"time and latlon: expected \[1, 4\]"),
    ],
)
def test_shapes_that_do_not_fit_are_value_errors(micro32, shape, waves, meta, message):
    with pytest.raises(ValueError, match=message):
        micro32(
            torch.zeros(shape),
            wavelengths=torch.full((waves,), 0.5),
            gsd=10.0,
            time=torch.zeros(meta),
            latlon=torch.zeros(meta),
        )


# -------------------------------------------------------------------------------------------- encodings


def hand_position(row: int, col: int, dim: int, gsd: float) -> list[float]:
    """Compute the formula of the design in double precision, channel by channel."""
    n = dim // 4
    omega = [gsd / 10000 ** (2 * (i / (n - 1)) / dim) for i in range(n)]
    parts = ((math.sin, col), (math.cos, col), (math.sin, row), (math.cos, row))
    return [f(at * w) for f, at in parts for w in omega]


@pytest.mark.parametrize("gsd", [0.6, 1.0, 10.0])
def test_positions_are_the_published_formula_also_at_31_patches(gsd):
    encoded = clay.position_encoding(32, 3, 1016, gsd, torch.device("cpu"))
    assert encoded.shape == (96, 1016)
    for row, col in ((0, 0), (0, 2), (31, 0), (31, 2)):
        expected = torch.tensor(hand_position(row, col, 1016, gsd))
        torch.testing.assert_close(encoded[row * 3 + col], expected, rtol=0, atol=5e-5)


def test_wavelengths_are_encoded_as_sines_then_cosines_of_micrometres():
    encoded = clay.wave_encoding(torch.tensor([0.665, 2.19]), 128)
    assert encoded.shape == (2, 128)
    assert encoded[1, 0].item() == pytest.approx(math.sin(2.19), abs=1e-6)
    assert encoded[1, 64].item() == pytest.approx(math.cos(2.19), abs=1e-6)
    assert encoded[0, 63].item() == pytest.approx(0.665e-4, rel=1e-3)  # omega of the last is 1/10000
    assert encoded[0, 32].item() == pytest.approx(math.sin(0.665 * 10000 ** (-32 / 63)), abs=1e-6)


def test_time_is_the_iso_week_of_52_at_noon():
    # 2020-02-19 is in ISO week 8: 8 * 2 pi / 52 = 0.96664 rad
    assert clay.encode_time(datetime(2020, 2, 19, 23, 59, tzinfo=UTC)) == pytest.approx(
        [0.822984, 0.568065, 0, -1], abs=1e-6
    )
    # 2021-01-01 is in ISO week 53 of 2020
    assert clay.encode_time(datetime(2021, 1, 1, tzinfo=UTC)) == pytest.approx([0.120537, 0.992709, 0, -1], abs=1e-6)
    assert clay.encode_time(None) == [0, 0, 0, 0]


def test_place_is_longitude_first_in_radians():
    assert clay.encode_latlon(90, 30) == pytest.approx([1, 0, 0.5, 0.866025], abs=1e-6)
    assert clay.encode_latlon(-60, -90) == pytest.approx([-0.866025, 0.5, -1, 0], abs=1e-6)


# -------------------------------------------------------------------------------------------- full size


def test_the_full_size_layout_is_the_published_one():
    published = json.loads((DATA / "clay_v1.5_large_encoder_shapes.json").read_text())
    with torch.device("meta"):
        encoder = clay.ClayEncoder(clay.Geometry())
    assert len(published) == 265
    assert {f"model.encoder.{k}": list(v.shape) for k, v in encoder.state_dict().items()} == published
    assert sum(math.prod(s) for s in published.values()) == pytest.approx(311e6, rel=0.01)


def test_the_caches_of_a_copied_encoder_have_a_limit(micro32):
    encoder = copy.deepcopy(micro32)
    for n in range(clay.MAX_CACHED + 5):
        encode(encoder, torch.zeros(1, 4, 8, 8), gsd=1.0 + n, waves=[0.5 + n / 100, 0.6, 0.7, 0.8])
    assert len(encoder._kernels) == len(encoder._positions) == clay.MAX_CACHED
