"""Datasets of pairs. All are checked when they are opened, so that no training stops because of a file."""

from pathlib import Path
from typing import Any

from torch.utils.data import Subset

from customized_grpo.config import DataConfig
from customized_grpo.data.dreambench import dreambench_folder, open_dreambench
from customized_grpo.data.errors import DataError
from customized_grpo.data.files import METADATA, captioned_images, open_file
from customized_grpo.data.records import FilePairs
from customized_grpo.data.world import WORLDS, WorldPairs
from customized_grpo.protocols import PairDataset
from customized_grpo.utils.named import error_text

__all__ = ["WORLDS", "DataError", "open_dataset", "prompts_of"]

_READ = 64  # pairs that are read for their prompts, of a dataset that does not list them

WORLD_SIZE = 4096  #: default number of pairs of the built-in world


def open_dataset(config: DataConfig) -> PairDataset:
    """Open the dataset that `config.path` names and check it.

    Args:
        config: `path` is `world`, `world-recoloured`, a .jsonl file, a SynCD-style .json, a DreamBench folder, or a
            folder of images with metadata.jsonl or with a caption NAME.txt beside each. `split` and `seed` apply to the
            built-in world, `root` to the two kinds of file. Of files, `size` takes that many pairs, evenly spread.

    Returns:
        The pairs. Their attribute `config` is the given one.

    Raises:
        DataError: The path or its content cannot be used; one line for each problem.
    """
    if config.path is None:
        raise DataError(["data.path is not set; give --data pairs.jsonl, a DreamBench folder, or world (built in)"])
    pairs: Any
    if config.path in WORLDS:
        size = config.size or WORLD_SIZE
        pairs = WorldPairs(config.split, size, config.seed, recoloured=WORLDS[config.path])
    else:
        try:
            pairs = _open_path(Path(config.path).expanduser(), config.root)
        except (OSError, RuntimeError) as error:  # a name too long, a loop of links, an unknown user's home
            raise DataError([f"data.path: {config.path} cannot be read ({error_text(error)}); correct it"]) from error
        if config.size is not None and config.size < len(pairs):
            pairs = Subset(pairs, [i * len(pairs) // config.size for i in range(config.size)])
    pairs.config = config
    dataset: PairDataset = pairs
    return dataset


def prompts_of(dataset: PairDataset) -> list[str]:
    """Return the prompts of a dataset: its attribute `prompts`, or those of a few pairs, evenly spread."""
    if isinstance(dataset, Subset):
        listed = getattr(dataset.dataset, "prompts", None)
        if listed is not None:
            return [listed[i] for i in dataset.indices]
    listed = getattr(dataset, "prompts", None)
    if listed is not None:
        return list(listed)
    count = min(len(dataset), _READ)
    return [dataset[i * len(dataset) // count].prompt for i in range(count)]


def _open_path(path: Path, root: Path | None) -> FilePairs:
    if path.is_dir():
        if (path / METADATA).is_file():
            return open_file(path / METADATA, root)
        found = captioned_images(path)
        return found if found is not None else open_dreambench(dreambench_folder(path, "data.path: "))
    if not path.is_file():
        what = f"{path} is a pipe or device" if path.exists() else f"no file or folder {path}"
        raise DataError([f"data.path: {what}; correct it, or give {' or '.join(WORLDS)}"])
    if root is not None and not root.is_dir():
        raise DataError([f"data.root: no folder {root}; correct it"])
    if path.suffix.lower() not in (".jsonl", ".ndjson", ".json"):
        raise DataError([f"data.path: {path} is of no known kind; give a .jsonl or .json file"])
    return open_file(path, root)
