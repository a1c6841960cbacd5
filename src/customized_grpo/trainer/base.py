"""The loop around a trainer's iterations: its folder, events, evaluations and stops."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi
from torch import Tensor

from customized_grpo.config import ConfigError
from customized_grpo.config.loading import save_config
from customized_grpo.policies.sharding import any_sharded
from customized_grpo.rewards import RewardError
from customized_grpo.trainer.assembly import Parts
from customized_grpo.trainer.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from customized_grpo.trainer.conditioning import encode_ahead
from customized_grpo.trainer.credit import objectives_of
from customized_grpo.trainer.evaluation import Evaluation, evaluate, read_evaluation
from customized_grpo.trainer.folder import (
    CHECKPOINTS,
    CONFIG,
    EVALUATION,
    LORA,
    METRICS,
    STARTS,
    check_unused,
    make_folder,
)  # fmt: skip
from customized_grpo.trainer.groups import Groups
from customized_grpo.trainer.locking import claim
from customized_grpo.trainer.optimizer import build_optimizer
from customized_grpo.trainer.processes import reports_lost_processes
from customized_grpo.trainer.profiling import Clock, Profiler
from customized_grpo.trainer.resuming import changes, check_resumable, origin
from customized_grpo.utils.isolation import seed_all
from customized_grpo.utils.machine import hardware, versions
from customized_grpo.utils.records import append_record, move_folder, read_records, sweep, temporary_folder, writing
from customized_grpo.utils.stopping import Stopping


class BaseTrainer(ABC):
    """Trains a policy in iterations, in a folder from which the run can be resumed.

    A subclass defines the iteration, `train_step`.

    Attributes:
        iteration: Number of iterations that are done.
        should_stop: Ends the training after the present iteration; callbacks may set it.
        base_evaluation: Scores of the untrained model on the held-out pairs, once `train` has begun.
        evaluation: Newest scores on the held-out pairs.
    """

    def __init__(self, parts: Parts) -> None:
        self.policy, self.terms, self.monitors = parts.policy, parts.terms, parts.monitors
        self.train_dataset, self.eval_dataset = parts.train_dataset, parts.eval_dataset
        self.validation_dataset = parts.validation_dataset
        self.config, self.output_dir, self.callbacks = parts.config, parts.output_dir, parts.callbacks
        self.processes, self._unnamed = parts.processes, parts.unnamed
        self.processes.share_weights(self.policy)
        weights = list(self.policy.trainable().values())
        objectives = objectives_of(self.config.method)
        self.optimizer = build_optimizer(weights, self.config.train, self.processes, objectives)
        self.iteration, self.should_stop = 0, False
        self.base_evaluation: Evaluation | None = None
        self.evaluation: Evaluation | None = None
        self._groups: Groups | None = None
        self._profiler: Profiler = Clock()
        self._stopping = self._make_stopping()
        own_validation = None if self.validation_dataset is self.train_dataset else self.validation_dataset
        self._origin = origin(self.config, self.train_dataset, self.eval_dataset, own_validation)
        self._fire("on_init_end")

    @abstractmethod
    def train_step(self) -> dict[str, float]:
        """Do one iteration and return its metrics."""

    @property
    def is_main(self) -> bool:
        """True on the main process, which writes files and prints."""
        return self.processes.is_main

    @property
    def iterations(self) -> int:
        """Number of iterations of the whole training."""
        return self.config.train.iterations

    @property
    def is_last(self) -> bool:
        """True if no iteration follows."""
        return self.iteration >= self.iterations or self.should_stop

    @reports_lost_processes()
    def train(self, resume_from_checkpoint: bool = False, *, allow_changes: bool = False) -> None:
        """Train for the configured iterations, and leave everything in `output_dir`.

        The folder gets the resolved configuration, metrics.jsonl, checkpoints, evaluations and, at the end, the
        trained weights. SIGTERM or Ctrl-C saves a checkpoint and raises `Stopped`.

        Args:
            resume_from_checkpoint: Continue the run in `output_dir` from its newest checkpoint.
            allow_changes: Accept settings or data that have changed since the checkpoint and affect the training.

        Raises:
            CheckpointError: The folder has records, but no intact checkpoint to resume from.
            ConfigError: The folder is in use or holds a run already, settings or data have changed, or memory does not
                suffice for one item.
            RewardError: A reward failed, or too many scores are missing; all earlier iterations are saved.
            DivergenceError: The policy cannot be trained further; the last checkpoint is an earlier one.
        """
        remedy = f"the run resumes with --resume {self.output_dir}"
        with ExitStack() as stack, writing(self.output_dir, remedy):
            stack.callback(self._fire, "on_exit")
            checkpoint = self._open_folder(stack, resume_from_checkpoint, allow_changes)
            self._fire("on_run_begin")
            if checkpoint is not None:
                state = self._callback_state()
                if changes(checkpoint, self._origin)[1]:
                    # Scores of other rewards, steps or pairs are no base for gains: they are measured anew.
                    state = {name: tensor for name, tensor in state.items() if not name.startswith("validation.")}
                self.iteration = load_checkpoint(checkpoint, self.policy, self.optimizer, state)
            self.processes.wait()  # until all processes have read it
            if self.config.policy.conditions is not None:
                held_out = self.eval_dataset, 0 if self.eval_dataset is None else len(self.eval_dataset)
                others = held_out, (self.validation_dataset, self.config.validation.images)
                encode_ahead(self.config, self.policy, self.train_dataset, others, self.iteration, self.processes)
            self.base_evaluation = self._evaluated_once("base")
            self._fire("on_train_begin")
            self._iterate()
            self._fire("on_loop_end")
            self.save_model(self.output_dir / LORA)
            # A stop before the last iteration's evaluation leaves that of an earlier policy.
            metrics = self.output_dir / METRICS
            last = read_records(metrics)[-1:] if metrics.exists() else []
            stale = not any(key.startswith("evaluation/") for record in last for key in record)
            self.evaluation = self._evaluated_once("tuned", again=stale)
            self.base_evaluation = self._evaluated_once("base")  # whose images may have gone meanwhile
            self._fire("on_train_end")
            self.processes.wait()

    def _iterate(self) -> None:
        """Run the remaining iterations; a stop request or a failed reward saves those that are done."""
        with self._make_stopping() as self._stopping:
            while not self.is_last:
                self._stopping.allow(self.save_checkpoint)
                seed_all(self.config.seed, "iteration", self.iteration)
                try:
                    self._fire("on_step_begin")
                    metrics: dict[str, float] = {"iteration": self.iteration + 1, **self.train_step()}
                    self._stopping.forbid()
                    self.iteration += 1
                    self._stopping.allow(partial(self._end_step, metrics, save=True))
                    self._evaluate_if_due(metrics)
                except RewardError:  # raised on all processes
                    self._stopping.save()
                    self.processes.wait()
                    raise
                self._stopping.forbid()
                self._end_step(metrics)
                self.processes.wait()

    def _evaluate_if_due(self, metrics: dict[str, float]) -> None:
        """Evaluate every `sample_every` iterations and after the last one; add the means to `metrics`."""
        if self._groups is not None:
            self._fire("on_groups", self._groups)
        evaluation = self.evaluate() if self._evaluation_due(self.iteration) or self.is_last else None
        if evaluation is not None:
            metrics |= {f"evaluation/{name}/mean": value for name, value in evaluation.means.items()}

    def _end_step(self, metrics: dict[str, float], *, save: bool = False) -> None:
        self._fire("on_step_end", metrics)
        if save:
            self.save_checkpoint()

    def evaluate(self) -> Evaluation | None:
        """Generate and score the held-out pairs with the present weights, into `output_dir`/evaluation/tuned.

        Returns:
            The evaluation; None without an evaluation dataset.

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
        if folder.is_symlink():
            raise ConfigError(f"{folder}: is a symbolic link, which is never replaced; give a folder")
        if not (self.is_main or any_sharded(self.policy.trainable().values())):  # gathered by all processes
            return
        partial_folder = temporary_folder(folder) if self.is_main else folder
        self.policy.save(partial_folder)
        if self.is_main:
            move_folder(partial_folder, folder)

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, token: str | None = None) -> str | None:
        """Upload the trained weights to the Hugging Face Hub; `cgrpo export` also makes a model card.

        Args:
            repo_id: `user/name`; created if needed.
            private: Whether a new repository is private; the account's default if not given.
            token: Access token; that of `hf auth login` if not given.

        Returns:
            URL of the commit, on the main process; None on others.
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
        """Write a checkpoint of the state that the next iteration needs, and remove old ones."""
        if not (self.is_main or self.optimizer.together):
            return
        keep = self.config.train.keep_checkpoints
        folder, state = self.output_dir / CHECKPOINTS, self._callback_state()
        path = save_checkpoint(folder, self.iteration, self.policy, self.optimizer, keep, state, self._origin)
        self._fire("on_save", path)

    @contextmanager
    def profile(self, profiler: Profiler | None = None) -> Iterator[dict[str, float]]:
        """Measure the stages of the iterations inside the block; yields totals by stage.

        Args:
            profiler: Measurement; by default seconds, synchronising the device at each stage.
        """
        before, self._profiler = self._profiler, profiler or Clock(self.policy.device)
        try:
            yield self._profiler.totals
        finally:
            self._profiler = before

    def _open_folder(self, stack: ExitStack, resume: bool, allow_changes: bool) -> Path | None:
        """Create or take over the run's folder, for this process alone; return the checkpoint to resume from."""
        if self._unnamed and not resume and self.is_main:
            self.output_dir = make_folder(self.output_dir)
        run = self.output_dir = Path(self.processes.text_of_main(str(self.output_dir)))  # names of the time may differ
        if not self.is_main:
            return newest_checkpoint(run / CHECKPOINTS, warns=False) if resume else None
        if not resume:
            check_unused(run)
        run.mkdir(parents=True, exist_ok=True)
        stack.enter_context(claim(run))
        checkpoint = None
        if resume:
            checkpoint = check_resumable(run, self.config, self._origin, allow_changes=allow_changes)
        sweep(run)
        save_config(self.config, run / CONFIG)
        # Its absence in a run with records means that checkpoints were lost.
        (run / CHECKPOINTS).mkdir(exist_ok=True)
        start = {
            "started": datetime.now().astimezone().isoformat(timespec="seconds"),
            "iterations done": 0 if checkpoint is None else int(checkpoint.name),
            "versions": versions(),
            "hardware": {**hardware(self.policy.device), "processes": str(self.processes.count)},
        }
        append_record(run / STARTS, start)
        return checkpoint

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
            seed=self.config.seed,
            processes=self.processes,
            progress=partial(self._fire, "on_evaluate_progress"),
        )

    def _evaluated_once(self, name: str, *, again: bool = False) -> Evaluation | None:
        """Return the run's evaluation of that name, read from its folder if all processes find it there."""
        if self.eval_dataset is None:
            return None
        folder = self.output_dir / EVALUATION / name
        stored = None if again else read_evaluation(folder, self.config.evaluation, self.eval_dataset)
        if self.processes.least(int(stored is not None)) and stored is not None:
            return stored
        self._fire("on_evaluate_begin", name, len(self.eval_dataset) * self.config.evaluation.images)
        with self.policy.reference() if name == "base" else nullcontext():
            return self._evaluated(name)

    def _evaluation_due(self, done: int) -> bool:
        """Return whether held-out pairs are evaluated after so many iterations."""
        return done % self.config.train.sample_every == 0 or done == self.iterations

    def _make_stopping(self) -> Stopping:
        # Sharded weights are saved by all processes together, which a stop of one does not allow.
        saves = self.is_main and not self.optimizer.together
        return Stopping(self.output_dir, saves=saves, alone=self.processes.count == 1)

    def _callback_state(self) -> dict[str, Tensor]:
        return {name: tensor for callback in self.callbacks for name, tensor in callback.state().items()}

    def _fire(self, event: str, *arguments: object) -> None:
        """Call an event of all callbacks."""
        for callback in self.callbacks:
            getattr(callback, event)(self, *arguments)
