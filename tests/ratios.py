"""The largest ρ for each strategy and dtype over random cases: `python -m tests.ratios`.

A case is one fusion (its strategy's own cases, and some drawn: k, widths, options) at one class of values and one batch
size.
"""

import random
import sys
import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch

import fusion_onnx
from fusion_onnx import Case, Session, export
from fusion_onnx.verification import battery
from fusion_onnx.verification.arguments import Arguments
from fusion_onnx.verification.compare import judge
from fusion_onnx.verification.eval_mode import EvalMode
from fusion_onnx.verification.subject import Subject
from fusion_onnx.verification.verdict import Finding
from fusion_onnx.verification.verify import Judge, Trial

DTYPES = (torch.float16, torch.float32, torch.float64)
NAMES = fusion_onnx.names()
DRAWN, BATCHES = 2, (1, 24)


@dataclass
class Ratio:
    """What a strategy came to at one dtype: ρ is taken within E(eager) + E(model), also where the bits are the same."""

    strategy: str
    dtype: str
    rho: float = 0.0
    cases: int = 0
    elements: int = 0
    undetermined: int = 0
    failed: tuple[str, ...] = ()

    def __str__(self):
        return (
            f"{self.strategy:38}{self.dtype:9}{self.rho:9.3f}{self.cases:7}{self.elements:9}"
            f"{self.undetermined:7}{len(self.failed):7}"
        )


HEADING = f"{'strategy':38}{'dtype':9}{'ρ':>9}{'cases':>7}{'entries':>9}{'free':>7}{'failed':>7}"


def drawn_cases(name: str, count: int, draw: random.Random) -> list[Case]:
    """Draw cases that a strategy accepts: k, widths, n, and options of its own cases in other company."""
    cls = fusion_onnx.get(name)
    values: dict[str, list[Any]] = {}
    for case in cls.cases:
        for option, value in case.options.items():
            values.setdefault(option, []).append(value)
    if "n" in cls.options():
        values["n"] = [1, 2, 4, 6, 12]
    found: list[Case] = []
    while len(found) < count:
        k = draw.choice([1, 2, 3, 5, 8, 13, 24])
        dims = [draw.randint(1, 9)] * k if cls.equal_dims else [draw.randint(1, 9) for _ in range(k)]
        options = {option: draw.choice(among) for option, among in values.items() if draw.random() < 0.75}
        case = Case(dims, **options)
        try:
            case.create(cls)
        except fusion_onnx.FusionError:  # such as where p or q divides nothing
            continue
        found.append(case)
    return found


def arguments(fusion, batch, dtype, generator):
    """Return a fusion's inputs, and its parameters where it has any."""
    xs = [torch.randn(batch, d, generator=generator, dtype=torch.float64).to(dtype) for d in fusion.dims]
    length = fusion.calculate_l()
    return (xs, torch.randn(length, generator=generator, dtype=torch.float64).to(dtype)) if length else (xs,)


def trials(fusion, dtype):
    """Yield the class of values, and the fusion's arguments."""
    for seed, batch in enumerate(BATCHES):
        generator = torch.Generator().manual_seed(seed)
        xs, *w = arguments(fusion, batch, dtype, generator)
        for label, drawn in battery.values(xs, [f"x{i}" for i in range(len(xs))], seed=100 * seed):
            if " in x" in label and int(label.rpartition(" in x")[2]) > 2:
                continue  # one input after the other: the first three stand for all
            yield label, (drawn, *w)


def run(name: str, dtype: torch.dtype) -> tuple[Ratio, list[Finding]]:
    """Run a strategy's cases at a dtype, with the verifier's own choice of tolerance, and its own judgement."""
    result = Ratio(name, str(dtype).removeprefix("torch."))
    failed = []
    for case in [*fusion_onnx.get(name).cases, *drawn_cases(name, DRAWN, random.Random(name))]:
        fusion = case.create(fusion_onnx.get(name))
        example = arguments(fusion, 3, dtype, torch.Generator().manual_seed(0))
        session = Session(export(fusion, example, verify=False).model, "cpu", threads=1)
        verdicts = Judge(Subject(EvalMode(fusion), Arguments(example)), session.providers)
        for label, call in trials(fusion, dtype):
            with torch.no_grad():
                eager = fusion(*call)
            xs, *w = call
            (model,) = session.run(*xs, *w)
            (tolerance,) = verdicts(Trial(label, Arguments(call), True), [eager])
            finding = judge(f"{name} {case} {result.dtype} {label}", "y", eager, model, tolerance)
            if tolerance.bits:
                within = replace(tolerance, bits=False)
                result.rho = max(result.rho, judge("", "y", eager, model, within).ratio)
            result.rho = max(result.rho, finding.ratio)
            result.cases += 1
            result.elements += eager.numel()
            result.undetermined += finding.undetermined
            if not finding.passed:
                failed.append(finding)
    result.failed = tuple(f"{finding.case}: {finding.failed}: {finding.detail}" for finding in failed)
    return result, failed


def main() -> int:
    """Print the table."""
    warnings.simplefilter("ignore")
    total = 0
    print(HEADING)
    failures = []
    for name in NAMES:
        for dtype in DTYPES:
            ratio, _ = run(name, dtype)
            total += ratio.cases
            failures += ratio.failed
            print(ratio, flush=True)
    print(f"{total} cases, {len(failures)} failed")
    print(*failures, sep="\n")
    return len(failures) > 0


if __name__ == "__main__":
    sys.exit(main())
