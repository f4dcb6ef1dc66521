"""What a card has to show first: numbers, where the stand-in for CUDA shows placement, launches and copies alone."""

import threading

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

import fusion_onnx
from fusion_onnx import ExportError, Session, create, export, verify
from tests.conftest import on_gpu

pytestmark = pytest.mark.gpu
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def made(name, dtype=torch.float32, k=3, **options):
    xs = [torch.zeros(2, 5, dtype=dtype) for _ in range(k)]
    fusion = create(name, dims=[5] * k, **options)
    return fusion, export(fusion, (xs,), verify=False, providers="cuda").model


def drawn(rows, dtype=torch.float32, k=3, width=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, width, generator=generator).to(dtype) for _ in range(k)]


@pytest.mark.parametrize("kind", on_gpu([np.asarray, torch.from_numpy]))
def test_a_bound_call_sees_what_the_host_has_now(cuda, kind):
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["rows", 4]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", infos[:1], infos[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    x = kind(np.zeros((1 << 16, 4), np.float32))  # large enough for a copy to take a while
    call = Session(model, "cuda").bind(x)
    for value in range(1, 6):
        x[...] = value
        assert bool((call()[0] == value).all())


@pytest.mark.parametrize("dtype", on_gpu(DTYPES))
@pytest.mark.parametrize("k", on_gpu([3, 9, 16]))
@pytest.mark.parametrize("name", on_gpu(["max", "min", "sum", "mean"]))
def test_an_empty_batch(cuda, name, k, dtype):
    fusion, model = made(name, dtype, k)
    session = Session(model, "cuda")
    for rows in (0, 7, 0):
        xs = drawn(rows, dtype, k)
        on_gpu = [x.to(cuda) for x in xs]
        wanted = fusion(xs)
        for y in (
            session.run(*on_gpu)[0],
            session.bind(*on_gpu)()[0],
            session.bind(*on_gpu, cuda_graph=True)()[0],
        ):
            assert y.device == cuda
            torch.testing.assert_close(y.cpu(), wanted)


@pytest.mark.parametrize("dtype", on_gpu(DTYPES))
@pytest.mark.parametrize("form", on_gpu(["chain", "variadic"]))
@pytest.mark.parametrize("name", on_gpu(["max", "min", "median"]))
def test_nan_and_inf_go_through(cuda, name, form, dtype):
    values = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, 1.0], dtype=dtype)
    xs = [x.flatten()[:, None] for x in torch.meshgrid(values, values, values, indexing="ij")]
    fusion = create(name, dims=[1] * 3)
    form = form if form in fusion.forms() else "auto"
    session = Session(export(fusion, (xs,), form=form, verify=False), "cuda")
    [y] = session.run(*(x.to(cuda) for x in xs))
    torch.testing.assert_close(y.cpu(), fusion(xs), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", on_gpu([torch.float32, torch.float16]))
@pytest.mark.parametrize("name", on_gpu(["linear_concatenation", "low_rank_concatenation", "kronecker_concatenation"]))
def test_products_are_within_their_bound(cuda, name, dtype):
    fusion = create(name, dims=[1024] * 4, n=1024, **fusion_onnx.get(name).bench_options)
    length = fusion.calculate_l()
    w = (torch.randn(length, generator=torch.Generator().manual_seed(1)) / length**0.5).to(dtype)
    args = (drawn(64, dtype, 4, 1024), w)
    for form in fusion.forms():
        try:
            model = export(fusion, args, form=form, verify=False).model
        except ExportError:
            continue  # nothing to offer
        verdict = verify(fusion, model, args, providers="cuda")
        assert verdict.passed, (form, verdict)


def test_a_graph_is_called_from_two_threads(cuda):
    fusion, model = made("median", k=5)
    given = drawn(64, k=5)
    xs = [x.to(cuda) for x in given]
    call = Session(model, "cuda").bind(*xs, cuda_graph=True)
    wanted, right = fusion(given).to(cuda), []

    def work():
        for _ in range(20):
            [y] = call()
            right.append(torch.equal(y, wanted))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 40


def test_two_sessions_beside_torch_take_no_more_with_each_call(cuda):
    fusion, model = made("sum", k=4)
    given = drawn(1 << 20, k=4)
    xs, wanted = [x.to(cuda) for x in given], fusion(given).to(cuda)
    sessions = [Session(model, "cuda") for _ in range(2)]
    free, _ = torch.cuda.mem_get_info(cuda)
    held = torch.empty(free // 2, dtype=torch.uint8, device=cuda)
    for session in sessions:
        torch.testing.assert_close(session.run(*xs)[0], wanted)
    free, _ = torch.cuda.mem_get_info(cuda)
    for _ in range(20):
        for session in sessions:
            torch.testing.assert_close(session.run(*xs)[0], wanted)
    left, _ = torch.cuda.mem_get_info(cuda)
    del held
    assert free - left <= 4 * wanted.nbytes  # results that are not yet freed, of both, and what torch compares with
