"""The encoder against the reference's numbers, and the loader against damaged, foreign and full-size files."""

import copy
import json
import math
import pickle
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from scripts.kiln import clay, encoders
from scripts.kiln.errors import WeightsError
from scripts.kiln.fingerprint import PRECISIONS
from tests import golden

DATA = Path(__file__).parent.parent / "data"
QKV = "model.encoder.transformer.layers.1.0.to_qkv.weight"


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def micro(request: pytest.FixtureRequest, checkpoint_file: Path) -> clay.ClayEncoder:
    return encoders.load_encoder(checkpoint_file, precision=request.param)


@pytest.fixture(scope="module")
def micro32(checkpoint_file: Path) -> clay.ClayEncoder:
    return encoders.load_encoder(checkpoint_file)


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Writes the small checkpoint after `change(checkpoint)`."""

    def save(change: Callable[[dict[str, Any]], None]) -> Path:
        checkpoint = golden.checkpoint()
        change(checkpoint)
        torch.save(checkpoint, tmp_path / "changed.ckpt")
        return tmp_path / "changed.ckpt"

    return save


def encode(encoder: clay.ClayEncoder, pixels: torch.Tensor, waves: list[float] | None = None, gsd: float = 10.0):
    """Tokens of pixels [B, C, H, W] at an unknown time and place."""
    unknown = torch.zeros(len(pixels), 4)
    waves_ = torch.tensor(waves or [0.665, 0.56, 0.493, 0.842])
    return encoder(pixels, wavelengths=waves_, gsd=gsd, time=unknown, latlon=unknown)


# ---------------------------------------------------------------------------------------- golden numbers


@pytest.mark.parametrize("case", golden.CASES)
def test_tokens_equal_the_reference_implementation(micro, case):
    about, reference = golden.CASES[case], golden.figures(case)
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
    state = golden.checkpoint()["state_dict"]  # the last draws tell that none before them went astray
    assert state["model.proj.weight"][0, 0].item() == pytest.approx(-1.5500636, abs=1e-6)
    assert state["model.encoder.cls_token"][0, 0, 0].item() == pytest.approx(-0.0102160, abs=1e-6)
    for case, last in (("sentinel2_256", -0.851), ("naip_256", -1.11), ("worldcover_512", 0.207)):
        assert golden.pixels(case)[-1, -1, -1, -1].item() == pytest.approx(last, abs=1e-3)


def test_the_drawn_checkpoint_is_bit_equal_to_the_kept_one(shared):
    if shared is None:
        pytest.skip("no shared test data")
    kept = torch.load(shared / "golden/clay_v1.5_micro.ckpt", weights_only=True)["state_dict"]
    drawn = golden.checkpoint()["state_dict"]
    assert list(kept) == list(drawn)
    assert [k for k in kept if not torch.equal(kept[k], drawn[k])] == []


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
        told = {"time": torch.zeros(1, 4), "latlon": torch.zeros(1, 4)} | given
        waves = torch.tensor([0.665, 0.56, 0.493, 0.842])
        assert (micro32(pixels, wavelengths=waves, gsd=10.0, **told)[0, 0] - plain).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("shape", "waves", "meta", "says"),
    [
        ((1, 4, 12, 16), 4, (1, 4), "multiple of the patch"),
        ((1, 4, 16, 15), 4, (1, 4), "multiple of the patch"),
        ((1, 4, 0, 16), 4, (1, 4), "multiple of the patch"),
        ((1, 4, 16, 16), 3, (1, 4), "3 wavelengths"),
        ((4, 16, 16), 4, (4, 4), r"want \[B, C, H, W\]"),
        ((2, 4, 16, 16), 4, (1, 4), r"must be \[2, 4\]"),
        ((1, 4, 16, 16), 4, (1, 2), r"must be \[1, 4\]"),
    ],
)
def test_shapes_that_do_not_fit_are_value_errors(micro32, shape, waves, meta, says):
    with pytest.raises(ValueError, match=says):
        micro32(
            torch.zeros(shape),
            wavelengths=torch.full((waves,), 0.5),
            gsd=10.0,
            time=torch.zeros(meta),
            latlon=torch.zeros(meta),
        )


# -------------------------------------------------------------------------------------------- encodings


def hand_position(row: int, col: int, dim: int, gsd: float) -> list[float]:
    """The formula of the design in double precision, channel by channel."""
    n = dim // 4
    omega = [gsd / 10000 ** (2 * (i / (n - 1)) / dim) for i in range(n)]
    parts = ((math.sin, col), (math.cos, col), (math.sin, row), (math.cos, row))
    return [f(at * w) for f, at in parts for w in omega]


@pytest.mark.parametrize("gsd", [0.6, 1.0, 10.0])
def test_positions_are_the_published_formula_also_at_31_patches(gsd):
    made = clay.position_encoding(32, 3, 1016, gsd, torch.device("cpu"))
    assert made.shape == (96, 1016)
    for row, col in ((0, 0), (0, 2), (31, 0), (31, 2)):
        expected = torch.tensor(hand_position(row, col, 1016, gsd))
        torch.testing.assert_close(made[row * 3 + col], expected, rtol=0, atol=5e-5)


def test_wavelengths_are_encoded_as_sines_then_cosines_of_micrometres():
    made = clay.wave_encoding(torch.tensor([0.665, 2.19]), 128)
    assert made.shape == (2, 128)
    assert made[1, 0].item() == pytest.approx(math.sin(2.19), abs=1e-6)
    assert made[1, 64].item() == pytest.approx(math.cos(2.19), abs=1e-6)
    assert made[0, 63].item() == pytest.approx(0.665e-4, rel=1e-3)  # omega of the last is 1/10000
    assert made[0, 32].item() == pytest.approx(math.sin(0.665 * 10000 ** (-32 / 63)), abs=1e-6)


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


# ---------------------------------------------------------------------------------------------- loading


def test_geometry_is_read_from_shapes_and_hyper_parameters(micro32):
    assert micro32.geometry == clay.Geometry(64, 2, 4, 16, 128, 8, 128, 128, 2048)
    assert not any(p.requires_grad for p in micro32.parameters())


def test_surplus_keys_outside_the_encoder_are_ignored(saved, micro32):
    def change(c: dict[str, Any]) -> None:
        c["state_dict"] |= {
            "model.decoder.dec_pos": torch.zeros(3, 7),
            "model.teacher.blocks.0.weight": torch.zeros(2),
            "model.proj.bias": torch.zeros(4, dtype=torch.int64),
        }
        c["optimizer_states"] = [{"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3}]}]

    pixels = golden.pixels("naip_256")[:1, :, :32, :32]
    assert torch.equal(encode(encoders.load_encoder(saved(change)), pixels), encode(micro32, pixels))


@pytest.mark.parametrize(
    "name",
    [
        "cls_token",
        "patch_embedding.weight_generator.bias_token",
        "patch_embedding.weight_generator.fc_weight.weight",
        "patch_embedding.fclayer.l2.bias",
        "transformer.layers.0.0.to_qkv.weight",
        "transformer.layers.1.1.net.3.bias",
        "transformer.norm.weight",
    ],
)
def test_a_missing_tensor_is_an_error_that_names_it(saved, name):
    path = saved(lambda c: c["state_dict"].pop(f"model.encoder.{name}"))
    with pytest.raises(WeightsError, match=rf"changed\.ckpt: .*model\.encoder\.{name.replace('.', '[.]')}"):
        encoders.load_encoder(path)


@pytest.mark.parametrize(
    "name", ["register_tokens", "transformer.layers.1.0.to_qkv.bias", "transformer.layers.x.0.norm"]
)
def test_a_surplus_tensor_in_the_encoder_is_an_error_that_names_it(saved, name):
    path = saved(lambda c: c["state_dict"].update({f"model.encoder.{name}": torch.zeros(64)}))
    with pytest.raises(WeightsError, match=rf"model\.encoder\.{name}"):
        encoders.load_encoder(path)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("transformer.layers.1.0.to_qkv.weight", (191, 64)),
        ("transformer.layers.1.0.to_qkv.weight", (192, 64, 1)),
        ("transformer.norm.bias", (65,)),
        ("transformer.layers.0.0.to_qkv.weight", (190, 64)),
        ("cls_token", (64,)),
        ("patch_embedding.weight_generator.fc_weight.weight", (4095, 128)),
        ("patch_embedding.weight_generator.weight_tokens", (128,)),
    ],
)
def test_a_misshapen_tensor_is_an_error_that_names_it(saved, name, shape):
    path = saved(lambda c: c["state_dict"].update({f"model.encoder.{name}": torch.zeros(shape)}))
    with pytest.raises(WeightsError, match=rf"changed\.ckpt: .*model\.encoder\.{name.replace('.', '[.]')}"):
        encoders.load_encoder(path)


@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        ("cls_token", (1, 1, 60), r"norm\.weight has shape \(64,\), want \(60,\)"),
        (
            "patch_embedding.weight_generator.weight_tokens",
            (128, 120),
            r"bias_token has shape \(1, 128\), want \(1, 120\)",
        ),
        ("transformer.layers.0.1.net.1.weight", (100, 64), r"net\.3\.weight has shape \(64, 128\), want \(64, 100\)"),
    ],
)
def test_a_tensor_that_sizes_are_read_from_contradicts_the_others(saved, name, shape, says):
    path = saved(lambda c: c["state_dict"].update({f"model.encoder.{name}": torch.zeros(shape)}))
    with pytest.raises(WeightsError, match=says):
        encoders.load_encoder(path)


def test_a_tensor_of_integers_is_an_error_that_names_it(saved):
    path = saved(lambda c: c["state_dict"].update({QKV: torch.zeros(192, 64, dtype=torch.int8)}))
    with pytest.raises(WeightsError, match=r"layers\.1\.0\.to_qkv\.weight is torch\.int8"):
        encoders.load_encoder(path)


def test_heads_that_contradict_the_shapes_are_an_error(saved):
    path = saved(lambda c: c["hyper_parameters"].update(encoder_heads=5))
    with pytest.raises(WeightsError, match="5 heads of 16 make 80 channels"):
        encoders.load_encoder(path)


def test_without_own_head_sizes_the_model_size_decides(saved):
    def change(c: dict[str, Any]) -> None:
        c["hyper_parameters"] = {"model_size": "large"}

    with pytest.raises(WeightsError, match="16 heads of 64 make 1024 channels"):
        encoders.load_encoder(saved(change))


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_truncated_checkpoint_is_an_error_that_names_the_file(tmp_path, checkpoint_file, share):
    whole = checkpoint_file.read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(WeightsError, match=r"cut\.ckpt: truncated"):
        encoders.load_encoder(tmp_path / "cut.ckpt")


@pytest.mark.parametrize("share", [0.0001, 0.001, 0.5, 0.9999])
def test_a_truncated_safetensors_file_is_an_error_that_names_the_file(tmp_path, encoder_file, share):
    whole = encoder_file.read_bytes()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(WeightsError, match=r"cut\.safetensors: "):
        encoders.load_encoder(cut)
    with pytest.raises(WeightsError, match=r"cut\.safetensors: "):
        encoders.read_about(cut)


@pytest.mark.parametrize(
    "content",
    [b"", b"x", b"<html>404</html>", b"12345678{}", pickle.dumps({"a": 1}), b"PK\x03\x04nothing", bytes(4096)],
    ids=["empty", "one byte", "html", "json", "pickle", "zip", "zeros"],
)
def test_a_file_of_something_else_is_an_error_that_names_the_file(tmp_path, content):
    path = tmp_path / "other.bin"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"other\.bin"):
        encoders.load_encoder(path)
    with pytest.raises(WeightsError, match=r"other\.bin"):
        encoders.read_about(path)


def test_a_missing_file_and_a_folder_are_errors_that_say_what_to_do(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        for read in (encoders.load_encoder, encoders.read_about):
            with pytest.raises(WeightsError, match="no such weights file; make it with"):
                read(path)


class Runs:
    """Code that a pickle would run when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def test_code_in_a_checkpoint_does_not_run(tmp_path, saved):
    trap = tmp_path / "ran"
    path = saved(lambda c: c.update(extra=Runs(trap)))
    torch.load(path, weights_only=False)
    assert trap.exists()  # it is live
    trap.unlink()
    with pytest.raises(WeightsError, match="not a checkpoint of tensors alone"):
        encoders.load_encoder(path)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"cls_token": torch.zeros(1, 1, 64)}, "without `state_dict`"),
        ([torch.zeros(3)], "without `state_dict`"),
        ({"state_dict": {"cls_token": torch.zeros(1, 1, 64)}}, r"no tensor named model\.encoder\."),
    ],
    ids=["plain state dict", "list", "no prefix"],
)
def test_tensors_of_another_layout_are_an_error(tmp_path, content, says):
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(WeightsError, match=says):
        encoders.load_encoder(tmp_path / "other.ckpt")


