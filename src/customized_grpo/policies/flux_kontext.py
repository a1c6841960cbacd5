"""FLUX.1 Kontext (arXiv 2506.15742) as a policy; its Euler rollouts are images of `FluxKontextPipeline`."""

import torch
from diffusers import FluxKontextPipeline
from diffusers.pipelines.flux import pipeline_flux_kontext as kontext
from PIL import Image
from torch import Tensor

from customized_grpo.policies.flux import FluxPolicy
from customized_grpo.policies.hooks import PATCH, Grid, nearest_size


class FluxKontextPolicy(FluxPolicy):
    """The transformer of a `FluxKontextPipeline`.

    The k-th reference, counted from 1, has k as the first coordinate of its position ids (the image has 0): for one
    reference as in the pipeline. References are resized to the nearest in shape of `config.reference_sizes`; there may
    be none. The dev model is distilled and takes `config.guidance` as an input. Classifier-free guidance by
    `config.true_cfg` is applied on top if it is above 1, as in the pipeline.
    """

    pipelines = (FluxKontextPipeline,)
    example_call = (
        "image=reference,\n    guidance_scale={guidance},\n    max_sequence_length={tokens},\n"
        "    max_area={height} * {width},\n    _auto_resize=False,"
    )
    example_guidance = "\n    true_cfg_scale={true_cfg},\n    negative_prompt={negative!r},"

    def encode_reference(self, image: Image.Image, count: int) -> Tensor:
        """Resize and encode a reference to tokens (1, rows, columns, channels)."""
        processor, multiple = self._pipeline.image_processor, self._pipeline.vae_scale_factor * PATCH
        # The pipeline measures an image in whole tokens, at least one.
        shape = [max(side, multiple) for side in processor.get_default_height_width(image)]
        sizes = self._config.reference_sizes
        if sizes is None:
            sizes = [(h, w) for w, h in kontext.PREFERRED_KONTEXT_RESOLUTIONS]
        rows, columns = self._tokens_of("policy.reference_sizes", *nearest_size(shape[0], shape[1], sizes))
        height, width = rows * multiple, columns * multiple
        pixels = processor.preprocess(processor.resize(image, height, width), height, width)
        latents = self._pipeline._encode_vae_image(pixels.to(self._device, self._pipeline.vae.dtype), generator=None)
        packed = self._pipeline._pack_latents(latents, 1, *latents.shape[1:])
        return packed.to(self._dtype).reshape(1, rows, columns, -1)

    def position_ids(self, grids: tuple[Grid, ...]) -> Tensor:
        """Return position ids (tokens, 3) of image and references; the first coordinate numbers them."""
        ids = []
        for k, (rows, columns) in enumerate(grids):
            ids.append(self._pipeline._prepare_latent_image_ids(1, rows, columns, self._device, self._dtype))
            ids[-1][:, 0] = k
        return torch.cat(ids)
