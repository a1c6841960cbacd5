"""A run from its configuration to its pictures: opens the parts, trains them, leaves all in one folder."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from datetime import datetime
from pathlib import Path

from accelerate import Accelerator
from rich.console import Console

from customized_grpo.config import Config
from customized_grpo.config.loading import save_config
from customized_grpo.console.information import STARTS, hardware, versions
from customized_grpo.console.terminal import TrainingDisplay
from customized_grpo.data import open_dataset
from customized_grpo.evaluation import evaluation_grid, read_evaluation
from customized_grpo.figures.weights import schedule
from customized_grpo.policies import build_policy
from customized_grpo.protocols import PairDataset, Policy
from customized_grpo.records import append_record, aside, move_folder, read_records, sweep, writing
from customized_grpo.report.snapshots import keep_groups, keep_samples
from customized_grpo.runs.evaluate import draw_evaluation, evaluation_of
from customized_grpo.runs.folder import CONFIG, LORA
from customized_grpo.runs.locking import claim
from customized_grpo.runs.parts import Judges, build_judges
from customized_grpo.runs.show import findings_of, sample_grid, show, warning_of
from customized_grpo.runs.trackers import check_trackers, log_picture, start_trackers, trackers_of
from customized_grpo.stopping import Stopped, Stopping
from customized_grpo.tensors.sharding import is_sharded
from customized_grpo.training.checkpoint import checkpointed_iterations
from customized_grpo.training.credit import weights_of
from customized_grpo.training.groups import Groups
from customized_grpo.training.loop import Observer, train
from customized_grpo.training.order import pairs_of_iteration
from customized_grpo.training.processes import Processes, lost_processes_told, start_processes
from customized_grpo.training.rollout import noise_levels


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
    base = evaluation_of(config, run, "base", policy, held_out, judges, console, processes)
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
                for finding in findings_of(config, run):
                    if (finding.kind, finding.about) not in warned:
                        display.message(warning_of(finding))
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
    tuned = evaluation_of(config, run, "tuned", policy, held_out, judges, console, processes, again=old)
    if main:
        show(config, run, held_out, base, tuned, console)
    processes.wait()
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
    Processes(accelerator).wait()


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
    now = draw_evaluation(config, run / "evaluation" / "tuned", policy, held_out, judges, processes)
    if processes.is_main:
        base = read_evaluation(run / "evaluation" / "base", config.evaluation)
        columns = {**({"base": base} if base is not None else {}), f"iteration {iteration}": now}
        keep_samples(run, iteration, held_out, config.evaluation.images, now)
        evaluation_grid(sample_grid(run, iteration), held_out, config.evaluation.images, columns)
    return {f"evaluation/{name}/mean": value for name, value in now.means.items()}


def _start(accelerator: Accelerator, policy: Policy, done: int) -> dict[str, object]:
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "iterations done": done,
        "versions": versions(),
        "hardware": {**hardware(policy.device), "processes": str(accelerator.num_processes)},
    }
