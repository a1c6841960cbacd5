"""A run from its configuration to its pictures: opens the parts, trains them, leaves all in one folder."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch
from accelerate import Accelerator
from PIL import Image
from rich.console import Console
from rich.text import Text

from customized_grpo.config import POLICIES, Config, ConfigError
from customized_grpo.configuration import load_config, save_config
from customized_grpo.data import open_dataset
from customized_grpo.evaluation import Evaluation, evaluate, evaluation_grid, guards_of, read_evaluation
from customized_grpo.figures.curves import training_curves
from customized_grpo.figures.plane import identity_prompt_plane
from customized_grpo.figures.weights import schedule
from customized_grpo.information import STARTS, hardware, versions
from customized_grpo.locking import claim
from customized_grpo.pixels import to_image
from customized_grpo.policies import build_policy
from customized_grpo.protocols import Conditions, PairDataset, Policy, Reward
from customized_grpo.records import append_record, aside, move_folder, read_records, sweep, writing
from customized_grpo.report import REPORT, Finding, collect, find_warnings, notes_of, write_report
from customized_grpo.rewards import build_reward
from customized_grpo.run_folder import CONFIG, LORA, LORA_FILE, open_run
from customized_grpo.sharding import is_sharded
from customized_grpo.snapshots import keep_groups, keep_samples
from customized_grpo.stopping import Stopped, Stopping
from customized_grpo.terminal import TrainingDisplay, score_table
from customized_grpo.trackers import check_trackers, log_picture, start_trackers, trackers_of
from customized_grpo.training.checkpoint import checkpointed_iterations
from customized_grpo.training.credit import reward_name, weights_of
from customized_grpo.training.groups import Groups
from customized_grpo.training.loop import Observer, train
from customized_grpo.training.order import pairs_of_iteration
from customized_grpo.training.processes import ALONE, Processes, lost_processes_told, start_processes
from customized_grpo.training.rollout import image_noise, noise_levels, sample_pictures


@dataclass(frozen=True)
class Judges:
    """The configured rewards and monitors, built."""

    rewards: list[Reward]
    monitors: list[Reward]

    @property
    def all(self) -> list[Reward]:
        return [*self.rewards, *self.monitors]


def build_judges(config: Config, device: torch.device) -> Judges:
    return Judges(
        [build_reward(reward, device) for reward in config.rewards],
        [build_reward(monitor, device) for monitor in config.evaluation.monitors],
    )


@lost_processes_told()
def train_run(config: Config, run: Path, console: Console) -> None:
    """Train, or go on training, the run in its folder; then draw, score and show what it has learned.

    The folder is made once all parts are open: bad input leaves nothing behind. It is this process's alone until the
    end. Raises Stopped where a SIGTERM or Ctrl-C ends the training, which is saved.
    """
    with ExitStack() as held, writing(run):
        _train_run(config, run, console, held)


def _train_run(config: Config, run: Path, console: Console, held: ExitStack) -> None:
    check_trackers(config.train.trackers)
    dataset = open_dataset(config.data)
    held_out = open_dataset(config.evaluation.data)
    accelerator = start_processes(config, run, trackers_of(config.train.trackers, run))
    held.push(lambda kind, *_: accelerator.end_training() if kind is Stopped else None)  # trackers keep what they have
    processes = Processes(accelerator)
    processes.check(config)
    run = Path(processes.text_of_main(str(run)))  # a folder named after the time may be another on each
    main = accelerator.is_main_process
    new = not run.exists()
    if main and not new:
        held.enter_context(claim(run))
    policy = build_policy(config.policy)
    processes.share_weights(policy)
    judges = build_judges(config, policy.device)
    if main:
        run.mkdir(parents=True, exist_ok=True)
        if new:
            held.enter_context(claim(run))
        sweep(run)
        save_config(config, run / CONFIG)
    start_trackers(accelerator, config)
    if main:
        count = sum(weight.numel() for weight in policy.trainable().values())
        console.print(f"{len(dataset)} pairs, {count:,} trainable parameters on {policy.device}; run folder {run}")
        sigmas = noise_levels(policy, config.rollout.steps, config.rollout.shift).cpu()
        shuffled = config.method.weighting == "tdw-shuffled"
        title = "read at shuffled positions, not at the step" if shuffled else None
        schedule(run / "weights.png", *weights_of(config.method, config.rollout.steps), sigmas=sigmas[:-1], title=title)
    done = checkpointed_iterations(run)
    if config.policy.conditions is not None:
        encode_ahead(config, policy, dataset, held_out, done, accelerator)
    if main:
        append_record(run / STARTS, _start(accelerator, policy, done))
    base = _evaluation(config, run, "base", policy, held_out, judges, console, processes)
    if main:
        keep_samples(run, 0, held_out, config.evaluation.images, base)
    warned: set[tuple[str, str]] = set()
    shown = TrainingDisplay(config.train.iterations, done=done, console=console) if main else nullcontext()
    # Parts make a checkpoint together, which they cannot when one of them was stopped: the last one stands.
    together = processes.zero is not None or is_sharded(next(iter(policy.trainable().values())))
    saves = main and not together
    with Stopping(run, saves=saves, alone=accelerator.num_processes == 1) as stopping, shown as display:

        def on_iteration(record: Mapping[str, float]) -> None:
            accelerator.log({k: v for k, v in record.items() if k != "iteration"}, step=int(record["iteration"]))
            assert isinstance(display, TrainingDisplay)
            display.update(record)
            if any(key.startswith("evaluation/") for key in record):
                for finding in _findings(config, run):
                    if (finding.kind, finding.about) not in warned:
                        display.message(_warning(finding))
                    warned.add((finding.kind, finding.about))

        def on_sample(iteration: int) -> dict[str, float]:
            means = _sample(config, run, iteration, policy, held_out, judges, processes)
            if main:
                log_picture(accelerator, "samples", sample_grid(run, iteration), iteration)
            return means

        def on_groups(iteration: int, groups: Groups) -> None:
            keep_groups(run, iteration, groups)

        train(
            config,
            run,
            policy,
            dataset,
            judges.rewards,
            accelerator,
            Observer(on_iteration, on_sample, on_groups),
            stopping,
        )
    if main or together:
        partial = aside(run / LORA) if main else run / LORA
        policy.save(partial)
        if main:
            move_folder(partial, run / LORA)
    # Where the training was stopped before its last samples, what is there is of an earlier policy.
    old = not any(key.startswith("evaluation/") for key in read_records(run / "metrics.jsonl")[-1])
    tuned = _evaluation(config, run, "tuned", policy, held_out, judges, console, processes, again=old)
    if main:
        show(config, run, held_out, base, tuned, console)
    accelerator.wait_for_everyone()
    accelerator.end_training()  # which ends the processes' group, too


def encode_ahead(
    config: Config, policy: Policy, dataset: PairDataset, held_out: PairDataset, done: int, accelerator: Accelerator
) -> None:
    """Have the conditions of every pair that the run will meet in the policy's folder, a share by each process."""
    iterations = range(done, config.train.iterations)
    drawn = (pairs_of_iteration(len(dataset), config.rollout.pairs, config.seed, i) for i in iterations)
    ahead = [(dataset, index) for index in sorted(set(itertools.chain.from_iterable(drawn)))]
    ahead += [(held_out, index) for index in range(len(held_out))]
    for source, index in ahead[accelerator.process_index :: accelerator.num_processes]:
        pair = source[index]
        policy.encode(pair.prompt, pair.references)
    accelerator.wait_for_everyone()


