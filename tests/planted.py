"""Faults planted in the source, one at a time, each with the tests that must go red: `python -m tests.planted [WORD]`.

A fault is one change of text in a copy of the repository: a wrong sign, a lost NaN, a check left out. What the copy's
tests say of it is all that counts; a fault that stays green is a hole in the suite.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("fusion_onnx", "exporters", "tests", "models", "benchmarks", "docs")
FILES = ("pyproject.toml", "README.md", "CONTRIBUTING.md")


@dataclass(frozen=True)
class Fault:
    """A change of a file, `before` to `after`, and the tests that have to notice: files, and words of pytest's -k."""

    name: str
    file: str
    before: str
    after: str
    tests: str
    words: str = ""

    @property
    def room(self) -> str:
        """Where it is: strategies, bodies, files, runtime, tolerance or verdicts."""
        return self.name.partition(":")[0]

    def source(self) -> str:
        """Return the text of its file."""
        return (ROOT / self.file).read_text(encoding="utf-8")


FUSIONS = "fusion_onnx/fusions"
FAULTS = (
    # --- what callers do that the specification lets them
    Fault(
        "strategies: callers, an unknown keyword of calculate_l vanishes",
        "fusion_onnx/contract/options.py",
        "            refuse_keyword(self, method.__name__, kwargs, known)\n",
        "            kwargs = {}\n",
        "test_contract",
        "args_and_kwargs",
    ),
    Fault(
        "strategies: callers, get_dim counts from the end",
        "fusion_onnx/contract/base.py",
        "not 0 <= place < len(self.dims)",
        "not -len(self.dims) <= place < len(self.dims)",
        "test_contract",
        "test_get_dim",
    ),
    Fault(
        "strategies: tinyBIG, the random matrices of a config are left behind",
        "fusion_onnx/tinybig.py",
        "        if matrix is not None:\n",
        "        if matrix is None:\n",
        "test_tinybig",
        "come_along",
    ),
    Fault(
        "strategies: tinyBIG, what a layer has learned is left behind",
        "fusion_onnx/tinybig.py",
        "own[key] = torch.nn",
        "torch.nn",
        "test_tinybig",
        "come_along or comes_along",
    ),
    Fault(
        "strategies: tinyBIG, positional parameters in another order",
        "fusion_onnx/tinybig.py",
        '"r p q name n dims"',
        '"p q r name n dims"',
        "test_tinybig",
        "tinybigs_order",
    ),
    # --- what a caller puts in a fusion's place
    Fault(
        "strategies: hooks, an overridden hook is not called without functions",
        "fusion_onnx/contract/base.py",
        " or hook in self.__dict__ or getattr(type(self), hook) is not WRITTEN[hook]",
        "",
        "test_hooks",
        "in_its_place",
    ),
    Fault(
        "strategies: hooks, a subclass's fuse is exported as its parent's body",
        "fusion_onnx/contract/fusion.py",
        "            cls._leave_out_what_another_fuse_has()\n",
        "",
        "test_hooks",
        "in_its_place or another_fuse",
    ),
    Fault(
        "strategies: hooks, what is assigned to a fusion is unknown to its op",
        "fusion_onnx/contract/fusion.py",
        "self.__dict__.update(_config=None, _altered=True)",
        "pass",
        "test_hooks",
        "in_its_place or other_state",
    ),
    Fault(
        "strategies: hooks, functions that are assigned later are not registered",
        "fusion_onnx/contract/base.py",
        "        if modules:\n            self.process_modules",
        "        if modules and not self._completed:\n            self.process_modules",
        "test_hooks",
        "assigned_later or keys",
    ),
    Fault(
        "strategies: hooks, the module of a partial is not registered",
        "fusion_onnx/contract/callables.py",
        "    while isinstance(function, functools.partial):\n        function = function.func\n",
        "",
        "test_hooks",
        "assigned_later",
    ),
    Fault(
        "strategies: hooks, an option that is assigned later changes nothing",
        "fusion_onnx/contract/fusion.py",
        'elif name in self.options() and name not in ("name", "device"):',
        "elif False:",
        "test_hooks",
        "option",
    ),
    Fault(
        "strategies: hooks, a buffer of another shape is taken",
        "fusion_onnx/contract/fusion.py",
        "if not plain or value.shape != buffer.shape:",
        "if False:",
        "test_hooks",
        "buffer",
    ),
    Fault(
        "files: a check of the inputs that computes is run in blocks of rows",
        "exporters/fusion_exporters/exporter.py",
        "if strategy and len(list(model.graph)) == 1:",
        "if strategy:",
        "test_hooks",
        "in_its_place",
    ),
    # --- CUDA
    Fault(
        "bodies: Kronecker, a shape put together by Concat",
        f"{FUSIONS}/_kronecker.py",
        "op.Expand(factor, op.Shape(row))",
        "op.Expand(factor, op.Concat(op.Shape(z, end=-2), op.integers([1, 1]), axis=0))",
        "test_forms",
        "with_shapes and kronecker",
    ),
    Fault(
        "runtime: an empty batch goes to CUDA's kernels of many inputs",
        "fusion_onnx/runtime/_session.py",
        "session = self._of_empty()",
        "session = self._ort_session",
        "test_runtime_empty",
        "stand_in",
    ),
    Fault(
        "runtime: an empty batch in bfloat16 goes to CUDA's kernels of many inputs",
        "fusion_onnx/runtime/_empty_batch.py",
        "source=pairwise(recipe.source) or recipe.source",
        "source=recipe.source",
        "test_runtime_empty",
        "stand_in",
    ),
    Fault(
        "runtime: an empty batch goes to whatever else CUDA fails at",
        "fusion_onnx/runtime/_empty_batch.py",
        "providers=[(CPU, {}), *providers], strict=False)",
        "providers=[*providers, (CPU, {})], strict=False)",
        "test_runtime_empty",
        "stand_in",
    ),
    Fault(
        "runtime: a CUDA graph is recorded of an empty batch",
        "fusion_onnx/runtime/_session.py",
        "if _any_empty(shapes):  # nothing may be launched",
        "if False:  # nothing may be launched",
        "test_runtime_empty",
        "stand_in",
    ),
    Fault(
        "runtime: the session for an empty batch without the weights beside the file",
        "fusion_onnx/runtime/_empty_batch.py",
        "    if isinstance(recipe.source, str):  # its weights",
        "    if False:  # its weights",
        "test_runtime_empty",
        "stand_in",
    ),
    Fault(
        "runtime: two by two, the first input again",
        "fusion_onnx/runtime/_empty_batch.py",
        "        left = y\n",
        "",
        "test_runtime_empty",
        "pairs",
    ),
    Fault(
        "bodies: the cost rule, every value as wide as the inputs",
        "exporters/fusion_exporters/forms/costs.py",
        "int(types.get(name, dtype).itemsize)",
        "int(dtype.itemsize)",
        "test_forms",
        "width",
    ),
    Fault(
        "bodies: the cost rule, a square reads its input twice",
        "exporters/fusion_exporters/forms/costs.py",
        "size([*dict.fromkeys(operands), *node.output])",
        "size([*operands, *node.output])",
        "test_forms",
        "width",
    ),
    Fault(
        "bodies: the cost rule, an addend is not copied",
        "exporters/fusion_exporters/forms/costs.py",
        "node.input[2:] if node.op_type",
        "node.input[3:] if node.op_type",
        "test_forms",
        "gpu_copies",
    ),
    Fault(
        "bodies: the cost rule, an operator on any number of inputs is one launch",
        "exporters/fusion_exporters/forms/costs.py",
        "inputs_per_pass=8, launches=True",
        "inputs_per_pass=99, launches=True",
        "test_forms",
        "gpu_copies",
    ),
    Fault(
        "bodies: the cost rule, a view is never copied",
        "exporters/fusion_exporters/forms/costs.py",
        "copy_bytes=size(name for name in node.output if name in proto.output)",
        "copy_bytes=0",
        "test_forms",
        "gpu_copies",
    ),
    # --- operators
    Fault(
        "bodies: operators, x + 1e-9 is x",
        "exporters/fusion_exporters/translation/tracing.py",
        " operators.exact_rules(),",
        "",
        "test_operators",
        "small_numbers",
    ),
    Fault(
        "bodies: operators, an output stays in float32",
        "exporters/fusion_exporters/translation/tracing.py",
        "    operators.keep_dtypes(program)\n",
        "",
        "test_operators",
        "eagers_dtype",
    ),
    Fault(
        "bodies: operators, numbers beside float64 are float32",
        "exporters/fusion_exporters/translation/tracing.py",
        "    doubles.keep_scalars(program)\n",
        "",
        "test_operators",
        "beside_float64",
    ),
    Fault(
        "bodies: operators, an upper bound takes Inf",
        "exporters/fusion_exporters/translation/tracing.py",
        "    operators.keep_infinities(program.model)\n",
        "",
        "test_operators",
        "digits",
    ),
    Fault(
        "bodies: operators, log1p loses small numbers",
        "exporters/fusion_exporters/translation/_computation.py",
        "        return op.Where(op.Equal(part, x), log, small)\n",
        "        return log\n",
        "test_operators",
        "digits",
    ),
    Fault(
        "bodies: operators, a wider dtype comes last",
        "exporters/fusion_exporters/translation/operators.py",
        "    x = cast(self, dtype)\n    if len",
        "    x = self\n    if len",
        "test_operators",
        "wider_dtype",
    ),
    Fault(
        "verdicts: the run that watches is compared",
        "fusion_onnx/verification/eval_mode.py",
        "        if self._written is None:  # watched",
        "        if False:  # watched",
        "test_operators",
        "first_run",
    ),
    # --- attention
    Fault(
        "bodies: attention, a query without a valid key takes the mean",
        "exporters/fusion_exporters/translation/attention.py",
        "op.Where(empty, zero, _constant(1.0, query))",
        "_constant(1.0, query)",
        "test_attention",
        "masks",
    ),
    Fault(
        "bodies: attention, a query without a valid key is NaN",
        "exporters/fusion_exporters/translation/attention.py",
        "return op.Max(mask, op.Where(empty, zero, lowest))",
        "return mask",
        "test_attention",
        "masks",
    ),
    Fault(
        "bodies: attention, causal from the last key",
        "exporters/fusion_exporters/translation/attention.py",
        "op.Less(op.Unsqueeze(rows, [1]), columns)",
        "op.Less(op.Add(op.Unsqueeze(rows, [1]), op.Sub(op.Shape(columns), op.Shape(rows))), columns)",
        "test_attention",
        "options",
    ),
    Fault(
        "bodies: attention, torch's own translation",
        "exporters/fusion_exporters/translation/tracing.py",
        "        **attention.translations(),\n",
        "",
        "test_attention",
        "masks or nan",
    ),
    Fault(
        "files: an LSTM's time is declared as the example's",
        "exporters/fusion_exporters/translation/tracing.py",
        "quiet(), dynamic_time(),",
        "quiet(),",
        "test_declared",
        "recurrent",
    ),
    Fault(
        "files: an epsilon is rounded to float32",
        "exporters/fusion_exporters/translation/tracing.py",
        "    doubles.keep_digits(program.model)\n",
        "",
        "test_doubles",
    ),
    Fault(
        "files: a number beside a float64 is rounded to float32",
        "exporters/fusion_exporters/translation/tracing.py",
        "        **doubles.translations(),\n",
        "",
        "test_doubles",
        "numbers",
    ),
    # --- strategies: `fuse`
    Fault("strategies: max is min", f"{FUSIONS}/max.py", "torch.maximum", "torch.minimum", "test_strategies", "max"),
    Fault("strategies: max loses NaN", f"{FUSIONS}/max.py", "torch.maximum", "torch.fmax", "test_strategies", "max"),
    Fault(
        "strategies: the mean divides by k + 1",
        f"{FUSIONS}/mean.py",
        "chain(xs, operator.add) / len(xs)",
        "chain(xs, operator.add) / (len(xs) + 1)",
        "test_strategies",
        "mean",
    ),
    Fault(
        "strategies: the upper median",
        f"{FUSIONS}/median.py",
        "m = (len(xs) + 1) // 2",
        "m = (len(xs) + 2) // 2",
        "test_strategies",
        "median",
    ),
    Fault(
        "strategies: the norm's gradient is NaN at 0",
        f"{FUSIONS}/l2_norm.py",
        "return torch.where(zero, squares, torch.where(zero, 1, squares).sqrt())",
        "return squares.sqrt()",
        "test_strategies",
        "gradient",
    ),
    Fault(
        "strategies: L1 forgets the sizes",
        f"{FUSIONS}/l1_norm.py",
        "chain((x.abs() for x in xs), operator.add)",
        "chain(xs, operator.add)",
        "test_strategies",
        "l1_norm",
    ),
    Fault(
        "strategies: concatenation backwards",
        f"{FUSIONS}/concatenation.py",
        "torch.cat(list(xs), dim=-1)",
        "torch.cat(list(xs)[::-1], dim=-1)",
        "test_strategies test_contract",
        "test_formula or check_reference and concatenation",
    ),
    Fault(
        "strategies: weights in reverse",
        f"{FUSIONS}/_weights.py",
        "return chain((x * a[i] for i, x in enumerate(xs)), operator.add)",
        "return chain((x * a[-1 - i] for i, x in enumerate(xs)), operator.add)",
        "test_strategies",
        "weighted_sum",
    ),
    Fault(
        "strategies: w is cut in another order",
        f"{FUSIONS}/_projection.py",
        "return [part.reshape(s) for part, s in zip(w.split",
        "return [part.reshape(s[::-1]).T if len(s) == 2 else part for part, s in zip(w.split",
        "test_strategies",
        "low_rank",
    ),
    Fault(
        "strategies: λ2 is left out",
        f"{FUSIONS}/random_matrix_adaptation.py",
        "return (((concatenate(xs) @ b) * inner) @ a.T) * outer",
        "return (((concatenate(xs) @ b) * inner.abs()) @ a.T) * outer",
        "test_strategies test_contract",
        "test_formula or check_reference and random_matrix",
    ),
    # --- bodies: `decompose`, forms, how they are built
    Fault(
        "bodies: Max is Min",
        f"{FUSIONS}/max.py",
        "chain(xs, op.Max)",
        "chain(xs, op.Min)",
        "test_export",
        "runs_as_eager and max and float32",
    ),
    Fault(
        "bodies: ReduceMax loses NaN",
        f"{FUSIONS}/max.py",
        "chain(xs, op.Max)",
        "op.ReduceMax(op.Concat(*[op.Unsqueeze(x, op.integers([0])) for x in xs], axis=0), "
        "op.integers([0]), keepdims=0)",
        "test_contract",
        "check_battery and max",
    ),
    Fault(
        "bodies: another rounding of the mean",
        f"{FUSIONS}/mean.py",
        "return op.Div(chain(xs, op.Add), op.constant(len(xs)))",
        "return op.Mul(chain(xs, op.Add), op.constant(1 / len(xs)))",
        "test_battery",
        "tried and mean",
    ),
    Fault(
        "bodies: a comparator the other way",
        f"{FUSIONS}/median.py",
        "return select_median(xs, op.Min, op.Max)",
        "return select_median(xs, op.Max, op.Min)",
        "test_export",
        "runs_as_eager and median and float32",
    ),
    Fault(
        "bodies: a form in another order",
        f"{FUSIONS}/_weights.py",
        "return op.Sum(*_products(op, xs, a))",
        "return op.Sum(*reversed(list(_products(op, xs, a))))",
        "test_forms",
        "battery and weighted_sum",
    ),
    Fault(
        "bodies: a form with the wrong factor",
        f"{FUSIONS}/low_rank_concatenation.py",
        "return op.MatMul(*matrices_decomposition(op, w, (self.n, self.r), (self.r, self.total)))",
        "return op.Mul(op.MatMul(*matrices_decomposition(op, w, (self.n, self.r), (self.r, self.total))), "
        "op.constant(1.001))",
        "test_forms",
        "battery and low_rank",
    ),
    Fault(
        "bodies: low precision is rounded at every step",
        "exporters/fusion_exporters/bodies.py",
        "wide = _computes_in(fusion, dtype)",
        "wide = dtype",
        "test_no_false_alarm",
        "random_cases and float16 and kronecker",
    ),
    Fault(
        "bodies: two options share a function",
        "exporters/fusion_exporters/graph.py",
        'body.name += "_" + digest(config)',
        "pass",
        "test_export",
        "no_name_tells",
    ),
    # --- files: what is exported
    Fault(
        "files: the form is not told",
        "exporters/fusion_exporters/forms/choice.py",
        'facts = {"form": self.form, "by": self.reason,',
        'facts = {"form": "plain", "by": self.reason,',
        "test_forms",
        "for_each_fusion or tune_measures or follows",
    ),
    Fault(
        "files: names of this machine",
        "exporters/fusion_exporters/graph.py",
        "node.metadata_props.clear()\n        node.doc_string = None\n        for output",
        "node.doc_string = None\n        for output",
        "test_export",
        "machine or bytes",
    ),
    Fault(
        "files: inlined operators lose the fusion's name",
        "exporters/fusion_exporters/graph.py",
        'inner.name = f"{node.name}/{inner.name}"',
        "pass",
        "test_export",
        "inline_all and sum",
    ),
    Fault(
        "files: the example's batch is kept",
        "exporters/fusion_exporters/graph_inputs.py",
        "return [{0: dynamic} if t.ndim >= 2 and",
        "return [{0: dynamic} if t.ndim >= 3 and",
        "test_export",
        "never_baked",
    ),
    Fault(
        "files: what exists is replaced",
        "exporters/fusion_exporters/exporter.py",
        "target = None if path is None else Path(path)",
        "target, overwrite = None if path is None else Path(path), True",
        "test_export",
        "target",
    ),
    Fault(
        "files: a failed verdict is written",
        "exporters/fusion_exporters/exporter.py",
        "raise VerificationError(verdict, note)",
        "pass",
        "test_export",
        "differs",
    ),
    Fault(
        "files: OpenVINO's weights in float16",
        "exporters/fusion_exporters/targets/openvino.py",
        ", compress_to_fp16=False",
        ", compress_to_fp16=True",
        "test_targets",
        "names_and_weights",
    ),
    Fault(
        "files: OpenVINO's old weights are replaced unasked",
        "exporters/fusion_exporters/targets/openvino.py",
        "for file in (path, weights):",
        "for file in ():",
        "test_targets",
        "request_alone",
    ),
    Fault(
        "files: algebra on what others read",
        "exporters/fusion_exporters/algebra.py",
        "len(value.uses()) == 1",
        "len(value.uses()) >= 1",
        "test_algebra",
        "left_alone or siamese or may_be_an_output",
    ),
    Fault(
        "files: what is made in between is replaced",
        "fusion_onnx/files.py",
        "elif not nameless:\n            _exclusive(part, target)",
        "elif not nameless:\n            os.replace(part, target)",
        "test_writing",
        "race or between",
    ),
    Fault(
        "files: what is replaced loses its mode",
        "fusion_onnx/files.py",
        "            if old is not None:\n                _keep(old, handle)\n",
        "",
        "test_writing",
        "modes or owner",
    ),
    Fault(
        "files: a link is replaced by a file",
        "fusion_onnx/files.py",
        "Path(os.path.realpath(entry)) if overwrite else entry",
        "entry",
        "test_writing",
        "links_stay",
    ),
    Fault(
        "files: a killed process leaves its part",
        "fusion_onnx/files.py",
        'getattr(os, "O_TMPFILE", 0)',
        "0",
        "test_writing",
        "killed",
    ),
    Fault(
        "files: a pipe is replaced by a file",
        "fusion_onnx/files.py",
        "if not stat.S_ISREG(old.st_mode):",
        "if stat.S_ISDIR(old.st_mode):",
        "test_writing",
        "pipes",
    ),
    # --- runtime
    Fault(
        "runtime: sizes that disagree pass",
        "fusion_onnx/runtime/_inputs.py",
        "if isinstance(expected, str) and sizes.setdefault(expected, (size, info.name))[0] != size:",
        "if False:",
        "test_runtime_session test_runtime_bound",
    ),
    Fault(
        "runtime: another dtype passes",
        "fusion_onnx/runtime/_inputs.py",
        "if array.dtype != self.dtype and array.dtype.newbyteorder",
        "if False and array.dtype.newbyteorder",
        "test_runtime_session",
    ),
    Fault(
        "runtime: a bound call reads a copy",
        "fusion_onnx/runtime/_bound.py",
        "    if not is_same:\n        raise InputError(",
        "    if False:\n        raise InputError(",
        "test_runtime_bound",
        "refused",
    ),
    Fault(
        "runtime: an output over an input",
        "fusion_onnx/runtime/_memory.py",
        "return bool(count and other) and first < second + other",
        "return False and first < second + other",
        "test_runtime_bound",
        "do_not_fit",
    ),
    Fault(
        "runtime: one array for two outputs",
        "fusion_onnx/runtime/_bound.py",
        "(*sources, *outputs[:i])",
        "sources",
        "test_runtime_bound",
        "share_memory",
    ),
    Fault(
        "runtime: a bound call does not look where its memory is",
        "fusion_onnx/runtime/_bound.py",
        "if not self._watch.stays():",
        "if False:",
        "test_runtime_bound",
        "other_memory or no_act",
    ),
    Fault(
        "runtime: copies to a device are not waited for",
        "fusion_onnx/runtime/_bound.py",
        "        binding.synchronize_inputs()\n",
        "        pass\n",
        "test_runtime_bound",
        "host_reach",
    ),
    Fault(
        "bodies: the cost rule takes a long sum for one launch",
        "exporters/fusion_exporters/forms/costs.py",
        "inputs_per_pass=8",
        "inputs_per_pass=99",
        "test_cuda_standin",
        "placement",
    ),
    Fault(
        "runtime: CUDA, a bound call gives the first answer for ever",
        "fusion_onnx/runtime/_bound.py",
        "if copies and i < len(sources) and _on_host(value):",
        "if False:",
        "test_cuda_standin",
        "bindings",
    ),
    Fault(
        "runtime: CUDA, no graph is recorded",
        "fusion_onnx/runtime/_session.py",
        'enable_cuda_graph="1"',
        'enable_cuda_graph="0"',
        "test_cuda_standin",
        "bindings",
    ),
    Fault(
        "runtime: CUDA, graphs of one session are one",
        "fusion_onnx/runtime/_session.py",
        'add_run_config_entry("gpu_graph_id", str(number))',
        'add_run_config_entry("gpu_graph_id", "1")',
        "test_cuda_standin",
        "bindings",
    ),
    Fault(
        "runtime: CUDA, graphs are recorded at once",
        "fusion_onnx/runtime/_session.py",
        "        with TURNS:\n",
        "        if True:\n",
        "test_cuda_standin",
        "bindings",
    ),
    Fault(
        "runtime: CUDA, sessions are made while a graph is recorded",
        "fusion_onnx/runtime/_recipe.py",
        "with TURNS if self.plan is not None",
        "with TURNS if False",
        "test_cuda_standin",
        "bindings",
    ),
    Fault(
        "runtime: CUDA, a second thread records unasked",
        "fusion_onnx/runtime/_instances.py",
        "return session, Recording(lock), ",
        "return session, lock, ",
        "test_cuda_standin",
        "bindings",
    ),
    Fault(
        "runtime: CUDA, the CPU may take a node under strictness",
        "fusion_onnx/runtime/_recipe.py",
        "            check_all_on_cuda(session, self.where)",
        "            pass",
        "test_cuda_standin",
        "bindings",
    ),
    Fault(
        "runtime: CUDA, a shape's arithmetic is refused",
        "fusion_onnx/runtime/_placement.py",
        " and node.op_type not in _OF_SHAPES",
        "",
        "test_cuda_standin",
        "bindings",
    ),
    Fault(
        "runtime: CUDA, every GPU is the first",
        "fusion_onnx/runtime/_session.py",
        """f"cuda:{cuda.get('device_id', 0)}\"""",
        '"cuda:0"',
        "test_cuda_standin",
        "bindings",
    ),
    Fault(
        "runtime: memory that is bound may be given back",
        "fusion_onnx/runtime/_memory.py",
        "            yield memoryview(value)",
        "            yield value",
        "test_runtime_bound",
        "no_act",
    ),
    Fault(
        "runtime: the last block of rows is left out",
        "fusion_onnx/runtime/_bound.py",
        "for first in range(0, count, step)",
        "for first in range(0, count - step, step)",
        "test_runtime_bound",
        "blocks",
    ),
    Fault(
        "runtime: the CPU takes what CUDA leaves",
        "fusion_onnx/runtime/_recipe.py",
        "_providers.check(self.plan, session.get_providers())",
        "pass",
        "test_runtime_providers",
    ),
    Fault(
        "runtime: a kernel for minima gives maxima",
        "fusion_onnx/runtime/fused/instructions.py",
        '"Min": MINIMUM, "Max": MAXIMUM',
        '"Min": MAXIMUM, "Max": MINIMUM',
        "test_fused",
        "every_form and min",
    ),
    Fault(
        "runtime: a kernel where zeros have no sign",
        "fusion_onnx/runtime/fused/body.py",
        'if operator == "Div" and not operands[1].signed:',
        "if False:",
        "test_fused",
        "left_to_onnx or bodies",
    ),
    Fault(
        "runtime: a body that is missing",
        "fusion_onnx/runtime/_file_checks.py",
        "if (domain, op_type) not in header.functions:",
        "if False:",
        "test_runtime_session test_runtime_model_file",
    ),
    # --- tolerance: bounds, comparison, verification
    Fault(
        "tolerance: a bound too small",
        "fusion_onnx/contract/rounding.py",
        "def gamma(self, n: int) -> float:",
        "def gamma(self, n: int) -> float:\n        n = n // 4",
        "test_bounds",
        "reached or gamma",
    ),
    Fault(
        "tolerance: a bound too large",
        f"{FUSIONS}/mean.py",
        "share = arithmetic.gamma(k + 1) / k",
        "share = 100 * arithmetic.gamma(k + 1) / k",
        "test_bounds",
        "mean",
    ),
    Fault(
        "tolerance: the product's underflow is free",
        f"{FUSIONS}/prod.py",
        "self.fuse(xs, w).abs() + underflow",
        "self.fuse(xs, w).abs()",
        "test_bounds",
        "prod",
    ),
    Fault(
        "tolerance: NaN may stand anywhere",
        "fusion_onnx/verification/compare.py",
        '"nan": (np.isnan(eager), np.isnan(model)),',
        "",
        "test_verify",
    ),
    Fault(
        "tolerance: everything passes",
        "fusion_onnx/verification/compare.py",
        "if ratio > 1 and not failed:",
        "if ratio > 1e6 and not failed:",
        "test_verify",
        "found",
    ),
    Fault(
        "tolerance: a network may be off by more",
        "fusion_onnx/verification/tolerance.py",
        "\nFACTOR = 8\n",
        "\nFACTOR = 80000\n",
        "test_verify test_mutants",
        "found or mutants",
    ),
    Fault(
        "tolerance: bits are not demanded",
        "fusion_onnx/verification/verify.py",
        "self._bits = written.bitwise and",
        "self._bits = written.bitwise is None and",
        "test_mutants test_verify test_forms",
        "mutants or found or forms",
    ),
    Fault(
        "tolerance: other sizes are not tried",
        "fusion_onnx/verification/trials.py",
        "for i, sizes in enumerate(sizes for sizes in others if sizes != own):",
        "for i, sizes in enumerate(sizes for sizes in [] if sizes != own):",
        "test_verify test_export",
        "fusion_is_also or never_baked",
    ),
    Fault(
        "tolerance: hostile values are not",
        "fusion_onnx/verification/trials.py",
        "            if i not in parameters or (one_input",
        "            if False and (one_input",
        "test_battery",
        "findings or tried and max",
    ),
    # --- verdicts on networks
    Fault(
        "verdicts: one tolerance for all entries",
        "fusion_onnx/verification/tolerance.py",
        "            spread = np.maximum(scale * spread, off)\n",
        "            spread = np.full_like(spread, spread.max(initial=0)) * scale\n",
        "test_verdicts",
        "small_column",
    ),
    Fault(
        "verdicts: shadows decide for themselves",
        "fusion_onnx/verification/tolerance.py",
        "eager, count=count, underflow=hostile)",
        "eager, count=count, underflow=hostile, free=True)",
        "test_verdicts",
        "right_files or rounding",
    ),
    Fault(
        "verdicts: a run changes the module",
        "fusion_onnx/verification/eval_mode.py",
        "            self._written.restore()\n",
        "            pass\n",
        "test_verdicts",
        "left_alone",
    ),
    Fault(
        "verdicts: a run changes its arguments",
        "fusion_onnx/verification/eval_mode.py",
        "self._freed(self.module(*copies(args), **copies(keywords)))",
        "self._freed(self.module(*args, **keywords))",
        "test_verdicts",
        "in_place or left_alone",
    ),
    Fault(
        "verdicts: random numbers are not followed",
        "fusion_onnx/verification/randomness.py",
        "            reached = True\n        if reached:",
        "            pass\n        if reached:",
        "test_verdicts",
        "random",
    ),
    Fault(
        "verdicts: masks stay as given",
        "fusion_onnx/verification/trials.py",
        "if leaves[i].dtype == torch.bool and leaves[i].numel()]",
        "if leaves[i].dtype is None and leaves[i].numel()]",
        "test_verdicts",
        "masks",
    ),
    Fault(
        "verdicts: NaN is left to the battery",
        "fusion_onnx/verification/trials.py",
        "finite=False)] if floating else []",
        "finite=False)] if floating is None else []",
        "test_verdicts",
        "loses",
    ),
    Fault(
        "verdicts: what one output loses excuses all",
        "fusion_onnx/verification/known.py",
        "graph.after(node.output).intersection(graph.outputs)",
        "graph.outputs",
        "test_verdicts",
        "excuse",
    ),
    # --- what callers bring
    Fault(
        "files: limits, a session does not keep to them",
        "fusion_onnx/runtime/_inputs.py",
        "if size < least or (most is not None and size > most):",
        "if False:",
        "test_examples",
        "sizes_that_end",
    ),
    Fault(
        "files: limits, a branch beyond a size is taken for the module's end",
        "exporters/fusion_exporters/exporter.py",
        "run.outputs(inputs.resize(axis, size))",
        "raise ValueError(axis)",
        "test_examples",
        "another_branch",
    ),
    Fault(
        "files: limits, what torch only asserts has none",
        "exporters/fusion_exporters/translation/tracing.py",
        "if isinstance(condition, torch.SymBool) and not node.users:",
        "if False:",
        "test_examples",
        "sizes_that_end and positions",
    ),
    Fault(
        "files: keyword arguments in the order in which they were given",
        "fusion_onnx/verification/arguments.py",
        "key=lambda name: order.index(name) if name in order else len(order)",
        "key=lambda name: 0",
        "test_examples",
        "arguments_of_every_kind",
    ),
    Fault(
        "files: weights beside the model at the wrong place",
        "exporters/fusion_exporters/external.py",
        "return [8 + len(text) + begins[id(tensor)] for tensor in tensors]",
        "return [len(text) + begins[id(tensor)] for tensor in tensors]",
        "test_external",
        "beside_the_model",
    ),
    Fault(
        "files: a matrix and its transpose, both stored",
        "exporters/fusion_exporters/exporter.py",
        "        graph.store_once(model)\n",
        "",
        "test_external",
        "tied",
    ),
    Fault(
        "verdicts: whole rows are not tried where values apart make no sense",
        "fusion_onnx/verification/trials.py",
        "for whole in (False, True)",
        "for whole in (False,)",
        "test_examples",
        "identifiers",
    ),
    Fault(
        "verdicts: a form's own infinities are held against it in a network",
        "fusion_onnx/verification/verify.py",
        "return lax.isdisjoint(forms.values())",
        "return True",
        "test_verify",
        "infinities_of",
    ),
    Fault(
        "runtime: an interruption is taken for an error",
        "fusion_onnx/cli/app.py",
        "if interruption.happened():",
        "if False:",
        "test_words",
        "ctrl_c_ends",
    ),
)


