"""Generated rewards: functions of any signature, effect and result."""

from __future__ import annotations

from pathlib import Path

from hypothesis import strategies as st
from PIL import Image

from .bench import Bench
from .campaigns import PROMPT, Outcome, Trial, ends, short_run

_HEADER = """\
import asyncio, builtins, decimal, fractions, gc, logging, os, random, shutil, signal, sys, time, warnings
import numpy as np
import torch
class Unprintable(Exception):
    def __str__(self): raise ValueError("no text")
class Odd(BaseException): pass
def deep(n=0): return deep(n + 1)
"""
_SIGNATURES = [
    "images", "image", "prompt, image", "images, pairs", "x, y", "prompts, images, **kwargs",
    "images, prompts, references, masks, subjects", "**kwargs", "*arguments", "images, *, threshold=1",
    "completions, prompts", "images, unknown", "self", "", "images, pairs, /", "prompts",
    "images: 'torch.Tensor' = None",
]  # fmt: skip
_EFFECTS = [
    "print('x' * 1000)", "print('own: \\x1b[31m[/b]', file=sys.stderr)", "time.sleep(0.05)",
    "warnings.warn('careful')", "warnings.simplefilter('error')", "logging.disable()",
    "logging.getLogger().addHandler(logging.StreamHandler())", "torch.set_default_dtype(torch.float64)",
    "torch.set_default_dtype(torch.bfloat16)", "torch.set_default_device('meta')", "torch.set_grad_enabled(True)",
    "torch.inference_mode().__enter__()", "torch.use_deterministic_algorithms(True)", "torch.set_num_threads(3)",
    "torch.manual_seed(0)", "random.seed(0)", "np.random.seed(0)", "os.chdir('/')",
    "os.environ['OMP_NUM_THREADS'] = '7'", "os.environ.pop('HOME', None)", "os.environ.clear()",
    "signal.signal(signal.SIGINT, signal.SIG_IGN)", "signal.signal(signal.SIGTERM, signal.SIG_DFL)", "gc.disable()",
    "sys.setrecursionlimit(400)", "sys.setswitchinterval(1e-6)", "sys.argv.clear()", "sys.stdout = None",
    "sys.path.clear()", "sys.stdout.close()", "shutil.rmtree('run', ignore_errors=True)",
    "torch.backends.cudnn.benchmark = True", "np.seterr(all='raise')",
    "torch.autograd.set_detect_anomaly(True)", "asyncio.new_event_loop()",
    "time.sleep = None", "threading = None", "random.random = lambda: 2", "del builtins.open",
]  # fmt: skip
_CHANGES_ARGUMENTS = [
    "images.zero_()", "images.mul_(float('nan'))", "images.requires_grad_()", "images.resize_(0)", "del images",
    "prompts.clear()", "pairs.clear()", "kwargs.clear()",
]  # fmt: skip
_RETURNED = [
    "[1.0] * n", "[0.5 + i for i in range(n)]", "torch.rand(n)", "np.random.rand(n)", "torch.rand(n, 1)",
    "torch.rand(())", "torch.rand(n, requires_grad=True)", "torch.rand(n, device='meta')",
    "torch.ones(n, dtype=torch.int64)", "torch.ones(n, dtype=torch.bool)", "torch.ones(n, dtype=torch.complex64)",
    "torch.eye(n).to_sparse()", "torch.rand(n).to(torch.float8_e4m3fn)", "torch.tensor([])", "np.ones(n, 'f2')",
    "np.ones((n, 2))", "np.array(['a'] * n)", "np.array([None] * n)", "np.float64(1)", "[]", "[1.0]",
    "[1.0] * (n + 1)", "None", "{}", "{'scores': [1.0] * n}", "'1.0'", "['1.0'] * n", "[b'1'] * n",
    "(1.0 for _ in range(n))", "(1 / 0 for _ in range(n))", "iter(int, 1)", "itertools.repeat(1.0)",
    "[float('nan')] * n", "[float('inf')] * n", "[float('nan')] + [1.0] * (n - 1)", "[-1e308] * n",
    "[3e38 * (i % 2) for i in range(n)]", "[True] * n", "[10**400] * n", "[10**30] * n", "[decimal.Decimal(1)] * n",
    "[fractions.Fraction(1, 3)] * n", "[1j] * n", "[None] * n", "[[1.0]] * n", "tuple([1.0] * n)", "{1.0, 2.0}",
    "range(n)", "map(float, range(n))", "object()", "images", "[torch.tensor(1.0)] * n", "[torch.ones(1)] * n",
    "[torch.ones(2)] * n", "[np.float32(1)] * n", "NotImplemented", "Ellipsis", "ValueError('no')", "f", "[[]] * n",
    "asyncio.sleep(0, [1.0] * n)", "asyncio.sleep(0)", "[object()] * n", "torch.Tensor", "[slice(1)] * n", "1.0",
    "len", "[-0.0, 1e-320] * (n // 2)",
]  # fmt: skip
_RAISED = [
    "ValueError('no')", "ValueError()", "ValueError('a\\nb\\x00\\x1b[31m[/b]')", "ValueError('x' * 10**6)",
    "ValueError('\\udcff')", "KeyError('k')", "SystemExit(0)", "SystemExit('bye')", "SystemExit", "KeyboardInterrupt",
    "MemoryError", "RecursionError", "StopIteration", "StopAsyncIteration", "GeneratorExit", "asyncio.CancelledError",
    "OSError(28, 'No space left on device')", "BrokenPipeError(32, 'Broken pipe')", "FileNotFoundError(2, 'no', 'x')",
    "TimeoutError()", "EOFError()", "Unprintable()", "Odd()", "ExceptionGroup('two', [ValueError(1), KeyError(2)])",
    "BaseExceptionGroup('two', [Odd(), KeyError(2)])", "Warning('w')", "torch.OutOfMemoryError('CUDA out of memory')",
    "RuntimeError('CUDA error: an illegal access')", "UnicodeDecodeError('utf-8', b'x', 0, 1, 'bad')",
    "AssertionError()", "NotImplementedError", "ImportError('no', name='m')", "LookupError(Unprintable())",
    "type('Own', (Exception,), {})()", "SyntaxError('x')", "1", "None",
]  # fmt: skip


