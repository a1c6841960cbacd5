"""What a remote reward and its server say to each other: the one place that both read it from.

    GET  /rewards   Description
    POST /score     ScoreRequest -> ScoreResponse, or Missing with status 409

Every request bears the token and the version of the protocol, every answer the version; an error is
{"error": "one line"}. Pictures are PNG in base64, so that all 8-bit pixels arrive as they were. References and masks
go by a digest of their pixels: a server keeps what it has seen, and asks (409) for what it lacks.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
from typing import Annotated

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from customized_grpo.protocols import Need

#: Raised by whatever an older client or server would not understand.
PROTOCOL = 3
PROTOCOL_HEADER = "X-CGRPO-Protocol"
#: Names the shared token in the environment of both.
TOKEN_VARIABLE = "CGRPO_REWARD_TOKEN"  # noqa: S105, a name
_MODES = ("L", "RGB")

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Offer(_Message):
    """One reward that a server has."""

    name: str
    kind: str
    role: str
    #: None: it may look at anything.
    needs: list[Need] | None = None


class Limits(_Message):
    """What a server takes in one request."""

    images: int = Field(64, ge=1, description="pictures to score")
    pixels: int = Field(2**22, ge=1, description="of each picture, reference and mask")
    bytes: int = Field(64 * 2**20, ge=1, description="of the whole request")


class Description(_Message):
    rewards: list[Offer]
    limits: Limits


class WirePair(_Message):
    """A pair, its pictures named by their digests."""

    key: str
    prompt: str
    references: list[Digest]
    masks: list[Digest | None]
    subject: str | None = None
    columns: dict[str, JsonValue] = {}


class ScoreRequest(_Message):
    reward: str
    images: list[str] = Field(description="PNG in base64, RGB, all of one size")
    pairs: list[WirePair] = Field(description="each pair once")
    pair_of: list[int] = Field(description="for each image the number of its pair")
    pictures: dict[Digest, str] = Field(description="references and masks that the server may lack, PNG in base64")


class ScoreResponse(_Message):
    #: null is a picture that could not be scored; it becomes NaN.
    scores: list[Annotated[float, Field(allow_inf_nan=False)] | None]


class Missing(_Message):
    missing: list[Digest]


def encode(image: Image.Image) -> str:
    """A picture of mode L or RGB as PNG in base64."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def decode(text: str, most_pixels: int) -> Image.Image:
    """The picture of `encode`, decoded whole. Raises ValueError, one line, for anything else or larger."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=("PNG",)) as image:
            # The header's size, before a pixel of it is unpacked.
            if image.width * image.height > most_pixels:
                raise ValueError(f"a picture of {image.width} x {image.height} pixels; at most {most_pixels} are taken")
            if image.mode not in _MODES:
                raise ValueError(f"a PNG of mode {image.mode}; send RGB, or L for a mask")
            image.load()
            return image.copy()
    except (binascii.Error, Image.DecompressionBombError) as error:
        raise ValueError(f"not a PNG in base64 ({error})") from error
    except ValueError:
        raise
    except Exception as error:  # Pillow's decoder raises a dozen types on damaged files
        raise ValueError(f"a PNG that does not decode ({type(error).__name__})") from error


def digest(image: Image.Image) -> str:
    """The name of a picture by its mode, size and pixels."""
    head = f"{image.mode} {image.width} {image.height} ".encode("ascii")
    return hashlib.sha256(head + image.tobytes()).hexdigest()