def plant(fault: Fault, folder: Path) -> None:
    """Copy the repository into a folder, with the fault in it."""
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, folder / name)
    changed = fault.source().replace(fault.before, fault.after, 1)
    (folder / fault.file).write_text(changed, encoding="utf-8")


def verdict(fault: Fault, folder: Path) -> tuple[int, str]:
    """Run the fault's tests in a copy until one fails; return pytest's exit status, 1 where one did, and its words."""
    files = [f"tests/{name}.py" for name in fault.tests.split()]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *files]
    command += ["-k", fault.words] if fault.words else []
    paths = os.pathsep.join(map(str, (folder, folder / "exporters")))
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
    for name in [name for name in environment if name.startswith("PYTEST_")]:
        del environment[name]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)
    return done.returncode, done.stdout[-1500:] + done.stderr[-500:]


def main() -> int:
    """Plant each fault whose name has the given word in it, and say what came of it; the exit status counts greens."""
    green = 0
    for fault in FAULTS:
        if not any(word in fault.name for word in sys.argv[1:] or [""]):
            continue
        with tempfile.TemporaryDirectory() as name:
            plant(fault, Path(name))
            status, words = verdict(fault, Path(name))
        green += status != 1
        last = words.strip().splitlines()[-1] if words.strip() else ""
        failed = next((line for line in words.splitlines() if line.startswith(("FAILED", "ERROR"))), last)
        print(f"{'red' if status == 1 else f'GREEN ({status})':10} {fault.name}: {failed[:150]}", flush=True)
    return green


if __name__ == "__main__":
    sys.exit(main())
