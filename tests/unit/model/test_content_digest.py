"""Weights files whose bytes or metadata changed after extraction: refused before a vector is computed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from kiln.errors import WeightsError
from kiln.model import weights
from kiln.model.content_digest import KEY, content_digest

FLIPS = 60  # places of the file, evenly spread over each region
LENGTH_BYTES = 8  # of the header's length, which a safetensors file begins with


def header_bytes(data: bytes) -> int:
    """Return the bytes before the tensors."""
    return LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")


def kiln_metadata(path: Path) -> dict:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["kiln"])


def rewritten(source: Path, path: Path, change) -> Path:
    """Write a weights file again after `change(tensors, metadata)`."""
    tensors, metadata = load_file(source), kiln_metadata(source)
    change(tensors, metadata)
    save_file(tensors, path, metadata={"kiln": json.dumps(metadata, sort_keys=True)})
    return path


@pytest.mark.parametrize("region", ["header", "tensors"])
def test_a_flipped_bit_anywhere_is_an_error_or_changes_nothing(tmp_path, encoder_file, region):
    data, path = encoder_file.read_bytes(), tmp_path / "flipped.safetensors"
    head = header_bytes(data)
    first, last = (0, head) if region == "header" else (head, len(data))
    sound, refused = weights.load_encoder(encoder_file).state_dict(), 0
    for n in range(FLIPS):
        place = first + n * (last - 1 - first) // (FLIPS - 1)
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << n % 8]) + data[place + 1 :])
        try:
            loaded = weights.load_encoder(path).state_dict()
        except WeightsError:
            refused += 1
            continue
        assert all(torch.equal(values, sound[name]) for name, values in loaded.items())
    assert refused == FLIPS if region == "tensors" else refused > FLIPS * 0.9  # the header ends in spaces


def test_the_error_about_damage_states_how_to_make_the_file_again(tmp_path, encoder_file):
    data = bytearray(encoder_file.read_bytes())
    data[-1] ^= 1
    (tmp_path / "rot.safetensors").write_bytes(data)
    message = (
        r"rot\.safetensors: expected .* of digest \w+, got \w+\. The file is damaged\. Delete it and run `snakemake"
    )
    with pytest.raises(WeightsError, match=message):
        weights.load_encoder(tmp_path / "rot.safetensors")


@pytest.mark.parametrize(("key", "value"), [("encoder_heads", 1), ("precision", "bfloat16"), ("untrained", False)])
def test_a_changed_entry_of_the_metadata_is_an_error(tmp_path, encoder_file, key, value):
    path = rewritten(encoder_file, tmp_path / "other.safetensors", lambda _, metadata: metadata.update({key: value}))
    assert kiln_metadata(path)[key] != kiln_metadata(encoder_file)[key]
    with pytest.raises(WeightsError, match="The file is damaged"):
        weights.load_encoder(path)


def test_two_tensors_of_one_shape_that_swap_their_names_are_an_error(tmp_path, encoder_file):
    a, b = "transformer.layers.0.0.norm.bias", "transformer.layers.0.1.net.0.bias"

    def swap(tensors: dict, metadata: dict) -> None:
        tensors[a] = tensors[b] + 1
        tensors[a], tensors[b] = tensors[b], tensors[a]
        metadata[KEY] = content_digest({**tensors, a: tensors[b], b: tensors[a]}, metadata)

    with pytest.raises(WeightsError, match="The file is damaged"):
        weights.load_encoder(rewritten(encoder_file, tmp_path / "swapped.safetensors", swap))


def test_weights_of_an_older_kiln_without_a_digest_are_to_be_extracted_again(tmp_path, encoder_file):
    path = rewritten(encoder_file, tmp_path / "old.safetensors", lambda _, metadata: metadata.pop(KEY))
    for read in (weights.load_encoder, weights.read_metadata):
        with pytest.raises(
            WeightsError, match=r"old\.safetensors: expected a digest .* an older Kiln .* Delete it and"
        ):
            read(path)


def test_the_digest_covers_dtype_and_shape():
    zeros = torch.zeros(2, 3)
    others = [zeros.reshape(3, 2), torch.zeros(2, 3, dtype=torch.int32), torch.zeros(2, 6, dtype=torch.bfloat16)]
    digests = {content_digest({"a": tensor}, {}) for tensor in [zeros, *others]}
    assert len(digests) == 4
    assert content_digest({"a": zeros}, {"k": 1}) not in digests
    assert content_digest({"a": torch.tensor(0.0)}, {}) not in digests  # a tensor without axes