def test_a_tensor_missing_from_safetensors_is_an_error_that_names_it(tmp_path, encoder_file):
    tensors = load_file(encoder_file)
    del tensors["transformer.norm.bias"]
    kiln = json.dumps({"encoder_heads": 2, "encoder_dim_head": 16})
    save_file(tensors, tmp_path / "some.safetensors", metadata={"kiln": kiln})
    with pytest.raises(WeightsError, match=r"some\.safetensors: model\.encoder\.transformer\.norm\.bias is missing"):
        encoders.load_encoder(tmp_path / "some.safetensors")
    with pytest.raises(WeightsError, match="not made by `snakemake encoder_weights`"):
        encoders.read_about(tmp_path / "some.safetensors")


# --------------------------------------------------------------------------------------- saving, drawing


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tokens_after_a_safetensors_round_trip_are_bit_equal(tmp_path, checkpoint_file, precision):
    first = encoders.load_encoder(checkpoint_file, precision=precision)
    path = tmp_path / "encoder.safetensors"
    encoders.save_encoder(first, path, {"sha256": "ab", "precision": precision})
    again = encoders.load_encoder(path, precision=precision)
    assert again.geometry == first.geometry  # 4 heads of 16, which no shape tells
    pixels = golden.pixels("naip_256")[:, :, :64, :48]
    assert torch.equal(encode(again, pixels), encode(first, pixels))
    assert again.cls_token.dtype == encoders.DTYPES[precision]
    about = encoders.read_about(path)
    assert (about["sha256"], about["precision"], about["geometry"]["dim"]) == ("ab", precision, 64)