def rewards() -> st.SearchStrategy[Trial]:
    """Functions of any behaviour as a reward, for `score` or `train`."""
    effects = st.lists(st.sampled_from(_EFFECTS), max_size=2, unique=True)
    end = st.sampled_from(
        [f"return {one}" for one in _RETURNED] + [f"raise {one}" for one in _RAISED] + ["return deep()"]
    )
    signature = st.just("images, **kwargs") | st.sampled_from(_SIGNATURES)
    changes = st.lists(st.sampled_from(_CHANGES_ARGUMENTS), max_size=1)
    at_import = st.just("") | st.sampled_from([*_EFFECTS, *(f"raise {one}" for one in _RAISED)])
    given = st.tuples(
        at_import,
        st.sampled_from(["", "async "]),
        signature,
        effects,
        changes,
        end,
        st.integers(0, 3).map(lambda number: not number),
    )
    return given.map(_reward_trial)


def _reward_trial(given: tuple[str, str, str, list[str], list[str], str, bool]) -> Trial:
    at_import, kind, signature, effects, changes, end, trains = given
    body = ["n = len(images)", *(["await asyncio.sleep(0)"] if kind else []), *effects, *changes, end]
    if "images" not in signature:
        body[0] = f"n = {4 if trains else 2}; images = None"
    lines = "".join(f"    {line}\n" for line in body)
    code = f"{_HEADER}import itertools\n{at_import}\n{kind}def f({signature}):\n{lines}"

    def trial(bench: Bench, folder: Path, run: Path) -> Outcome:
        own, name = folder / "own.py", "own.py:f"
        own.write_text(code, encoding="utf-8")
        if trains:
            entries = [{"kind": name, "role": "prompt", "name": "own"}]
            entries.append({"kind": "dino", "role": "identity", "path": "embedded/reward-identity"})
            result = ends(bench, folder, ["train", "--out", "trained", *short_run(rewards=entries)], "own", "rewards")
            records = folder / "trained" / "metrics.jsonl"
            assert result != "worked" or len(records.read_text().splitlines()) == 2, "not trained"
            return result
        for photo in ("a.png", "b.png"):
            Image.linear_gradient("L").resize((24, 18)).convert("RGB").save(folder / photo)
        chosen = ["--reward", name, "--role", "prompt", "--image", "a.png", "--image", "b.png"]
        result = ends(bench, folder, ["score", *chosen, *PROMPT, "--out", "scores.csv"], name)
        assert result != "worked" or len((folder / "scores.csv").read_text().splitlines()) >= 3, "no scores"
        return result

    return f"{'train' if trains else 'score'}: {at_import!r}, {kind}def f({signature}): {body}", trial