def evaluate_run(run: Path, console: Console, overrides: Sequence[str] = ()) -> None:
    """Draw and score the held-out pairs with the run's LoRA and without, and show both."""
    open_run(run)
    config = load_config(run / CONFIG, overrides)
    if not (run / LORA).exists():
        raise ConfigError(f"{run}: holds no {LORA} yet; finish it by cgrpo train --resume {run}")
    held_out = open_dataset(config.evaluation.data)
    with claim(run), writing(run):
        policy = build_policy(config.policy)
        judges = build_judges(config, policy.device)
        base = _evaluation(config, run, "base", policy, held_out, judges, console, again=bool(overrides))
        policy.load(run / LORA)
        tuned = _evaluation(config, run, "tuned", policy, held_out, judges, console, again=True)
        show(config, run, held_out, base, tuned, console)


def generate(
    policy: Policy,
    prompt: str,
    references: Sequence[Image.Image],
    *,
    steps: int,
    seed: int,
    images: int,
) -> list[Image.Image]:
    """Pictures of the subject of `references` that follow the prompt, by deterministic sampling."""
    conditions = Conditions.join([policy.encode(prompt, references)] * images)
    noise = torch.cat([image_noise(policy, 1, seed, "generate", i) for i in range(images)])
    sigmas = policy.sigmas(steps).to(policy.device)
    return [to_image(picture) for picture in sample_pictures(policy, conditions, noise, sigmas)]


