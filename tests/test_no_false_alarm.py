"""What is right passes: over 10,000 random cases, and 10⁷ entries of every strategy that promises the same bits."""

import itertools

import numpy as np
import pytest
import torch

import fusion_onnx
from fusion_onnx import Session, export
from tests.ratios import DTYPES, HEADING, NAMES, arguments, run

WIDTH, ROWS, ENTRIES = 50, 20_000, 10_000_000
BITWISE = [name for name in NAMES if fusion_onnx.get(name).bitwise]
INTEGERS = {torch.float16: np.uint16, torch.float32: np.uint32, torch.float64: np.uint64}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("name", NAMES)
def test_random_cases_pass(name, dtype, record_property):
    ratio, failed = run(name, dtype)
    record_property(HEADING, str(ratio))
    assert not failed, "\n".join(ratio.failed)
    assert ratio.cases * len(NAMES) * len(DTYPES) >= 10_000  # each share of them is counted where it is run
    assert ratio.undetermined < ratio.elements / 8
    assert ratio.rho < 1


def bits(values):
    """Return the bits of an array, one pattern for every NaN and one for both zeros."""
    values = np.where(values == 0, values.dtype.type(0), values)
    return np.where(np.isnan(values), values.dtype.type(np.nan), values).view(INTEGERS[torch.from_numpy(values).dtype])


def patterns(count, dtype, generator):
    """Draw bit patterns: every exponent alike, subnormals, NaN and infinities among them."""
    size = torch.finfo(dtype).bits // 8
    raw = torch.randint(0, 256, (count * size,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype)


def entries(fusion, dtype, generator, wild):
    xs, *w = arguments(fusion, ROWS, dtype, generator)
    if wild:
        xs = [patterns(x.numel(), dtype, generator).reshape(x.shape) for x in xs]
    return (xs, *w)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("name", BITWISE)
def test_promised_bits_are_the_same_bits(name, dtype):
    fusion = fusion_onnx.create(name, dims=[WIDTH] * 3)
    generator = torch.Generator().manual_seed(0)
    session = Session(export(fusion, arguments(fusion, 3, dtype, generator), verify=False).model, "cpu")
    compared = 0
    for turn in itertools.count():
        if compared >= ENTRIES:
            break
        xs, *w = entries(fusion, dtype, generator, wild=turn % 4 == 3)
        with torch.no_grad():
            eager = fusion(xs, *w).numpy()
        (model,) = session.run(*xs, *w)
        model = torch.as_tensor(model).numpy()
        assert model.dtype == eager.dtype
        differ = np.argwhere(bits(eager) != bits(model))
        assert not len(differ), (turn, differ[0], eager[tuple(differ[0])], model[tuple(differ[0])])
        compared += eager.size
    assert compared >= ENTRIES


def test_bits_tell_what_they_should():
    a = np.array([0.0, np.nan, 1.0, 1.0], dtype=np.float32)
    b = np.array([-0.0, -np.nan, 1.0, np.nextafter(np.float32(1), np.float32(2))], dtype=np.float32)
    assert list(bits(a) == bits(b)) == [True, True, True, False]
