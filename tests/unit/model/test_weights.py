"""Encoders in files: sizes, damaged and other files, round trips, drawn weights, the full size."""

import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from kiln.errors import WeightsError
from kiln.model import clay, weights
from kiln.model.content_digest import KEY, content_digest
from kiln.model.identity import PRECISIONS
from tests import DATA
from tests.support import golden
from tests.support.golden import encode

QKV = "model.encoder.transformer.layers.1.0.to_qkv.weight"


@pytest.fixture(scope="module")
def micro32(checkpoint_file: Path) -> clay.ClayEncoder:
    return weights.load_encoder(checkpoint_file)


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes the small checkpoint after `change(checkpoint)`."""

    def save(change: Callable[[dict[str, Any]], None]) -> Path:
        checkpoint = golden.checkpoint()
        change(checkpoint)
        torch.save(checkpoint, tmp_path / "changed.ckpt")
        return tmp_path / "changed.ckpt"

    return save


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
    assert torch.equal(encode(weights.load_encoder(saved(change)), pixels), encode(micro32, pixels))


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
        weights.load_encoder(path)


@pytest.mark.parametrize(
    "name", ["register_tokens", "transformer.layers.1.0.to_qkv.bias", "transformer.layers.x.0.norm"]
)
def test_a_surplus_tensor_in_the_encoder_is_an_error_that_names_it(saved, name):
    path = saved(lambda c: c["state_dict"].update({f"model.encoder.{name}": torch.zeros(64)}))
    with pytest.raises(WeightsError, match=rf"model\.encoder\.{name}"):
        weights.load_encoder(path)


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
        weights.load_encoder(path)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("cls_token", (1, 1, 60), r"norm\.weight: expected shape \(60,\), got \(64,\)"),
        (
            "patch_embedding.weight_generator.weight_tokens",
            (128, 120),
            r"bias_token: expected shape \(1, 120\), got \(1, 128\)",
        ),
        (
            "transformer.layers.0.1.net.1.weight",
            (100, 64),
            r"net\.3\.weight: expected shape \(64, 100\), got \(64, 128\)",
        ),
    ],
)
def test_a_tensor_that_contradicts_the_sizes_of_others_is_an_error(saved, name, shape, message):
    path = saved(lambda c: c["state_dict"].update({f"model.encoder.{name}": torch.zeros(shape)}))
    with pytest.raises(WeightsError, match=message):
        weights.load_encoder(path)


def test_a_tensor_of_integers_is_an_error_that_names_it(saved):
    path = saved(lambda c: c["state_dict"].update({QKV: torch.zeros(192, 64, dtype=torch.int8)}))
    with pytest.raises(WeightsError, match=r"layers\.1\.0\.to_qkv\.weight is torch\.int8"):
        weights.load_encoder(path)


def test_heads_that_contradict_the_shapes_are_an_error(saved):
    path = saved(lambda c: c["hyper_parameters"].update(encoder_heads=5))
    with pytest.raises(WeightsError, match="expected 80 channels for 5 heads of 16, got 64"):
        weights.load_encoder(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["state_dict"].update({QKV: 5}), "to_qkv.weight: expected a tensor, got <class 'int'>"),
        (lambda c: c["state_dict"].update({QKV: None}), "to_qkv.weight: expected a tensor, got <class 'NoneType'>"),
        (lambda c: c["state_dict"].update({QKV: c["state_dict"][QKV].to_sparse()}), "without plain values"),
        (lambda c: c["state_dict"].update({QKV: torch.empty(192, 64, device="meta")}), "without plain values"),
        (lambda c: c["state_dict"].update({QKV: torch.zeros(192, 64).to(torch.complex64)}), "is torch.complex64"),
        (
            lambda c: c["state_dict"].update({"model.encoder.cls_token": torch.empty(1, 1, 0)}),
            "expected numbers, got an empty tensor",
        ),
        (
            lambda c: c["state_dict"].update({"model.encoder.transformer.layers.99999999999.x": torch.zeros(1)}),
            "layers.99999999999.x is not of this encoder",
        ),
        (lambda c: c.update(state_dict=[1]), "got a file without `state_dict`"),
        (lambda c: c.update(hyper_parameters=[1]), "hyper_parameters: expected names and values, got <class 'list'>"),
        (lambda c: c["hyper_parameters"].update(encoder_heads="4"), "encoder_heads: expected a whole number from 1"),
        (
            lambda c: c["hyper_parameters"].update(encoder_dim_head=0),
            "encoder_dim_head: expected a whole number from 1",
        ),
        (lambda c: c["hyper_parameters"].update(encoder_heads=True), "encoder_heads: expected a whole number from 1"),
    ],
)
def test_a_checkpoint_with_values_of_other_kinds_is_an_error_of_one_line(saved, change, message):
    path = saved(change)
    with pytest.raises(WeightsError) as error:
        weights.load_encoder(path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_model_size_of_another_kind_is_none(saved, micro32):
    path = saved(lambda c: c["hyper_parameters"].update(model_size=["large"]))
    assert weights.load_encoder(path).geometry == micro32.geometry


def test_keys_that_are_no_text_are_outside_the_encoder(saved, micro32):
    path = saved(lambda c: c["state_dict"].update({5: torch.zeros(1)}))
    assert weights.load_encoder(path).geometry == micro32.geometry


def test_without_head_sizes_the_model_size_decides(saved):
    def change(c: dict[str, Any]) -> None:
        c["hyper_parameters"] = {"model_size": "large"}

    with pytest.raises(WeightsError, match="expected 1024 channels for 16 heads of 64, got 64"):
        weights.load_encoder(saved(change))


@pytest.mark.parametrize("fraction", [0.3, 0.9, 0.999])
def test_a_truncated_checkpoint_is_an_error_that_names_the_file(tmp_path, checkpoint_file, fraction):
    whole = checkpoint_file.read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: int(len(whole) * fraction)])
    with pytest.raises(WeightsError, match=r"cut\.ckpt: expected a weights file, got a truncated or other one"):
        weights.load_encoder(tmp_path / "cut.ckpt")


@pytest.mark.parametrize("fraction", [0.0001, 0.001, 0.5, 0.9999])
def test_a_truncated_safetensors_file_is_an_error_that_names_the_file(tmp_path, encoder_file, fraction):
    whole = encoder_file.read_bytes()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole[: int(len(whole) * fraction)])
    with pytest.raises(WeightsError, match=r"cut\.safetensors: "):
        weights.load_encoder(cut)
    with pytest.raises(WeightsError, match=r"cut\.safetensors: "):
        weights.read_metadata(cut)


@pytest.mark.parametrize(
    "content",
    [b"", b"x", b"<html>404</html>", b"12345678{}", pickle.dumps({"a": 1}), b"PK\x03\x04nothing", bytes(4096)],
    ids=["empty", "one byte", "html", "json", "pickle", "zip", "zeros"],
)
def test_a_file_of_something_else_is_an_error_that_names_the_file(tmp_path, content):
    path = tmp_path / "other.bin"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"other\.bin"):
        weights.load_encoder(path)
    with pytest.raises(WeightsError, match=r"other\.bin"):
        weights.read_metadata(path)


def test_a_missing_file_and_a_folder_are_errors_with_advice(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        for read in (weights.load_encoder, weights.read_metadata):
            with pytest.raises(WeightsError, match=r"expected a weights file, got none\. Make it with"):
                read(path)


class Runs:
    """Code that runs when a pickle is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def test_code_in_a_checkpoint_does_not_run(tmp_path, saved):
    trap = tmp_path / "ran"
    path = saved(lambda c: c.update(extra=Runs(trap)))
    torch.load(path, weights_only=False)
    assert trap.exists()  # the code works
    trap.unlink()
    with pytest.raises(WeightsError, match="expected a checkpoint of tensors alone, got one with code"):
        weights.load_encoder(path)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"cls_token": torch.zeros(1, 1, 64)}, "without `state_dict`"),
        ([torch.zeros(3)], "without `state_dict`"),
        ({"state_dict": {"cls_token": torch.zeros(1, 1, 64)}}, r"expected tensors named model\.encoder\."),
    ],
    ids=["plain state dict", "list", "no prefix"],
)
def test_tensors_of_another_layout_are_an_error(tmp_path, content, message):
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(WeightsError, match=message):
        weights.load_encoder(tmp_path / "other.ckpt")


