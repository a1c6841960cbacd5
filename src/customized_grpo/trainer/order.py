"""Pairs of each iteration and images of each update, as functions of the seed alone."""

from collections.abc import Sequence

import torch

from customized_grpo.utils.noise import generator


def pairs_of_iteration(dataset_size: int, pairs: int, seed: int, iteration: int) -> list[int]:
    """Return the dataset indices of an iteration's pairs; every epoch is a new permutation of the whole dataset."""
    indices = []
    for position in range(iteration * pairs, (iteration + 1) * pairs):
        epoch, offset = divmod(position, dataset_size)
        order = torch.randperm(dataset_size, generator=generator(seed, "data order", epoch))
        indices.append(int(order[offset]))
    return indices


def image_numbers(pairs: Sequence[int], images: Sequence[int], group_size: int) -> list[int]:
    """Number each image among all images of its pair in the iteration; its noise depends on that number.

    If the iteration's `pairs` contain a pair twice, its second group continues counting.
    """
    split = [divmod(image, group_size) for image in images]
    return [pairs[:group].count(pairs[group]) * group_size + number for group, number in split]


def images_of_updates(images: int, updates: int, seed: int, iteration: int) -> list[list[int]]:
    """Split an iteration's images at random into its updates; every image is in exactly one."""
    order = torch.randperm(images, generator=generator(seed, "updates", iteration))
    return [part.sort().values.tolist() for part in order.tensor_split(min(updates, images))]