def test_equal_weights_make_byte_equal_safetensors(tmp_path, checkpoint_file):
    for name in ("a", "b"):
        encoders.save_encoder(
            encoders.load_encoder(checkpoint_file), tmp_path / name, {"sha256": "ab", "precision": "float32"}
        )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_untrained_weights_depend_on_seed_and_geometry_alone():
    small = clay.Geometry(dim=32, depth=1, heads=2, dim_head=16, mlp=64)
    first = encoders.untrained_encoder(small, 1)
    torch.rand(7)  # somebody else draws
    again = encoders.untrained_encoder(small, 1)
    other = encoders.untrained_encoder(small, 2)
    a, b, c = (e.state_dict() for e in (first, again, other))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["cls_token"], c["cls_token"])
    pixels = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    vectors = encode(first, pixels)[:, 0]
    assert vectors.isfinite().all()
    assert (vectors[0] - vectors[1]).abs().max() > 1e-2  # places stay apart


# -------------------------------------------------------------------------------------------- full size


def test_the_full_size_layout_is_the_published_one():
    published = json.loads((DATA / "clay_v1.5_large_encoder_shapes.json").read_text())
    with torch.device("meta"):
        encoder = clay.ClayEncoder(clay.Geometry())
    assert len(published) == 265
    assert {f"model.encoder.{k}": list(v.shape) for k, v in encoder.state_dict().items()} == published
    assert sum(math.prod(s) for s in published.values()) == pytest.approx(311e6, rel=0.01)


