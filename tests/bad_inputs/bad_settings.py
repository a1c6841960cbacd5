"""Configurations: YAML files, --set, a study's file, a run's own config.yaml."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from bad_cases import EMBEDDED, NO_MODEL, Case, Command, Message, training

Lines = tuple[Message, ...]


def _from_file(content: bytes | str, name: str = "run.yaml") -> Callable[[Path], list[Command]]:
    def make(folder: Path) -> list[Command]:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return [training(*EMBEDDED, "--config", name, *NO_MODEL), ["plan", "embedded", name, *NO_MODEL]]

    return make


def _from_options(*settings: str) -> Callable[[Path], list[Command]]:
    return lambda folder: [training(*EMBEDDED, *(part for one in settings for part in ("--set", one)), *NO_MODEL)]


def files() -> Iterator[Case]:
    def case(name: str, content: bytes | str, *message: str) -> Case:
        return Case("YAML", name, _from_file(content), tuple((line,) for line in message))

    yield case("bad UTF-8", b"seed: \xe9", "run.yaml: not UTF-8 at byte 6")
    yield case("a control character", "data: {path: a\x07b}", "run.yaml: not valid YAML")
    yield case("a bracket left open", "rewards: [1\n", "run.yaml:2: not valid YAML")
    yield case("1,000 brackets", "[" * 1_000, "run.yaml")
    yield case("2 MB", "# nothing\n" * 200_000, "run.yaml: 2 MB, more than 1 MB; give another file")
    yield case("a list", "- seed: 1\n", "run.yaml: not a mapping")
    yield case("a key twice, deep", "train:\n  updates: 1\n  updates: 2\n", "run.yaml:3: train.updates is given twice")
    alias = "not valid YAML (aliases are not supported)"
    yield case("an alias", "data: &a {path: x}\nevaluation: {data: *a}\n", f"run.yaml:2: {alias}")
    yield case("a billion laughs", "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n", f"run.yaml:2: {alias}")
    yield case("a merge key", "<<: {seed: 1}\n", "run.yaml:1: the file has a key that is not plain text")
    for tag in ("!!python/object/apply:os.system ['true']", "!!python/name:os.system", "!!binary aGk=", "!mine 1"):
        yield case(f"the tag {tag}", f"seed: {tag}\n", "run.yaml:1: ")
    yield case("a date", "policy: {revision: 2024-01-01}\nseed: 2024-01-01\n",
               "run.yaml:2: seed: input should be a valid integer; given '2024-01-01'")  # fmt: skip
    yield case("a misspelt key in a list", "rewards:\n- {kind: dino, role: identity, wieght: 1}\n- {kind: clip, role: prompt}\n",
               "run.yaml:2: rewards.0.wieght: unknown key; did you mean rewards.0.weight?")  # fmt: skip
    yield case("a key that nothing is like", "qqqq: 1\n", "run.yaml:1: qqqq: unknown key; known are data, ")
    yield case("comments alone", "# nothing\n")
    yield case("a byte order mark and Windows lines", "\ufeffseed: 1\r\ntrain:\r\n  updates: 2\r\n")
    yield case("flow style, as JSON", '{"seed": 1, "train": {"updates": 2}}')
    folder = ((".: is a folder; give a regular file",),)
    yield Case("YAML", "a folder", lambda _: [training("--config", ".")], folder)
    for name, path in (("a file that is not there", "gone.yaml"), ("a name of line breaks", "a\nb.yaml"),
                       ("a name of 5,000 letters", "a" * 5000)):  # fmt: skip
        yield Case("YAML", name, lambda folder, path=path: [training("--config", path)], (("cannot be read (",),))


def values() -> Iterator[Case]:
    """One setting each, message of by its dotted key."""

    def case(setting: str, message: str, *further: str) -> Case:
        return Case("setting", setting[:60], _from_options(setting, *further), ((message,),))

    for text in (".nan", ".inf", "-.inf"):
        yield case(f"train.learning_rate={text}", f"train.learning_rate must be finite; given {text}")
    # Bounds are tried in tests/test_settings.py.
    for key, text in {
        "seed": "one", "train.iterations": "'60'", "train.updates": "true", "rollout.steps": "6.5", "train.betas": "0.9",
        "policy.lora": "5", "policy.compile": "'yes'", "rewards": "dino", "train": "[]", "evaluation.monitors": "{}",
        "policy.revision": "12", "data.root": "5",
    }.items():  # fmt: skip
        yield case(f"{key}={text}", f"{key}: input should be ")
    for key, text in {"train.batch_size": "0", "rollout.batch_size": "-48"}.items():
        yield case(f"{key}={text}", f"{key}: should be a number from 1 to 1048576, or auto; given {text}")
    yield case(
        "method.std_floor={identity: -3}", "method.std_floor.identity: input should be greater than or equal to 0"
    )
    yield case("train.betas=[0.9]", "train.betas.1: field required")
    yield case("policy.sizes=[[64, 9]]", "policy.sizes.0.1: input should be a multiple of 8")
    yield case("policy.sizes=[[64, 96]]", "policy.sizes: should contain policy.height and policy.width, [64, 64]")
    yield case("policy.reference_sizes=[]", "policy.reference_sizes: list should have at least 1 item")
    for key, near in {"policy.kind": "flux", "method.shaping": "SARS", "train.trackers.0": "mlflow"}.items():
        yield case(f"{key}={near}", f"{key}: ")
    for setting, message in {
        "train": "not an override; write KEY=VALUE", "=1": "not an override", "a..b=1": "not an override",
        "seed.a=1": "seed has no parts", "rewards.7.weight=1": "rewards has entries 0 to 1, not '7'",
        "rewards.-1.weight=1": "rewards has entries 0 to 1, not '-1'", "seed=[1,": "not valid YAML",
        "train.lr=1": "train.lr: unknown key", "rollout.group=4": "did you mean rollout.group_size?",
        "polcy.path=x": "polcy: unknown key; did you mean policy?", "seed=!!python/name:os.system": "has the tag",
        "seed=\x00": "not valid YAML", "rewards=[{role: prompt}]": "rewards.0.kind: field required",
    }.items():  # fmt: skip
        yield case(setting, message)


def contradictions() -> Iterator[Case]:
    def case(name: str, message: str, *settings: str) -> Case:
        return Case("setting", name, _from_options(*settings), ((message,),))

    yield case("no reward that counts", "no reward of role prompt has a weight above 0; add one", "rewards.1.weight=0")
    yield case("two of one name", "two rewards or monitors have the name 'prompt'", "rewards.0.name=prompt")
    yield case("a window past the end", "rollout.window: start 3 and size 4 pass", "rollout.window={start: 3}")
    yield case("another version", "version: should be 1: another version of this package wrote", "version=2")
    yield case(
        "surgery of a sum",
        "method.surgery: pcgrad needs one gradient per role; set method.normalise=roles",
        *("method.shaping=none", "method.weighting=static", "method.normalise=sum", "method.surgery=pcgrad"),
    )
    yield case("a sum that is shaped", "method.normalise: sum needs method.shaping=none", "method.normalise=sum")
    yield case("a table of too few weights", "method.prompt_table: has 1 weights; give one for each of rollout.steps=6",
               "method.weighting=table", "method.prompt_table=[1]", "method.identity_table=[1, 1, 1, 1, 1, 1]")  # fmt: skip
    yield case("weights of 0 both", "method.identity_weight: is 0, and so is method.prompt_weight", "method.weighting=static",
               "method.prompt_weight=0", "method.identity_weight=0")  # fmt: skip
    yield case("quantised and tuned", "policy.quantise: needs a LoRA", "policy.lora=null",
               "policy.quantise=int8")  # fmt: skip
    yield case("all weights that start from a LoRA", "policy.adapter_as: start needs a LoRA", "policy.kind=uno",
               "policy.lora=null", "policy.adapter_as=start", "policy.adapter=a.safetensors")  # fmt: skip
    yield case(
        "options of a built-in kind", "policy.options: are only for a policy class of your own", "policy.options={a: 1}"
    )
    yield case(
        "a tracker twice", "train.trackers: lists tensorboard twice", "train.trackers=[tensorboard, tensorboard]"
    )


def studies() -> Iterator[Case]:
    def case(name: str, content: bytes | str, *message: str) -> Case:
        def make(folder: Path) -> list[Command]:
            (folder / "study.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
            return [["study", "study.yaml", "--out", "run", "--report-only"]]

        return Case("study's YAML", name, make, tuple((line,) for line in message))

    yield case("empty", "", "study.yaml: rows: field required", "study.yaml: ours: field required")
    yield case("no YAML", "a: [", "study.yaml:1: not valid YAML")
    yield case("a Python object", "ours: a\nrows: !!python/object/apply:os.getcwd []", "study.yaml:2: rows has the tag")
    yield case(
        "a misspelt key of a row",
        "ours: a\nrows: {a: {sets: {}}}\n",
        "rows.a.sets: unknown key; did you mean rows.a.set?",
    )
    yield case("no seed", "ours: a\nrows: {a: {seeds: 0}}", "study.yaml:2: rows.a.seeds: ")
    yield case("ours that is no row", "ours: b\nrows: {a: {}}", "study.yaml: ours: no row is named 'b'")
    yield case("a row with a misspelt setting", "ours: a\nrows: {a: {set: {train.lr: 1}}}", "row 'a': --set train.lr")
    yield case("two rows of one folder", "ours: a\nrows: {a: {}, A: {}}", "study.yaml: rows: 'a' and 'A' would share")
    yield Case("study's YAML", "no file", lambda _: [["study", "gone.yaml"]], (("gone.yaml: cannot be read",),))


CASES = [*files(), *values(), *contradictions(), *studies()]
