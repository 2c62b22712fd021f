"""Vectors in files: int8 and its scale, values that are not finite, and the columns of each kind."""

import warnings

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from kiln.errors import ConfigError
from kiln.formats import vectors
from kiln.formats.columns import arrow_schema

FLOATS = arrays(
    np.float32, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.floats(width=32, allow_subnormal=True)
)


@settings(deadline=None, max_examples=300)
@given(FLOATS)
def test_int8_times_its_scale_is_within_half_a_step_of_every_finite_vector(values):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        levels, scale = vectors.quantise(values)
    assert (levels.dtype, scale.dtype, levels.shape, scale.shape) == (
        np.int8,
        np.float32,
        values.shape,
        values[:, 0].shape,
    )
    whole = np.isfinite(values).all(axis=1)
    assert np.array_equal(np.isfinite(scale), whole)
    assert levels.min(initial=0) >= -127
    assert (scale[whole] > 0).all()
    error = np.abs(levels[whole] * scale[whole, None].astype(np.float64) - values[whole])
    assert (error <= 0.5001 * scale[whole, None].astype(np.float64)).all()
    largest = np.abs(values[whole]).max(axis=1)
    assert (np.abs(levels[whole]).max(axis=1)[largest > 1e-30] == 127).all(), "the scale is as small as possible"


def test_half_goes_to_even_and_zeros_have_scale_one():
    levels, scale = vectors.quantise(np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5], [0] * 6], np.float32))
    assert levels.tolist() == [[127, 0, 2, 2, 0, -2], [0] * 6]
    assert scale.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("vector_dtype", vectors.VECTOR_DTYPES)
def test_a_vector_that_is_not_finite_is_detected_in_every_type(vector_dtype, bad):
    values = np.ones((3, 4), np.float32)
    values[1, 2] = bad
    assert vectors.finite_rows(vectors.store({"embeddings": values}, vector_dtype)).tolist() == [True, False, True]


def test_values_beyond_float16_are_detected_and_fit_int8():
    values = np.array([[1e5, 1.0], [1.0, 1.0]], np.float32)
    assert vectors.finite_rows(vectors.store({"embeddings": values}, "float16")).tolist() == [False, True]
    assert vectors.finite_rows(vectors.store({"embeddings": values}, "int8")).tolist() == [True, True]


def test_a_row_is_invalid_if_one_of_its_two_kinds_is_not_finite():
    good, bad = np.ones((2, 4), np.float32), np.array([[1, 1, 1, 1], [1, np.nan, 1, 1]], np.float32)
    stored = vectors.store({"embeddings": good, "embeddings_mean": bad}, "int8")
    assert list(stored) == ["embeddings", "scale", "embeddings_mean", "scale_mean"]
    assert vectors.finite_rows(stored).tolist() == [True, False]


@pytest.mark.parametrize("embedding", vectors.EMBEDDINGS)
@pytest.mark.parametrize("vector_dtype", vectors.VECTOR_DTYPES)
def test_numbers_are_read_back_from_sliced_and_chunked_columns(vector_dtype, embedding):
    rng = np.random.default_rng(3)
    names = list(vectors.KINDS[embedding])
    values = {n: rng.normal(size=(20, 8)).astype(np.float32) * 10 for n in names}
    columns = arrow_schema(vectors.fields(8, vector_dtype, embedding))
    stored = vectors.to_arrow(vectors.store(values, vector_dtype), columns)
    whole = pa.table([stored[f.name] for f in columns], schema=columns)
    cut = pa.concat_tables([whole.slice(0, 7), whole.slice(7)])
    step = {"float32": 0.0, "float16": 0.05, "int8": 0.2}[vector_dtype]
    for name in names:
        assert np.abs(vectors.read(whole, name) - values[name]).max() <= step
        assert np.array_equal(vectors.read(cut, name), vectors.read(whole, name))
        for batch in whole.slice(3, 5).to_batches():
            assert np.array_equal(vectors.read(batch, name), vectors.read(whole, name)[3:8])


def test_the_kind_to_search_with_is_selected():
    assert vectors.select_kind("class", None, "p") == "class"
    assert vectors.select_kind("mean", None, "p") == "mean"
    assert vectors.select_kind("both", None, "p") == "class"
    assert vectors.select_kind("both", "mean", "p") == "mean"
    with pytest.raises(
        ConfigError, match=r"p: expected vectors of kind mean, got class\. Change index\.select\.embedding"
    ):
        vectors.select_kind("class", "mean", "p")
    with pytest.raises(ConfigError, match="of kind class, got mean"):
        vectors.select_kind("mean", "class", "p")


def test_metadata_state_how_int8_becomes_numbers():
    assert (
        vectors.dequantisation_metadata("float32", "both") == vectors.dequantisation_metadata("float16", "class") == {}
    )
    assert vectors.dequantisation_metadata("int8", "both") == {
        "dequantisation": {"embeddings": "embeddings * scale", "embeddings_mean": "embeddings_mean * scale_mean"}
    }