def test_a_full_size_checkpoint_loads_in_bfloat16_and_encodes(tmp_path):
    shapes = json.loads((DATA / "clay_v1.5_large_encoder_shapes.json").read_text())
    noise = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)) * 0.02
    state = {}
    for name, shape in shapes.items():
        size = math.prod(shape)
        tensor = noise.repeat(-(-size // len(noise)))[:size].view(shape)
        state[name] = 1 + tensor if "norm" in name and name.endswith("weight") else tensor
    state["model.decoder.mask_patch"] = torch.zeros(512)
    path = tmp_path / "clay-v1.5.ckpt"
    torch.save({"state_dict": state, "hyper_parameters": {"model_size": "large"}}, path)
    del state
    try:
        encoder = encoders.load_encoder(path, precision="bfloat16")
        assert encoder.geometry == clay.Geometry()
        assert {p.dtype for p in encoder.parameters()} == {torch.bfloat16}
        tokens = encode(encoder, torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(1)))
        assert tokens.shape == (1, 65, 1024)
        assert tokens.isfinite().all()
    finally:
        path.unlink()


def test_the_encoder_can_be_copied_without_its_caches_growing_for_ever(micro32):
    encoder = copy.deepcopy(micro32)
    for n in range(clay.CACHED + 5):
        encode(encoder, torch.zeros(1, 4, 8, 8), gsd=1.0 + n, waves=[0.5 + n / 100, 0.6, 0.7, 0.8])
    assert len(encoder._kernels) == len(encoder._positions) == clay.CACHED
