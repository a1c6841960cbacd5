"""Where pairs come from. Datasets are checked as they are opened: no training stops over a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from customized_grpo.config import DataConfig
from customized_grpo.data.dreambench import LIST, open_dreambench
from customized_grpo.data.errors import DataError
from customized_grpo.data.jsonl import open_jsonl
from customized_grpo.data.records import FilePairs
from customized_grpo.data.syncd import open_syncd
from customized_grpo.data.world import NAMES, WorldPairs
from customized_grpo.protocols import Pair, PairDataset
from customized_grpo.utils.named import told

__all__ = ["WORLDS", "DataError", "open_dataset"]

#: The built-in datasets, and whether all their prompts ask for another colour.
WORLDS = {name: recoloured for recoloured, name in NAMES.items()}
WORLD_SIZE = 4096  #: pairs of the built-in world where no size is given


@dataclass
class Subset:
    """Some pairs of another dataset."""

    pairs: PairDataset
    indices: list[int]
    config: DataConfig | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int, /) -> Pair:
        return self.pairs[self.indices[index]]


def open_dataset(config: DataConfig) -> PairDataset:
    """The pairs that `config.path` names: `world`, `world-recoloured`, a .jsonl file, a SynCD-style .json, or a
    DreamBench folder.

    `split` and `seed` concern the built-in world alone, `root` the two kinds of file. Of files, `size`
    takes that many pairs, evenly spread. Raises DataError, one line for each problem, where the path
    is of no such kind or its content cannot be used. The dataset's attribute `config` is the one given.
    """
    if config.path is None:
        raise DataError(["data.path is not set; give --data pairs.jsonl, a DreamBench folder, or world (built in)"])
    pairs: FilePairs | WorldPairs | Subset
    if config.path in WORLDS:
        recoloured = WORLDS[config.path]
        pairs = WorldPairs(config.split, config.size or WORLD_SIZE, config.seed, recoloured=recoloured)
    else:
        pairs = _open_files(config.path, config.root)
        if config.size is not None and config.size < len(pairs):
            pairs = Subset(pairs, [i * len(pairs) // config.size for i in range(config.size)])
    pairs.config = config
    return pairs


def _open_files(path: str, root: Path | None) -> FilePairs:
    try:
        return _open_path(Path(path).expanduser(), root)
    except (OSError, RuntimeError) as error:  # a name too long, a loop of links, the home of nobody
        raise DataError([f"data.path: {path} cannot be read ({told(error)}); correct it"]) from error


def _open_path(path: Path, root: Path | None) -> FilePairs:
    if path.is_dir():
        for folder in (path, path / "dataset"):  # the benchmark's repository has it one folder down
            if (folder / LIST).is_file():
                return open_dreambench(folder)
        raise DataError([f"data.path: {path} has no {LIST}; give a DreamBench folder or a .jsonl file"])
    if not path.is_file():
        raise DataError([f"data.path: no file or folder {path}; correct it, or give {' or '.join(WORLDS)}"])
    if root is not None and not root.is_dir():
        raise DataError([f"data.root: no folder {root}; correct it"])
    match path.suffix.lower():
        case ".jsonl" | ".ndjson":
            return open_jsonl(path, root)
        case ".json":
            return open_syncd(path, root)
    raise DataError([f"data.path: {path} is of no known kind; give a .jsonl or .json file"])
