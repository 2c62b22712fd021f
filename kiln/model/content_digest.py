"""The digest of a weights file's content, which is written at extraction and compared whenever the weights are loaded.

safetensors files have no checksums: a flipped bit of a tensor would give other vectors without an error.
"""

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from kiln.formats.fingerprint import digest

KEY = "content_sha256"  # of the metadata
MAX_THREADS = 8


def content_digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    """Return the digest of tensors and metadata, sha256 in hex.

    It covers the name, shape, dtype and bytes of every tensor, and every entry of the metadata but KEY. Threads share
    the tensors: on a processor with SHA extensions each hashes about 1.8 GB/s.

    Args:
        tensors: Contiguous tensors by name, on the CPU. Mapped ones are read from the disk.
        metadata: JSON values.
    """
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        digests = dict(zip(tensors, pool.map(_bytes_digest, tensors.values()), strict=True))
    described = {name: [str(t.dtype), list(t.shape), digests[name]] for name, t in tensors.items()}
    return digest({"metadata": {k: v for k, v in metadata.items() if k != KEY}, "tensors": described})


def _bytes_digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy().data).hexdigest()
