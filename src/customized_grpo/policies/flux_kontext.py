"""FLUX.1 Kontext (arXiv 2506.15742) as a policy; its Euler rollouts are images of `FluxKontextPipeline`."""

import torch
from diffusers import FluxKontextPipeline
from diffusers.pipelines.flux import pipeline_flux_kontext as kontext
from PIL import Image
from torch import Tensor

from customized_grpo.policies.flux import FluxPolicy
from customized_grpo.policies.hooks import Grid, nearest_size


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
        own = self._pipeline.image_processor.get_default_height_width(image)
        sizes = self._config.reference_sizes
        if sizes is None:
            sizes = [(h, w) for w, h in kontext.PREFERRED_KONTEXT_RESOLUTIONS]
        height, width = (max(side, self.token_pixels) for side in own)  # as the pipeline measures it, in whole tokens
        return self._encode_tokens(self._resized(image, *nearest_size(height, width, sizes)))

    def _cropped(self, image: Image.Image, height: int, width: int) -> Image.Image:
        """Return a reference as it is, because the pipeline resizes without cropping."""
        return image

    def position_ids(self, grids: tuple[Grid, ...]) -> Tensor:
        """Return position ids (tokens, 3) of image and references; the first coordinate numbers them."""
        ids = []
        for k, (rows, columns) in enumerate(grids):
            ids.append(self._pipeline._prepare_latent_image_ids(1, rows, columns, self._device, self._dtype))
            ids[-1][:, 0] = k
        return torch.cat(ids)
