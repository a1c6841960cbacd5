"""The run around a trainer's iterations: its folder, checkpoints, evaluations, stops and events."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi

from customized_grpo.config.loading import save_config
from customized_grpo.rewards import RewardError
from customized_grpo.trainer.assembly import Parts
from customized_grpo.trainer.checkpoint import (
    checkpointed_iterations,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from customized_grpo.trainer.conditioning import encode_ahead
from customized_grpo.trainer.credit import objectives_of
from customized_grpo.trainer.evaluation import Evaluation, evaluate, read_evaluation
from customized_grpo.trainer.folder import CHECKPOINTS, CONFIG, EVALUATION, LORA, METRICS, check_unused
from customized_grpo.trainer.groups import Groups
from customized_grpo.trainer.locking import claim
from customized_grpo.trainer.optimizer import build_optimizer
from customized_grpo.trainer.processes import lost_processes_told
from customized_grpo.trainer.profiling import Clock, Profiler
from customized_grpo.utils.machine import STARTS, hardware, versions
from customized_grpo.utils.records import (
    append_record,
    aside,
    move_folder,
    read_records,
    sweep,
    truncate_records,
    writing,
)
from customized_grpo.utils.stopping import Stopping


class BaseTrainer(ABC):
    """Trains a policy in iterations, in a folder from which the run can be resumed.

    What an iteration does is `train_step`, which a subclass defines.

    Attributes:
        iteration: Iterations that are done.
        should_stop: Ends the training after the present iteration; callbacks may set it.
        base_evaluation: Scores of the untrained model on the held-out pairs, once `train` has begun.
        evaluation: The newest scores on the held-out pairs.
    """

    def __init__(self, parts: Parts) -> None:
        self.policy, self.terms, self.monitors = parts.policy, parts.terms, parts.monitors
        self.train_dataset, self.eval_dataset = parts.train_dataset, parts.eval_dataset
        self.config, self.output_dir, self.callbacks = parts.config, parts.output_dir, parts.callbacks
        self.processes = parts.processes
        self.processes.share_weights(self.policy)
        weights = list(self.policy.trainable().values())
        objectives = objectives_of(self.config.method)
        self.optimizer = build_optimizer(weights, self.config.train, self.processes, objectives)
        self.iteration, self.should_stop = 0, False
        self.base_evaluation: Evaluation | None = None
        self.evaluation: Evaluation | None = None
        self._groups: Groups | None = None
        self._profiler: Profiler = Clock()
        self._stopping: Stopping | None = None
        self._fire("on_init_end")

    @abstractmethod
    def train_step(self) -> dict[str, float]:
        """Do one iteration and return its metrics."""

    @property
    def is_main(self) -> bool:
        """Whether this is the main process, which writes files and talks to people."""
        return self.processes.is_main

    @property
    def iterations(self) -> int:
        """Iterations of the whole training."""
        return self.config.train.iterations

    @lost_processes_told()
    def train(self, resume_from_checkpoint: bool = False) -> None:
        """Train for the configured iterations, and leave everything in `output_dir`.

        The folder gets the resolved configuration, metrics.jsonl, checkpoints, evaluations and, at the end, the
        trained weights. SIGTERM or Ctrl-C saves a checkpoint and raises `Stopped`.

        Args:
            resume_from_checkpoint: Continue the run in `output_dir` from its newest checkpoint.

        Raises:
            ConfigError: The folder is another process's, holds a run already, or memory does not suffice for one item.
            RewardError: A reward failed, or too many scores are missing; a checkpoint holds all iterations before.
            DivergenceError: The policy cannot be trained any further; the last checkpoint is from before.
        """
        with ExitStack() as stack, writing(self.output_dir):
            stack.callback(self._fire, "on_exit")
            self._open_folder(stack, resume_from_checkpoint)
            self._fire("on_run_begin")
            if resume_from_checkpoint:
                self._resume()
            self.processes.wait()  # until all have read it
            if self.config.policy.conditions is not None:
                encode_ahead(
                    self.config, self.policy, self.train_dataset, self.eval_dataset, self.iteration, self.processes
                )
            self.base_evaluation = self._evaluated_once("base")
            self._fire("on_train_begin")
            self._iterate()
            self._fire("on_loop_end")
            self.save_model(self.output_dir / LORA)
            # Where the last iteration was stopped before its evaluation, what is there is of an earlier policy.
            stale = not any(key.startswith("evaluation/") for key in read_records(self.output_dir / METRICS)[-1])
            self.evaluation = self._evaluated_once("tuned", again=stale)
            self._fire("on_train_end")
            self.processes.wait()

    def _iterate(self) -> None:
        # Shards are saved by all processes together, which they cannot be when one was stopped: the last one stands.
        together = self.optimizer.together
        with Stopping(self.output_dir, saves=self.is_main and not together, alone=self.processes.count == 1) as stop:
            self._stopping = stop
            while self.iteration < self.iterations and not self.should_stop:
                stop.allow(self.save_checkpoint)
                self._fire("on_step_begin")
                try:
                    metrics = self.train_step()
                except RewardError:  # which all processes learn of
                    self.save_checkpoint()
                    self.processes.wait()
                    raise
                self.iteration += 1
                self._finish_step({"iteration": self.iteration, **metrics})
                self.processes.wait()
        self._stopping = None

    def _finish_step(self, metrics: dict[str, float]) -> None:
        """Evaluate, log and save what is due after an iteration."""
        last = self._is_last()

        def complete() -> None:
            if self.is_main:
                append_record(self.output_dir / METRICS, metrics)
            self.save_checkpoint()

        assert self._stopping is not None
        self._stopping.allow(complete)
        if self._groups is not None:
            self._fire("on_groups", self._groups)
        if self._evaluation_due() or last:
            try:
                evaluation = self.evaluate()
            except RewardError:  # which all processes learn of
                complete()
                raise
            if evaluation is not None:
                metrics |= {f"evaluation/{name}/mean": value for name, value in evaluation.means.items()}
        self._forbid_stop()
        if self.is_main:
            append_record(self.output_dir / METRICS, metrics)
        self._fire("on_step_end", metrics)
        if self.iteration % self.config.train.checkpoint_every == 0 or last:
            self.save_checkpoint()

    def evaluate(self) -> Evaluation | None:
        """Generate and score the held-out pairs with the present weights, into `output_dir`/evaluation/tuned.

        Returns None without an evaluation dataset.

        Raises:
            RewardError: A reward or monitor failed, or has no score for any image.
        """
        if self.eval_dataset is None:
            return None
        with ExitStack() as stack:
            for callback in self.callbacks:
                stack.enter_context(callback.evaluation_weights(self))
            self.evaluation = self._evaluated("tuned")
        self._fire("on_evaluate", self.evaluation)
        return self.evaluation

    def save_model(self, folder: str | Path) -> None:
        """Write the trained weights as diffusers loads them: `pipeline.load_lora_weights(folder)` for a LoRA."""
        folder = Path(folder)
        if not (self.is_main or self.optimizer.together):
            return
        partial = aside(folder) if self.is_main else folder
        self.policy.save(partial)
        if self.is_main:
            move_folder(partial, folder)

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, token: str | None = None) -> str | None:
        """Upload the trained weights to the Hugging Face Hub; `cgrpo export` makes a model card to go with them.

        Args:
            repo_id: `user/name`; made if it is not there.
            private: Whether a new repository is private; the account's default if not given.
            token: Access token; that of `hf auth login` if not given.

        Returns:
            Address of the commit, on the main process; None on others.
        """
        with TemporaryDirectory() as folder:
            self.save_model(Path(folder) / LORA)
            if not self.is_main:
                return None
            hub = HfApi(token=token)
            hub.create_repo(repo_id, private=private, exist_ok=True)
            commit = hub.upload_folder(
                repo_id=repo_id, folder_path=Path(folder) / LORA, commit_message="Upload trained weights"
            )
        return str(commit.commit_url)

    def save_checkpoint(self) -> None:
        """Write a checkpoint of all that the next iteration needs, and drop old ones."""
        if not (self.is_main or self.optimizer.together):
            return
        state = {name: tensor for callback in self.callbacks for name, tensor in callback.state().items()}
        path = save_checkpoint(
            self.output_dir / CHECKPOINTS,
            self.iteration,
            self.policy,
            self.optimizer,
            self.config.train.keep_checkpoints,
            state,
        )
        self._fire("on_save", path)

    @contextmanager
    def profile(self, profiler: Profiler | None = None) -> Iterator[dict[str, float]]:
        """Measure the stages of the iterations inside it; yields totals by stage.

        Args:
            profiler: What to measure; seconds, waiting for the device at each stage, where none is given.
        """
        before, self._profiler = self._profiler, profiler or Clock(self.policy.device)
        try:
            yield self._profiler.totals
        finally:
            self._profiler = before

    def _open_folder(self, stack: ExitStack, resume: bool) -> None:
        """Make the run's folder, or take that of an earlier process, for this process alone."""
        run = self.output_dir = Path(self.processes.text_of_main(str(self.output_dir)))  # a name of the time may differ
        if not self.is_main:
            return
        if not resume:
            check_unused(run)
        run.mkdir(parents=True, exist_ok=True)
        stack.enter_context(claim(run))
        sweep(run)
        save_config(self.config, run / CONFIG)
        start = {
            "started": datetime.now().astimezone().isoformat(timespec="seconds"),
            "iterations done": checkpointed_iterations(run) if resume else 0,
            "versions": versions(),
            "hardware": {**hardware(self.policy.device), "processes": str(self.processes.count)},
        }
        append_record(run / STARTS, start)

    def _resume(self) -> None:
        """Restore the newest whole checkpoint, if any, and drop the records of later iterations."""
        checkpoint = newest_checkpoint(self.output_dir / CHECKPOINTS)
        if checkpoint is not None:
            state = {name: tensor for callback in self.callbacks for name, tensor in callback.state().items()}
            self.iteration = load_checkpoint(checkpoint, self.policy, self.optimizer, state)
        if self.is_main:
            truncate_records(self.output_dir / METRICS, self.iteration)

    def _evaluated(self, name: str) -> Evaluation:
        """Evaluate the policy as it is, into the folder of that name."""
        assert self.eval_dataset is not None
        return evaluate(
            self.policy,
            self.eval_dataset,
            [term.reward for term in (*self.terms, *self.monitors)],
            self.config.evaluation,
            self.output_dir / EVALUATION / name,
            batch_size=self.config.rollout.batch_size,
            processes=self.processes,
        )

    def _evaluated_once(self, name: str, *, again: bool = False) -> Evaluation | None:
        """The run's evaluation of that name, from its folder where it is there, for all processes."""
        if self.eval_dataset is None:
            return None
        folder = self.output_dir / EVALUATION / name
        kept = None if again else read_evaluation(folder, self.config.evaluation)
        if self.processes.least(int(kept is not None)) and kept is not None:
            return kept
        self._fire("on_evaluate_begin", name, len(self.eval_dataset) * self.config.evaluation.images)
        with self.policy.reference() if name == "base" else nullcontext():
            return self._evaluated(name)

    def _evaluation_due(self, done: int | None = None) -> bool:
        """Whether held-out pairs are evaluated after so many iterations."""
        done = self.iteration if done is None else done
        return done % self.config.train.sample_every == 0 or done == self.iterations

    def _is_last(self) -> bool:
        return self.iteration == self.iterations or self.should_stop

    def _forbid_stop(self) -> None:
        if self._stopping is not None:
            self._stopping.forbid()

    def _fire(self, event: str, *arguments: object) -> None:
        """Call an event of all callbacks."""
        for callback in self.callbacks:
            getattr(callback, event)(self, *arguments)
