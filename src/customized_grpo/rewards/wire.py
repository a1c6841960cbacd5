"""Protocol between a remote reward and its server.

    GET  /rewards   -> Description
    POST /score     ScoreRequest -> ScoreResponse, or status 409 with a list of missing images

Every request has the token and the version of the protocol in its headers, every answer the version; an error is
{"detail": "one line"}. Images travel as base64 of PNG, so that 8-bit pixels are unchanged. References and masks are
named by a digest of their pixels: the server caches them, and asks with status 409 for those that it lacks.
"""

import base64
import hashlib
import io
from typing import Annotated, Any, Self

from PIL import Image
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    PlainValidator,
    ValidationInfo,
    model_validator,
)

from customized_grpo.protocols import Need
from customized_grpo.utils.pixels import encoded

#: Increased by every change that an older client or server would not understand.
PROTOCOL = 4
PROTOCOL_HEADER = "X-CGRPO-Protocol"
#: Default environment variable of the shared token, on both sides.
TOKEN_VARIABLE = "CGRPO_REWARD_TOKEN"  # noqa: S105, a name


class Budget:
    """Largest number of pixels of an image, and of all images of a request together: the context of its validation."""

    def __init__(self, pixels: int, total: int) -> None:
        self.pixels, self.total = pixels, total


def encode(image: Image.Image) -> str:
    """Return an image of mode L or RGB as base64 of PNG."""
    return base64.b64encode(encoded(image, compress_level=1)).decode("ascii")


def decode(text: str, budget: Budget) -> Image.Image:
    """Return the image of `encode`. Raises ValueError, one line, for anything else or more pixels than the budget."""
    most = min(budget.pixels, budget.total)
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=("PNG",)) as image:
            # Checked by the header, before any pixel is decompressed.
            refusal = f"an image of {image.width} x {image.height} pixels; at most {most} are accepted"
            if image.width * image.height <= most:
                refusal = f"a PNG of mode {image.mode}; send RGB, or L for a mask"
                if image.mode in ("L", "RGB"):
                    budget.total -= image.width * image.height
                    return image.copy()
    except Exception as error:  # Pillow raises a dozen types for damaged files
        raise ValueError(f"not a PNG in base64 ({type(error).__name__})") from error
    raise ValueError(refusal)


def digest(image: Image.Image) -> str:
    """Return the name of an image: a hash of its mode, size and pixels."""
    head = f"{image.mode} {image.width} {image.height} ".encode("ascii")
    return hashlib.sha256(head + image.tobytes()).hexdigest()


def _image(value: Any, info: ValidationInfo) -> Image.Image:
    if isinstance(value, Image.Image):
        return value
    if not isinstance(value, str) or not isinstance(info.context, Budget):
        raise ValueError("an image must be text")
    return decode(value, info.context)


Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
PngImage = Annotated[Image.Image, PlainValidator(_image), PlainSerializer(encode)]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Offer(_Message):
    """A reward that a server has. `needs` is None if it may use anything."""

    name: str
    kind: str
    role: str
    needs: list[Need] | None = None


class Limits(_Message):
    """Largest request that a server accepts."""

    images: int = Field(64, ge=1, description="Number of images to score.")
    pixels: int = Field(2**22, ge=1, description="Pixels of each image, reference and mask.")
    bytes: int = Field(64 * 2**20, ge=1, description="Bytes of the whole request.")


class Description(_Message):
    """Answer to GET /rewards."""

    rewards: list[Offer]
    limits: Limits


class WirePair(_Message):
    """A pair, its references and masks named by their digests."""

    key: str
    prompt: str
    references: list[Digest]
    masks: list[Digest | None]
    subject: str | None = None
    columns: dict[str, JsonValue] = {}

    @model_validator(mode="after")
    def _check_masks(self) -> Self:
        if len(self.references) != len(self.masks):
            raise ValueError("there must be as many masks, or nulls, as references")
        return self


class ScoreRequest(_Message):
    """Images to score. `pair_of` holds for each image the index of its pair."""

    reward: str
    images: list[PngImage] = Field(min_length=1, description="RGB images of one size.")
    pairs: list[WirePair]
    pair_of: list[int]
    photos: dict[Digest, PngImage] = Field(description="References and masks that the server may lack.")

    @model_validator(mode="after")
    def _check_indices(self) -> Self:
        if len(self.pair_of) != len(self.images) or not all(0 <= i < len(self.pairs) for i in self.pair_of):
            raise ValueError("pair_of must contain the index of a pair for each image")
        return self


class ScoreResponse(_Message):
    """Scores of the images; null is an image that could not be scored."""

    scores: list[Annotated[float, Field(allow_inf_nan=False)] | None]