def show(
    config: Config,
    run: Path,
    held_out: PairDataset,
    base: Evaluation,
    tuned: Evaluation,
    console: Console,
) -> None:
    """The pictures and the table that end a run."""
    evaluation_grid(run / "before-after.png", held_out, config.evaluation.images, {"base": base, "tuned": tuned})
    guards = guards_of(config)
    if (run / "metrics.jsonl").exists():
        start = {"iteration": 0, **{f"evaluation/{name}/mean": mean for name, mean in base.means.items()}}
        training_curves(run / "curves.png", [start, *read_records(run / "metrics.jsonl")], guards=guards)
    names = {role: [reward_name(r) for r in config.rewards if r.role == role] for role in ("identity", "prompt")}
    first = {role: given[0] for role, given in names.items()}
    points = {name: (one.mean(first["identity"]), one.mean(first["prompt"]))
              for name, one in (("base", base), ("tuned", tuned))}  # fmt: skip
    title = f"{len(held_out)} pairs of the evaluation"
    identity_prompt_plane(run / "plane.png", points, title=title, labels=(first["identity"], first["prompt"]))
    findings = _findings(config, run)
    rows = ((name, base.mean(name), tuned.mean(name)) for name in base.scores)
    console.print(score_table(rows, guards=guards, notes=notes_of(config, findings)))
    for finding in findings:
        console.print(Text(_warning(finding), style="yellow"), soft_wrap=True)
    write_report(open_run(run), run)
    names_shown = (REPORT, "before-after.png", "curves.png", "plane.png", LORA)
    console.print("look at " + ", ".join(os.path.relpath(run / name) for name in names_shown if (run / name).exists()))


def _findings(config: Config, run: Path) -> list[Finding]:
    """What in the run's curves should worry its reader, as far as it has come."""
    return find_warnings(config, collect(run, config).records)


def _warning(finding: Finding) -> str:
    return f"warning: {finding.told} {finding.remedy}"


def _evaluation(
    config: Config,
    run: Path,
    name: str,
    policy: Policy,
    held_out: PairDataset,
    judges: Judges,
    console: Console,
    processes: Processes = ALONE,
    *,
    again: bool = False,
) -> Evaluation:
    """The run's evaluation of that name: "base" is that of the untuned model. Drawn once, or `again`."""
    folder = run / "evaluation" / name
    kept = None if again else read_evaluation(folder, config.evaluation)
    if processes.least(int(kept is not None)) and kept is not None:
        return kept
    if processes.is_main:
        console.print(f"drawing {len(held_out) * config.evaluation.images} pictures of the evaluation ({name})")
    with policy.reference() if name == "base" else nullcontext():
        return _draw(config, folder, policy, held_out, judges, processes)


def _draw(
    config: Config, folder: Path, policy: Policy, held_out: PairDataset, judges: Judges, processes: Processes
) -> Evaluation:
    size = config.rollout.batch_size
    return evaluate(policy, held_out, judges.all, config.evaluation, folder, batch_size=size, processes=processes)


def _sample(
    config: Config,
    run: Path,
    iteration: int,
    policy: Policy,
    held_out: PairDataset,
    judges: Judges,
    processes: Processes,
) -> dict[str, float]:
    """Draw and score the held-out pairs as the policy now is; keep the first few as a grid.

    The last iteration's are the run's own "tuned" ones.
    """
    now = _draw(config, run / "evaluation" / "tuned", policy, held_out, judges, processes)
    if processes.is_main:
        base = read_evaluation(run / "evaluation" / "base", config.evaluation)
        columns = {**({"base": base} if base is not None else {}), f"iteration {iteration}": now}
        keep_samples(run, iteration, held_out, config.evaluation.images, now)
        evaluation_grid(sample_grid(run, iteration), held_out, config.evaluation.images, columns)
    return {f"evaluation/{name}/mean": value for name, value in now.means.items()}


def sample_grid(run: Path, iteration: int) -> Path:
    """The picture of the held-out pairs as they were drawn after that many iterations."""
    return run / "samples" / f"iteration-{iteration:06d}.png"


def _start(accelerator: Accelerator, policy: Policy, done: int) -> dict[str, object]:
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "iterations done": done,
        "versions": versions(),
        "hardware": {**hardware(policy.device), "processes": str(accelerator.num_processes)},
    }


def policy_with_adapter(config: Config, run: Path | None) -> Policy:
    """The configured policy, with the adapter of `run` where one is given."""
    if run is not None and not (run / LORA).exists():
        raise ConfigError(f"{run}: holds no {LORA}; give the folder of a finished run")
    if run is not None and config.policy.lora is not None and config.policy.kind in POLICIES:
        from customized_grpo.policies.tuning import lora_metadata

        lora_metadata(run / LORA / LORA_FILE)  # a damaged file, before a large model is loaded
    policy = build_policy(config.policy)
    if run is not None:
        policy.load(run / LORA)
    return policy
