"""The checks of a fusion that is compiled or exported: one graph, one node, and eager execution's numbers."""

import torch

from fusion_onnx.contract import Case, Fusion
from fusion_onnx.file_format import DOMAIN
from fusion_onnx.testing.check import Trial, base_forward, check, demand, near, one_tensor


@check
def check_compile(cls: type[Fusion], case: Case) -> None:
    """torch.compile takes it without a graph break, and gives the same output and gradients."""
    trial = Trial(cls, case)
    torch.compiler.reset()  # graphs of other fusions would count against the limit
    compiled = torch.compile(trial.fusion, fullgraph=True, backend="aot_eager")
    results, leaves = [], []
    for run in (trial.fusion, compiled):
        xs = [x.clone().requires_grad_() for x in trial.xs]
        w = None if trial.w is None else trial.w.clone().requires_grad_()
        results.append(one_tensor(run(xs, w)))
        torch.autograd.backward(results[-1].sum())
        leaves.append([*xs, *([] if w is None else [w])])
    near(results[1], results[0], "the compiled output")
    for i, (a, b) in enumerate(zip(*leaves, strict=True), 1):
        name = f"input {i}" if i <= len(trial.xs) else "w"
        assert a.grad is not None, f"{name} has no gradient"
        assert b.grad is not None, f"{name} has no gradient when compiled"
        near(b.grad, a.grad, f"the compiled gradient of {name}")


@check
def check_torch_export(cls: type[Fusion], case: Case) -> None:
    """torch.export takes it with a dynamic batch; a strategy with fuse and decompose stays one node."""
    trial, other = Trial(cls, case), Trial(cls, case, lead=(5,))
    batch = torch.export.Dim("batch")
    shapes = ([{0: batch} for _ in trial.xs], None)
    program = torch.export.export(trial.fusion, (trial.xs, trial.w), dynamic_shapes=shapes)
    near(one_tensor(program.module()(trial.xs, trial.w)), trial(), "the exported program's output")
    near(
        one_tensor(program.module()(other.xs, other.w)), other(), "the exported program's output at another batch size"
    )
    signature = trial.fusion.signature
    if signature.config is not None:  # None: an option is no plain data, so it is traced
        ours = [n.target for n in program.graph.nodes if str(n.target).startswith(f"{DOMAIN}.")]
        op = signature.op
        demand(ours == [op], f"the nodes of the domain {DOMAIN} are {[str(t) for t in ours]}, not [{op}]")
        demand(str(op).startswith(f"{DOMAIN}.{cls.strategy()}"), f"the node is {op}, not {cls.strategy()}")


@check
def check_export(cls: type[Fusion], case: Case) -> None:
    """Exported, it computes what eager execution does: `decompose` and `fuse` are the same maths."""
    from fusion_exporters import VerificationError, export

    trial = Trial(cls, case)
    fusion = case.create(cls)
    args = (trial.xs,) if trial.w is None else (trial.xs, trial.w)
    try:
        export(fusion.to(trial.dtype), args)
    except VerificationError as error:
        demand(False, f"fuse and decompose differ: {'; '.join(error.verdict.reasons)}")


@check
def check_forms(cls: type[Fusion], case: Case) -> None:
    """Every form of a strategy computes what eager execution does."""
    if not base_forward(cls):
        return
    from fusion_exporters import ExportError, VerificationError, export

    trial = Trial(cls, case, dtype=torch.float32)
    for name in list(trial.fusion.forms())[1:]:
        try:
            export(trial.fusion, (trial.xs,) if trial.w is None else (trial.xs, trial.w), form=name)
        except VerificationError as error:
            demand(False, f"the form {name!r} and fuse differ: {'; '.join(error.verdict.reasons)}")
        except ExportError as error:
            demand("offers" in str(error), f"the form {name!r}: {error}")


@check
def check_battery(cls: type[Fusion], case: Case) -> None:
    """Exported in float32, a strategy with fuse and decompose is equal on hostile values and in every memory layout."""
    from fusion_exporters import export
    from fusion_onnx.verification import verify

    if not cls.is_strategy():
        return  # ordinary operators, of which ONNX Runtime approximates some, such as Sigmoid below -18
    trial = Trial(cls, case, dtype=torch.float32)
    fusion = case.create(cls).to(trial.dtype)
    args = (trial.xs,) if trial.w is None else (trial.xs, trial.w)
    verdict = verify(fusion, export(fusion, args, verify=False).model, args, battery=True)
    demand(verdict.passed, f"fuse and decompose differ: {'; '.join(verdict.reasons)}")
