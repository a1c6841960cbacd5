"""Which pairs an iteration draws, and which images each of its updates trains: functions of the seed alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from customized_grpo.utils.noise import generator


def pairs_of_iteration(dataset_size: int, pairs: int, seed: int, iteration: int) -> list[int]:
    """Dataset indices of the iteration's pairs: every epoch is a new permutation of the whole dataset."""
    indices = []
    for position in range(iteration * pairs, (iteration + 1) * pairs):
        epoch, offset = divmod(position, dataset_size)
        order = torch.randperm(dataset_size, generator=generator(seed, "data order", epoch))
        indices.append(int(order[offset]))
    return indices


def image_numbers(pairs: Sequence[int], images: Sequence[int], group_size: int) -> list[int]:
    """For each of the `images` of an iteration its number among all images of its pair: what it draws follows from it.

    An iteration may hold a pair twice, at the end of an epoch or where there are few pairs: its second group goes on
    counting, or it would be the first one's pictures again.

    Args:
        pairs: the dataset's indices of the iteration's groups.
        images: image i is number i % group_size of group i // group_size.
        group_size: images of a group.
    """
    numbers = []
    for image in images:
        group, number = divmod(image, group_size)
        numbers.append(pairs[:group].count(pairs[group]) * group_size + number)
    return numbers


def images_of_updates(images: int, updates: int, seed: int, iteration: int) -> list[list[int]]:
    """The iteration's images, dealt at random into its updates; every image stands in exactly one."""
    order = torch.randperm(images, generator=generator(seed, "updates", iteration))
    return [part.sort().values.tolist() for part in order.tensor_split(min(updates, images))]
