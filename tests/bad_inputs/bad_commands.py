"""Options and arguments, run folders and the names of files to write."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from bad_cases import Case, Command, photo
from bad_weights import whole_run

from customized_grpo.rewards.wire import TOKEN_VARIABLE


def _typed(*command: str) -> Callable[[Path], list[Command]]:
    def make(folder: Path) -> list[Command]:
        photo(folder)
        (folder / "empty").mkdir()
        return [list(command)]

    return make


ASK = ("--reference", "good.png", "--prompt", "a cat")


def options() -> Iterator[Case]:
    def case(name: str, message: str, *command: str) -> Case:
        return Case("command", name, _typed(*command), ((message,),))

    yield case("no such command", "No such command 'trian'", "trian")
    yield case("no such option", "train: No such option", "train", "--confg", "a.yaml")
    yield case("an option without its value", "'--set' requires an argument", "train", "--set")
    yield case("a setting that there is not", "metod: no such setting; did you mean method?", "settings", "metod")
    yield case("a part as a page", "--markdown prints all settings; remove train", "settings", "train", "--markdown")
    yield case("an argument too few", "evaluate: Missing argument '", "evaluate")
    yield case("no reference", "generate: Missing option '--reference'", "generate", "--prompt", "a")
    for option, value in (("--images", "0"), ("--images", "100000000"), ("--steps", "1.5"), ("--seed", "1e3")):
        yield case(f"{option} {value}", f"generate: Invalid value for '{option}'", "generate", *ASK, option, value)
    for option, value in (("--port", "70000"), ("--max-images", "0")):
        yield case(f"serve-reward {option} {value}", f"serve-reward: Invalid value for '{option}'", "serve-reward",
                   "--reward", "copy-paste", option, value)  # fmt: skip
    yield case("demo --port 0", "demo: Invalid value for '--port'", "demo", "--port", "0")
    merge = ("merge", "good.png", "--out", "out")
    yield case("merge --dtype int8", "merge: Invalid value for '--dtype'", *merge, "--dtype", "int8")
    yield case("no prompt of two kinds", "give either --prompt or --prompts", "generate", "--reference", "good.png")
    draw = ("generate", "--reference", "good.png")
    yield case("prompts that are an image", "good.png: not UTF-8", *draw, "--prompts", "good.png")
    yield case("endless prompts", "/dev/zero: is a pipe or device", *draw, "--prompts", "/dev/zero")
    yield case("an endless configuration", "/dev/zero: is a pipe or device", "info", "--config", "/dev/zero")
    yield case("markup in a path", "[/b]run: holds no config.yaml", "export", "[/b]run", "--out", "[/x]")
    for pattern in ("../{subject}/{prompt}_{index}.png", "{subject}{prompt:02000000000}{index}",
                    "{subject.__class__}{prompt}{index}"):  # fmt: skip
        yield case(f"--image-pattern {pattern}", f"--image-pattern {pattern!r}: ", "evaluate", "empty", "--benchmark", "world",
                   "--protocol", "embedded", "--image-pattern", pattern)  # fmt: skip
    yield case("plan --processes 0", "plan: Invalid value for '--processes'", "plan", "--processes", "0")
    for size in ("-24GB", "24XB", "1e999GB"):
        yield case(f"plan --memory {size!r}", f"--memory: '{size}' is no size", "plan", f"--memory={size}")
    yield case("--resume and --out", "--resume uses the run's own settings", "train", "--resume", "a", "--out", "b")
    yield case("--allow-changes alone", "--allow-changes needs --resume", "train", "--allow-changes")
    yield case("--out that is a file", "good.png: holds something already", "train", "--out", "good.png")
    for name in ("out", "out.exe"):
        yield case(f"generate --out {name}", "not the name of an image", "generate", *ASK, "--out", name)
    path = "good.png/out.png"
    yield case(f"generate --out {path}", "cannot be written there", "generate", *ASK, "--out", path)
    yield from _scores()


def _scores() -> Iterator[Case]:
    def case(name: str, message: str, *command: str) -> Case:
        return Case("command", f"score: {name}", _typed("score", "--prompt", "a", *command), ((message,),))

    image, guard = ("--image", "good.png"), ("--reward", "copy-paste", "--role", "guard")
    yield case("no reward", "no --reward; give a kind", *image)
    yield case("no image", "no image to score; give --image", "--reward", "copy-paste")
    yield case("no such folder", "gone: no such folder", "--reward", "copy-paste", "--images", "gone")
    yield case("no such kind", "unknown kind 'dyno'; did you mean 'dino'?", "--reward", "dyno", *image)
    yield case("a reward twice", "--reward 'dino' is given twice", "--reward", "dino", "--reward", "dino", *image)
    yield case("no such role", "role: input should be", "--reward", "dino", "--role", "style", *image)
    yield case("no reference", "reward 'copy-paste' needs a reference, and pair 'score' has none", *guard, *image)
    yield case("an unknown option", "unknown option 'size'", *guard, "--option", "size=3", *image)
    yield case("--config and --run", "both given; keep one", "--config", "a.yaml", "--run", "b", *image)
    yield case("a run that is none", "good.png: holds no config.yaml", "--run", "good.png", *image)
    yield case(
        "masks too many", "--mask is given 1 times for 0", "--reward", "copy-paste", "--mask", "good.png", *image
    )
    yield case("a file that is not there", "there is no file gone.py", "--reward", "gone.py:judge", *image)
    yield case("a password in an address", "may hold no password", "--reward", "vlm", "--path", "m", "--option",
               "url=http://me:secret@localhost", *image)  # fmt: skip
    yield case(
        "no token", f"{TOKEN_VARIABLE} is not set", "--reward", "remote", "--option", "url=http://127.0.0.1:9", *image
    )
    yield case("a file to write that is a folder", "--out empty: cannot be written", "--reward", "copy-paste", "--role", "guard", "--reference",
               "good.png", *image, "--out", "empty")  # fmt: skip


def _run(change: Callable[[Path], object]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        shutil.copytree(whole_run(), folder / "before")
        change(folder / "before")
        return folder

    return make


def runs() -> Iterator[Case]:
    def case(name: str, change: Callable[[Path], object], message: str, *commands: Command) -> Case:
        def make(folder: Path) -> list[Command]:
            photo(folder)
            _run(change)(folder)
            return list(commands)

        return Case("run folder", name, make, ((message,),))

    resume, evaluate, report = ["train", "--resume", "before"], ["evaluate", "before"], ["report", "before"]
    export, merge = ["export", "before", "--out", "out"], ["merge", "before", "--out", "out"]
    draw = ["generate", *ASK, "--run", "before"]
    score = ["score", "--prompt", "a", "--image", "good.png", "--run", "before"]
    every = (resume, evaluate, report, export, merge, draw, score)
    yield case("empty", lambda run: (shutil.rmtree(run), run.mkdir()), "before: holds no config.yaml", *every)

    def config(text: str) -> Callable[[Path], object]:
        return lambda run: (run / "config.yaml").write_text(text, encoding="utf-8")

    yield case("a configuration that is no YAML", config("a: ["), "before/config.yaml:1: not valid YAML", *every)
    yield case("an empty configuration", config("# nothing\n"), "before/config.yaml: is empty; restore it", *every)
    yield case("a configuration of another version", config("seed: 1\nflux_capacitor: 5\n"),
               "before/config.yaml:2: flux_capacitor: unknown key", *every)  # fmt: skip
    yield case("without a LoRA", lambda run: shutil.rmtree(run / "lora"), "before: ", evaluate, export, merge, draw)
    yield case("an export to a folder with something in it", lambda run: (run.parent / "out").mkdir() or photo(run.parent / "out"),
               "out: is not empty", export, merge)  # fmt: skip
    for name, line in (("no JSON", "nonsense"), ("no iteration", "{}")):
        yield case(f"metrics: {name}", lambda run, line=line: (run / "metrics.jsonl").write_text(f"{line}\n{{\"iteration\": 1}}\n"),
                   "before/metrics.jsonl:1: ", report)  # fmt: skip
    yield Case(
        "run folder",
        "a report of nothing yet",
        lambda folder: (_run(lambda run: None)(folder), [["report", "before"]])[1],
    )
    of_texts = json.dumps({"settings": {}, "scores": {"a": "x"}, "images": 5})
    for name, content in (("no JSON", "{"), ("scores of texts", of_texts)):

        def damaged(run: Path, content: str = content) -> None:
            for half in ("base", "tuned"):
                (run / "evaluation" / half).mkdir(parents=True)
                (run / "evaluation" / half / "scores.json").write_text(content, encoding="utf-8")
            for kind in ("samples", "groups"):
                (run / kind / "iteration-000000").mkdir(parents=True)
                (run / kind / "iteration-000000" / "index.json").write_text(content, encoding="utf-8")

        yield Case("run folder", f"evaluation and samples: {name}", lambda folder, damaged=damaged: (
            _run(damaged)(folder), [["report", "before"], ["export", "before", "--out", "out"]])[1])  # fmt: skip


CASES = [*options(), *runs()]
