"""The trained part of a diffusers transformer: a LoRA, or all of its weights."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
from diffusers.loaders import PeftAdapterMixin
from diffusers.training_utils import cast_training_params
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from customized_grpo.config import LoraConfig
from customized_grpo.policies.adapters import PREFIX, lora_file, lora_metadata, reading
from customized_grpo.policies.kernels import lora as kernel
from customized_grpo.policies.sharding import any_sharded, is_sharded, like, local, reshard, undone, whole, writes
from customized_grpo.utils.hub import ModelError, first_line

_INIT_SEED = 0
_FOLDER = "transformer"


class Tuning(ABC):
    """The part of a policy that training changes; see `protocols.Policy` for the members of its subclasses."""

    _nested = False

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Make the transformer the untuned one inside the context, without gradients; contexts may be nested."""
        if self._nested:
            yield
            return
        self._nested = True
        try:
            with self._untuned(), torch.no_grad():
                yield
        finally:
            self._nested = False

    @abstractmethod
    def _untuned(self) -> AbstractContextManager[None]:
        """Make the context in which the transformer is the untuned one."""


class LoraTuning(Tuning):
    """A LoRA (arXiv 2106.09685) in float32 on a frozen transformer; B starts at 0, A is Gaussian.

    A is the same in every process and run; the global random state is not changed. The untuned model is the one with
    the LoRA switched off; after `start_from` the one with the LoRA that training started from, stored in host memory.

    Each of `default_targets`, or of the configured ones, stands for all linear layers whose name ends with it, but
    `exclude`. `write` is `save_lora_weights` of the pipeline's class. Raises ModelError if a target is no layer's name.
    """

    def __init__(
        self,
        transformer: Any,
        config: LoraConfig,
        default_targets: Sequence[str],
        exclude: str,
        write: Callable[..., None],
        *,
        kernels: bool = True,
    ) -> None:
        names = [n for n, module in transformer.named_modules() if isinstance(module, nn.Linear)]
        modules: list[str] = []
        for target in default_targets if config.targets is None else config.targets:
            found = [n for n in names if f".{n}".endswith(f".{target}") and n != exclude]
            if not found and config.targets is not None:
                raise ModelError(
                    f"policy.lora.targets: the model has no linear layer {target!r}; "
                    f"omit targets, or name layers such as {default_targets[0]}"
                )
            modules += found
        if not modules:
            raise ModelError("policy.lora.targets: the list is empty; name layers or omit it")
        self._write = write
        transformer.requires_grad_(False)
        if not isinstance(transformer, PeftAdapterMixin):  # as JoyImage's of diffusers 0.42
            kind = type(transformer)
            transformer.__class__ = type(kind.__name__, (kind, PeftAdapterMixin), {"__module__": kind.__module__})
        device = "meta" if next(transformer.parameters()).device.type == "meta" else "cpu"
        # peft's annotation is int, but any number works.
        alpha: Any = config.rank if config.alpha is None else config.alpha
        init: Any = "gaussian" if device == "cpu" else False
        adapter = peft.LoraConfig(r=config.rank, lora_alpha=alpha, target_modules=modules, init_lora_weights=init)
        layers = list(map(transformer.get_submodule, modules))
        plain = all(type(layer) is nn.Linear and type(layer.weight) is nn.Parameter for layer in layers)
        if kernels and kernel.USABLE and plain:  # quantised layers have other classes
            adapter._register_custom_module({nn.Linear: kernel.LowRankLinear})
        with torch.random.fork_rng(devices=[]), torch.device(device):
            # Not torch.manual_seed, which would seed the accelerators too. peft initialises on the CPU.
            torch.default_generator.manual_seed(_INIT_SEED)
            transformer.add_adapter(adapter)
        cast_training_params(transformer, dtype=torch.float32)
        self._transformer = transformer
        self._start: dict[str, Tensor] | None = None

    @torch.no_grad()
    def start_from(self, terms: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Start from another LoRA, in this one's first rows; other rows and layers start as zero.

        `terms` are its (down (rank, inputs), up (outputs, rank)) by layer. ModelError if one does not fit in.
        """
        weights, rank, scale = self.trainable(), self._config.r, self._config.lora_alpha / self._config.r
        for name, (down, up) in terms.items():
            a, b = (weights.get(f"{name}.lora_{half}.default.weight") for half in "AB")
            if a is None or b is None:
                raise ModelError(f"policy.lora.targets: the LoRA to start from has {name}; add it, or omit targets")
            if len(down) > rank:
                raise ModelError(f"policy.lora.rank: {rank} is below that of the adapter; set it to {len(down)}")
            a[: len(down)] = down.to(a)
            b[:, : len(down)] = up.to(b) / scale
        self._start = {name: weight.detach().cpu().clone() for name, weight in weights.items()}

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the LoRA's parameters by their names in the transformer."""
        reshard(self._transformer)
        return {n: p for n, p in self._transformer.named_parameters() if ".lora_" in n}

    @contextmanager
    def _untuned(self) -> Iterator[None]:
        if self._start is not None:
            parameters = self.trainable()
            start = {name: local(like(weight, parameters[name])) for name, weight in self._start.items()}
            with _exchanged(self._transformer, parameters, start):
                yield
            return
        self._transformer.disable_adapters()
        for weight in self.trainable().values():
            weight.requires_grad_(True)  # peft freezes them, and FSDP2 would gather shards as frozen ones
        try:
            yield
        finally:
            self._transformer.enable_adapters()

    def save(self, folder: Path) -> None:
        """Write pytorch_lora_weights.safetensors in diffusers' format."""
        state = self._state()
        weights = {name: whole(weight.detach()).cpu().contiguous() for name, weight in state.items()}
        if not writes(list(state.values())):
            return
        metadata = self._config.to_dict()
        metadata["target_modules"] = sorted(metadata["target_modules"])
        self._write(folder, transformer_lora_layers=weights, transformer_lora_adapter_metadata=metadata)

    def load(self, folder: Path) -> None:
        """Read the LoRA that `save` wrote. ModelError, and no change, if it is damaged or does not fit."""
        path = lora_file(folder)
        metadata = lora_metadata(path)
        with reading(path):
            saved = load_file(path)
        own = {f"{PREFIX}{name}": weight for name, weight in self._state().items()}
        _check_fit(path, saved, own, "policy.path, policy.lora.rank and policy.lora.targets")
        alpha = metadata.get(f"{PREFIX}lora_alpha", self._config.r)
        own_alpha = self._config.lora_alpha
        if alpha != own_alpha:
            raise ModelError(f"{path}: its alpha is {alpha}, not {own_alpha}; set policy.lora.alpha to {alpha}")
        shards = {name.removeprefix(PREFIX): like(weight, own[name]) for name, weight in saved.items()}
        peft.set_peft_model_state_dict(self._transformer, shards)

    def merge(self, dtype: torch.dtype) -> None:
        """Add the LoRA to the weights, remove it, and convert all weights to `dtype`."""
        # Summed in the finer precision of the two, and rounded once.
        for name, weight in self._transformer.named_parameters():
            if ".lora_" not in name:
                weight.data = weight.data.to(torch.promote_types(weight.dtype, dtype))
        self._transformer.fuse_lora(safe_fusing=True)
        self._transformer.unload_lora()
        self._transformer.requires_grad_(False).to(dtype)

    @property
    def _config(self) -> Any:
        return self._transformer.peft_config["default"]

    def _state(self) -> dict[str, Tensor]:
        """Return the LoRA's weights by the names of its file, which omit the adapter's name."""
        reshard(self._transformer)
        return peft.get_peft_model_state_dict(self._transformer)


class FullTuning(Tuning):
    """All weights of a transformer.

    `reload` loads the untuned model to the CPU when `reference` is first entered: training without KL does not hold it.
    """

    def __init__(self, transformer: Any, reload: Callable[[], Any]) -> None:
        transformer.requires_grad_(True)
        self._transformer, self._class = transformer, type(transformer)
        self._reload = reload
        self._weights: dict[str, Tensor] | None = None

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return all parameters of the transformer by name."""
        reshard(self._transformer)
        return dict(self._transformer.named_parameters())

    @contextmanager
    def _untuned(self) -> Iterator[None]:
        parameters = self.trainable()
        if self._weights is None:
            weights = self._reload().named_parameters()
            self._weights = {name: local(like(weight.detach(), parameters[name])).cpu() for name, weight in weights}
        with _exchanged(self._transformer, parameters, self._weights):
            yield

    def save(self, folder: Path) -> None:
        """Write all weights to the folder "transformer", for the transformer's `from_pretrained`."""
        model = self._transformer
        if any_sharded(self.trainable().values()):
            state = {name: whole(weight).cpu() for name, weight in model.state_dict().items()}
            if not writes(list(self.trainable().values())):
                return
            with torch.device("meta"):
                model = self._class.from_config(model.config)
            model.load_state_dict(state, assign=True)
        model.save_pretrained(folder / _FOLDER, safe_serialization=True)

    def load(self, folder: Path) -> None:
        """Read the weights that `save` wrote. ModelError, and no change, if they are damaged or do not fit."""
        path = folder / _FOLDER
        if not (path / "config.json").is_file():
            raise ModelError(f"{path}: no saved transformer; give the folder of a full tuning")
        try:
            model, report = self._class.from_pretrained(
                path,
                dtype=self._transformer.dtype,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"{path}: cannot be read as a transformer ({first_line(error)}); save it again") from error
        if report["missing_keys"]:  # which diffusers would leave at random values
            raise ModelError(f"{path}: lacks {report['missing_keys'][0]}; save it again")
        saved = model.state_dict()
        reshard(self._transformer)
        own = self._transformer.state_dict()
        _check_fit(path, saved, own, "policy.path")
        self._transformer.load_state_dict({name: like(weight, own[name]) for name, weight in saved.items()})

    def merge(self, dtype: torch.dtype) -> None:
        """Convert all weights to `dtype`."""
        self._transformer.requires_grad_(False).to(dtype)


@contextmanager
def _exchanged(
    transformer: nn.Module, parameters: Mapping[str, nn.Parameter], others: Mapping[str, Tensor]
) -> Iterator[None]:
    """Give the parameters of a transformer other values inside the context."""
    # Shards are copied, because FSDP2 gathers from the memory that they have.
    own = {name: local(p).data.clone() if is_sharded(p) else p.data for name, p in parameters.items()}

    def give_back() -> None:
        reshard(transformer)
        for name, parameter in parameters.items():
            _put(parameter, own[name])

    with undone(give_back):
        for name, parameter in parameters.items():
            _put(parameter, others[name])
        yield


def _put(parameter: nn.Parameter, values: Tensor) -> None:
    """Give a parameter, or this process's shard of it, other values; graphs that were built before stay valid."""
    if is_sharded(parameter):
        local(parameter).data.copy_(values)
    else:
        parameter.data = values.to(parameter.device)


def _check_fit(path: Path, saved: Mapping[str, Tensor], own: Mapping[str, Tensor], keys: str) -> None:
    """Raise ModelError if names or shapes of weights are not those of this model, or values are not finite."""
    for name in sorted(saved.keys() ^ own.keys()):
        where = "the policy lacks" if name in saved else "the file lacks"
        raise ModelError(f"{path}: belongs to another model, {where} {name}; check {keys}")
    for name, weight in own.items():
        if saved[name].shape != weight.shape:
            raise ModelError(
                f"{path}: belongs to another model, {name} is {tuple(saved[name].shape)} there and "
                f"{tuple(weight.shape)} in the policy; check {keys}"
            )
        if not saved[name].is_floating_point():
            raise ModelError(f"{path}: {name} holds {saved[name].dtype}, no weights; save it again")
        if not saved[name].isfinite().all():
            raise ModelError(f"{path}: {name} holds values that are not finite; take an earlier checkpoint")