def test_a_tensor_missing_from_safetensors_is_an_error_that_names_it(tmp_path, encoder_file):
    tensors = load_file(encoder_file)
    del tensors["transformer.norm.bias"]
    kiln = {"sha256": "ab", "precision": "float32", "geometry": {}, "encoder_heads": 2, "encoder_dim_head": 16}
    kiln[KEY] = content_digest(tensors, kiln)
    save_file(tensors, tmp_path / "some.safetensors", metadata={"kiln": json.dumps(kiln)})
    with pytest.raises(WeightsError, match=r"some\.safetensors: model\.encoder\.transformer\.norm\.bias is missing"):
        weights.load_encoder(tmp_path / "some.safetensors")


@pytest.mark.parametrize(
    "metadata", [None, {"kiln": "{}"}, {"kiln": "[]"}, {"kiln": "{"}, {"kiln": '{"sha256": "ab"}'}]
)
def test_safetensors_of_another_tool_are_an_error(tmp_path, encoder_file, metadata):
    path = tmp_path / "other.safetensors"
    save_file(load_file(encoder_file), path, metadata=metadata)
    for read in (weights.load_encoder, weights.read_metadata):
        with pytest.raises(
            WeightsError, match=r"other\.safetensors: expected (the metadata of Kiln|JSON metadata), got"
        ):
            read(path)


# --------------------------------------------------------------------------------------- saving, drawing


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tokens_after_a_safetensors_round_trip_are_bit_equal(tmp_path, checkpoint_file, precision):
    first = weights.load_encoder(checkpoint_file, precision=precision)
    path = tmp_path / "encoder.safetensors"
    weights.save_encoder(first, path, {"sha256": "ab", "precision": precision})
    again = weights.load_encoder(path, precision=precision)
    assert again.geometry == first.geometry  # 4 heads of 16, which follow from no shape
    pixels = golden.pixels("naip_256")[:, :, :64, :48]
    assert torch.equal(encode(again, pixels), encode(first, pixels))
    assert again.cls_token.dtype == weights.DTYPES[precision]
    about = weights.read_metadata(path)
    assert (about["sha256"], about["precision"], about["geometry"]["dim"]) == ("ab", precision, 64)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tokens_do_not_depend_on_where_tensors_begin_in_a_file(tmp_path, checkpoint_file, precision):
    first = weights.load_encoder(checkpoint_file, precision=precision)
    pixels = golden.pixels("naip_256")[:, :, :64, :48]
    expected, path = encode(first, pixels), tmp_path / "encoder.safetensors"
    for characters in range(0, 64, 8):  # of a name, as that of the checkpoint
        about = {"sha256": "ab", "precision": precision, "checkpoint": "c" * characters}
        weights.save_encoder(first, path, about)
        length = int.from_bytes(path.read_bytes()[:8], "little")
        assert (8 + length) % weights.ALIGNMENT_BYTES == 0
        with safe_open(path, framework="pt") as file:
            text = file.metadata()["kiln"]
        save_file(load_file(path), path, metadata={"kiln": text + " " * characters})  # as another writer aligns them
        assert torch.equal(encode(weights.load_encoder(path, precision=precision), pixels), expected)


def test_equal_weights_make_byte_equal_safetensors(tmp_path, checkpoint_file):
    for name in ("a", "b"):
        weights.save_encoder(
            weights.load_encoder(checkpoint_file), tmp_path / name, {"sha256": "ab", "precision": "float32"}
        )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_untrained_weights_depend_on_seed_and_geometry_alone():
    small = clay.Geometry(dim=32, depth=1, heads=2, dim_head=16, mlp=64)
    first = weights.untrained_encoder(small, 1)
    torch.rand(7)  # another draw from the global generator
    again = weights.untrained_encoder(small, 1)
    other = weights.untrained_encoder(small, 2)
    a, b, c = (e.state_dict() for e in (first, again, other))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["cls_token"], c["cls_token"])
    pixels = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    vectors = encode(first, pixels)[:, 0]
    assert vectors.isfinite().all()
    assert (vectors[0] - vectors[1]).abs().max() > 1e-2  # other pixels give another vector


def test_a_full_size_checkpoint_loads_in_bfloat16_and_encodes(tmp_path):
    shapes = json.loads((DATA / "clay_v1.5_large_encoder_shapes.json").read_text())
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    noise = torch.randn(max(sizes.values()), generator=torch.Generator().manual_seed(0)) * 0.02
    state = {}
    for name, shape in shapes.items():
        tensor = noise[: sizes[name]].view(shape)  # views of one storage, which the file holds once
        state[name] = 1 + tensor if "norm" in name and name.endswith("weight") else tensor
    state["model.decoder.mask_patch"] = torch.zeros(512)
    path = tmp_path / "clay-v1.5.ckpt"
    torch.save({"state_dict": state, "hyper_parameters": {"model_size": "large"}}, path)
    del state
    try:
        encoder = weights.load_encoder(path, precision="bfloat16")
        assert encoder.geometry == clay.Geometry()
        assert {p.dtype for p in encoder.parameters()} == {torch.bfloat16}
        tokens = encode(encoder, torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(1)))
        assert tokens.shape == (1, 65, 1024)
        assert tokens.isfinite().all()
    finally:
        path.unlink()
