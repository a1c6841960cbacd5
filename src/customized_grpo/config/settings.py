"""All settings of a run, with their types, bounds, defaults and meanings."""

from collections.abc import Iterator, Mapping
from math import prod
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationInfo, field_validator

from customized_grpo.config.kinds import KINDS, POLICIES
from customized_grpo.config.presets import DEFAULT, KIND, PATH, objective_defaults, preset_of, values_of
from customized_grpo.config.section import Location, PathOrText, Section, SizeOrAuto, TupleOrList

#: Increased when a setting changes its name or meaning.
VERSION = 1
#: Largest side of an image in pixels; no supported model generates larger ones.
LARGEST_SIDE = 8192
#: Largest number of denoising steps: beyond it neighbouring noise levels are the same in half precision.
MOST_STEPS = 1000
#: Largest weight of a reward or role: sums of weighted scores stay finite in float32.
LARGEST_WEIGHT = 1e6

#: Built-in values of `method.objective`.
OBJECTIVES = ("grpo", "awm", "nft")

#: Values of `method.weighting` that depend on the gains so far, and on no denoising step.
BALANCES = ("constrained", "adaptive")

Weight = Annotated[float, Field(ge=0, le=LARGEST_WEIGHT)]
Weights = Annotated[list[Weight], Field(max_length=MOST_STEPS)]
#: Side of an image in pixels.
Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
NotNegative = Annotated[float, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]
#: Side of a generated image in pixels.
GeneratedSide = Annotated[int, Field(ge=16, le=LARGEST_SIDE, multiple_of=8)]


class LoraConfig(Section):
    """LoRA of the transformer."""

    rank: int = Field(DEFAULT["policy.lora.rank"], ge=1, le=4096)
    """LoRA rank. 128 fits a GPU of 80 GB with FLUX.1 at 1024 x 1024 pixels without offloading; 512 takes 33 GB for
    weights, gradients and Adam states, and 19 GB on the paper's layers (recipes/paper.yaml).
    """
    alpha: float | None = Field(None, gt=0)
    """LoRA alpha: updates are scaled by alpha / rank. null: equal to the rank."""
    targets: list[str] | None = None
    """Names of the linear layers that get a LoRA; each stands for all whose full name ends with it, except the model's
    last layer. null: the default layers of the model.
    """


class PolicyConfig(Section):
    """The image generator to train."""

    kind: str = Field(
        KIND,
        description=f"Model family: {', '.join(POLICIES)}; or your own class as package.module:Class or file.py:Class.",
    )
    path: str = PATH
    """Hub id or local folder of a diffusers pipeline."""
    revision: str | None = None
    """Branch, tag or commit on the Hub. null: the main branch."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Data type of frozen weights and of computation; float16 only to generate. LoRA weights are always float32."""
    device: str | None = None
    """Device, such as cuda:1. null: the accelerator if any, else the CPU."""
    height: GeneratedSide = DEFAULT["policy.height"]
    """Height of generated images in pixels; with sizes, only of pairs without references."""
    width: GeneratedSide = DEFAULT["policy.width"]
    """Width of generated images in pixels; with sizes, only of pairs without references."""
    sizes: list[TupleOrList[tuple[GeneratedSide, GeneratedSide]]] | None = Field(None, min_length=1)
    """Sizes (height, width) in pixels of generated images (buckets): each pair has the one with the aspect ratio
    nearest to its first reference's. One of them is height and width. null: height and width for all pairs.
    """
    reference_sizes: list[TupleOrList[tuple[Side, Side]]] | None = Field(
        DEFAULT["policy.reference_sizes"], min_length=1
    )
    """Sizes (height, width) in pixels that references are resized to, by the nearest aspect ratio. To a single one they
    are stretched, to one of several cropped (Kontext stretches, as its pipeline). null: the rule of the model's
    pipeline.
    """
    max_sequence_length: int = Field(DEFAULT["policy.max_sequence_length"], ge=1, le=4096)
    """Maximum number of text tokens of a prompt; longer prompts are cut."""
    guidance: float = Field(DEFAULT["policy.guidance"], ge=0)
    """Guidance scale of guidance-distilled models (guidance_scale in diffusers)."""
    true_cfg: float = Field(DEFAULT["policy.true_cfg"], ge=1)
    """Scale of classifier-free guidance, which doubles the model evaluations. 1: no such guidance."""
    negative_prompt: str = DEFAULT["policy.negative_prompt"]
    """Negative prompt of classifier-free guidance (true_cfg above 1)."""
    lora: LoraConfig | None = LoraConfig()
    """LoRA settings. null: train all transformer weights."""
    options: dict[str, Any] = Field({})
    """Options for a policy class of your own."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass: less memory, more time."""
    offload_activations: bool = False
    """Store the checkpointed activations in host memory; needs gradient_checkpointing."""
    quantise: Literal["int8", "nf4"] | None = None
    """Quantise the frozen transformer's linear layers: int8 (torchao) or nf4 (bitsandbytes). Needs a LoRA. null: no
    quantisation.
    """
    quantise_text_encoders: Literal["int8", "nf4"] | None = None
    """Quantise the text encoders' linear layers, as quantise does. null: no quantisation."""
    offload: bool = False
    """Store idle models in host memory: text encoders and VAE while the transformer works, and the transformer while
    prompts and references are encoded.
    """
    conditions: PathOrText | None = None
    """Directory for cached prompt and reference embeddings. If set, text encoders are only loaded for pairs that are
    not cached. null: no cache on disk.
    """
    attention: str = "auto"
    """Attention backend: auto, native, flash, cudnn, flash-3 (from the kernels package), efficient, math, or another
    name that diffusers knows. auto is safe for training on every device; native lets torch choose, whose backward pass
    can crash on Hopper GPUs.
    """
    compile: bool = False
    """Compile the transformer's blocks with torch.compile. Ratios of later updates then contain its rounding
    differences.
    """
    kernels: Literal["auto", "off"] = "auto"
    """Fused layers for LoRA, FLUX.1's blocks and gradient checkpointing (auto), or only those of diffusers, peft and
    torch (off). A layer that differs from the release that its kernel was written for is always the library's.
    """
    adapter: str | None = None
    """LoRA to start from: a .safetensors file that diffusers reads for the model, its folder, or a run; for kind uno
    UNO's published file. null: none.
    """
    adapter_as: Literal["fused", "start"] = "fused"
    """fused: merge the adapter into the base weights and train a new LoRA; start: train the adapter."""

    @classmethod
    def defaults(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the values of the model's preset."""
        return values_of(preset_of(values).values, "policy")

    @property
    def largest_size(self) -> tuple[int, int]:
        """Height and width of the largest generated images in pixels."""
        return max(self.sizes or [(self.height, self.width)], key=prod)

    def conflicts(self) -> Iterator[tuple[Location, str]]:
        """Yield (key, message) for each setting that does not fit the others."""
        if ":" not in self.kind and self.kind not in KINDS:
            yield ("kind",), f"should be {', '.join(KINDS)}, or package.module:Class, or file.py:Class"
            return
        if self.sizes is not None and (self.height, self.width) not in self.sizes:
            yield (
                ("sizes",),
                f"should contain policy.height and policy.width, [{self.height}, {self.width}], the size without "
                "references; add it, set them to one of the sizes, or set sizes to null",
            )
        if self.options and self.kind in POLICIES:
            yield ("options",), f"are only for a policy class of your own, not for {self.kind}; remove them"
        if self.offload_activations and not self.gradient_checkpointing:
            yield ("offload_activations",), "needs policy.gradient_checkpointing=true; set both or neither"
        if self.quantise and self.lora is None:
            yield ("quantise",), "needs a LoRA, because quantised weights cannot be trained; set policy.lora, or null"
        if self.adapter_as == "start" and self.lora is None:
            yield ("adapter_as",), "start needs a LoRA; set policy.lora, or use fused"


class DataConfig(Section):
    """Source of (reference images, prompt) pairs."""

    path: str | None = None
    """A .jsonl file, a SynCD-style .json, a folder (DreamBench, images with metadata.jsonl or with .txt captions), or
    the built-in data set world or world-recoloured. Training needs one.
    """
    long_prompts: Literal["warn", "error"] = "warn"
    """Prompts that the policy's text encoder or a prompt reward cuts at its maximum length: warn before the training,
    or refuse them (error).
    """
    split: Literal["train", "held-out"] = "train"
    """Split of the built-in data set; held-out has other subjects and prompts."""
    size: int | None = Field(None, ge=1, le=10_000_000)
    """Number of pairs. null: 4096 of the built-in data set, or all of a file."""
    seed: int = Field(0, ge=0)
    """Random seed of the built-in data set; each gives other pairs."""
    root: PathOrText | None = None
    """Folder that relative image paths start from. null: the folder of the file."""


class RewardConfig(Section):
    """A reward model or monitor."""

    kind: str
    """dino, dino-patches, clip-image, siglip-image (identity), clip, siglip, pickscore, hps-v2, hps-v3 (prompt), vlm,
    vlm-local, remote (either), copy-paste (guard); or your own as package.module:Class or file.py:function.
    """
    role: Literal["identity", "prompt", "guard"]
    """Role in the method. A guard has no advantage: as a reward it removes images that score above its limit, as a
    monitor it is only logged.
    """
    name: str | None = None
    """Name in logs, tables and figures. null: the kind."""
    path: str | None = None
    """Hub id or local folder of the reward model. null: the default model of the kind."""
    device: str | None = None
    """Device of the reward model. null: the policy's; cpu saves memory of the accelerator."""
    weight: Weight = 1.0
    """Weight within its role (see method.combine). 0: only logged, not trained on."""
    limit: float | None = Field(None, allow_inf_nan=False)
    """Highest allowed score of a guard under rewards; images above it are removed from their group."""
    options: dict[str, Any] = Field({})
    """Options of the kind; docs/rewards.md lists them."""


class MethodConfig(Section):
    """From scores to advantages: SARS, TDW and baselines; and the objective."""

    objective: str = "grpo"
    """Training objective: grpo (the paper's, on stochastic trajectories), awm or nft (on noised copies of images that
    few deterministic steps sample); or your own function as package.module:function or file.py:function. docs/method.md
    compares them.
    """
    shaping: Literal["sars", "none", "bonus", "min", "max", "harmonic", "product"] = "sars"
    """Reward shaping term added to the weighted advantages: the paper's sars, none, or a baseline."""
    gamma: Weight = 0.4
    """Weight of the shaping term."""
    gamma_last: float | None = Field(None, ge=0, le=LARGEST_WEIGHT)
    """Weight of the shaping term at the last iteration, reached linearly. null: gamma."""
    weighting: Literal["tdw", "tdw-reversed", "tdw-shuffled", "static", "table", "constrained", "adaptive"] = "tdw"
    """Role weights by denoising step: tdw (the paper's), tdw-reversed, static (the same at all steps), table (your
    own), or tdw-shuffled, an ablation whose weights are read at shuffled steps. Or by training so far, the same at all
    steps: constrained (satisfies keep) or adaptive (balances the gains of both roles).
    """
    keep: dict[Literal["identity", "prompt"], float] = Field({})
    """With weighting constrained: least relative gain over the untuned model by role. {prompt: 0}: as much identity as
    possible with a prompt score not below the untuned model's; {identity: 0.1}: as much prompt as possible with 10%
    more identity.
    """
    pid: TupleOrList[tuple[NotNegative, NotNegative, NotNegative]] = (10.0, 1.0, 20.0)
    """Gains of the multipliers with weighting constrained: proportional, integral (per iteration) and derivative, per
    unit of violation; see docs/method.md.
    """
    normalise: Literal["roles", "sum"] = "roles"
    """roles: normalise each role within its group, then weight them. sum: normalise the weighted sum of raw rewards, a
    baseline that ignores combine and std_floor.
    """
    prompt_weight: Weight = 0.5
    """Weight of the prompt role with weighting static."""
    identity_weight: Weight = 0.5
    """Weight of the identity role with weighting static."""
    prompt_table: Weights = Field([])
    """Weights of the prompt role with weighting table, one per rollout step, the noisiest first."""
    identity_table: Weights = Field([])
    """Weights of the identity role with weighting table, one per rollout step, the noisiest first."""
    combine: Literal["rewards", "advantages"] = "rewards"
    """Several rewards of one role: rewards normalises their weighted sum, advantages sums their normalised values."""
    spread: Literal["group", "batch"] = "group"
    """Standard deviation that advantages are divided by: of each group, or of all groups."""
    std_floor: dict[Literal["identity", "prompt"], NotNegative] = Field({})
    """Lower bound of the standard deviation of a group's rewards, by role. Empty: no bound."""
    advantage_clip: float = Field(5.0, gt=0)
    """Advantages are clipped to this absolute value."""
    surgery: Literal["none", "pcgrad"] = "none"
    """pcgrad: compute one gradient per role and project out conflicts (arXiv 2001.06782); needs a second backward pass.
    """

    @classmethod
    def defaults(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the values of the objective."""
        return values_of(objective_defaults(values), "method")

    def conflicts(self) -> Iterator[tuple[Location, str]]:
        """Yield (key, message) for each setting that does not fit the others."""
        if ":" not in self.objective and self.objective not in OBJECTIVES:
            from customized_grpo.method import OBJECTIVES as registered  # only here: it imports torch

            if self.objective not in registered:
                known = ", ".join(dict.fromkeys((*OBJECTIVES, *registered)))
                yield ("objective",), f"should be {known}, or package.module:function, or file.py:function"
        if (self.weighting == "constrained") != bool(self.keep):
            need = "needs method.weighting=constrained; set it, or remove keep"
            yield (
                ("keep",),
                need if self.keep else "is empty; with method.weighting=constrained give a role's least gain",
            )
        if self.objective != "grpo" and self.surgery != "none":
            yield ("surgery",), f"pcgrad needs method.objective=grpo, not {self.objective}; set one of them"
        if self.objective != "grpo" and self.weighting == "tdw-shuffled":
            yield ("weighting",), f"tdw-shuffled needs method.objective=grpo, not {self.objective}; use tdw"
        if self.weighting == "static" and self.identity_weight == self.prompt_weight == 0:
            yield ("identity_weight",), "is 0, and so is method.prompt_weight; increase one of them"
        if self.normalise == "sum" and (self.shaping, self.weighting) != ("none", "static"):
            yield ("normalise",), "sum needs method.shaping=none and method.weighting=static; set both, or use roles"
        if self.normalise == "sum" and self.surgery != "none":
            yield ("surgery",), "pcgrad needs one gradient per role; set method.normalise=roles, or use none"


class ForwardConfig(Section):
    """Objectives on noised copies of sampled images: `method.objective` awm, nft or your own."""

    levels: int = Field(3, ge=1)
    """Noise levels that are trained per image, each inside another step of the rollout's schedule. The last step is not
    trained.
    """
    pull: float = Field(0.2, ge=0)
    """Weight of the squared distance of the velocity from that of the policy's moving average: the trust region. 0:
    none.
    """
    old_decay: float = Field(0.95, ge=0, lt=1)
    """Decay per iteration of the policy's moving average, which pull, nft and your own function use. 0: the policy of
    this iteration's start.
    """
    scale: Literal["none", "level", "error", "x0"] = "none"
    """Normalisation of the squared error at each noise level: none, level (divided by the squared level, so that
    gradients of all levels are of a like size), error (divided by its own size), or x0 (the same for the clean latents'
    error, as in DiffusionNFT).
    """
    beta: float = Field(1.0, gt=0)
    """Guidance strength of objective nft; a lower one moves the policy further."""
    options: dict[str, Any] = Field({})
    """Further arguments of an objective function of your own."""


class WindowConfig(Section):
    """Moving window of stochastic steps (MixGRPO, arXiv 2507.21802); all other steps are deterministic."""

    size: int = Field(4, ge=1)
    """Number of stochastic steps of an image."""
    order: Literal["progressive", "decaying", "random"] = "progressive"
    """progressive: move from noisy to clean steps; decaying: the same, with ever shorter stays; random: a random
    position each time.
    """
    stay: int = Field(25, ge=1)
    """Iterations at one position."""
    stride: int = Field(1, ge=1)
    """Steps from one position to the next."""
    start: int = Field(0, ge=0)
    """First position, in denoising steps."""
    roll_back: bool = False
    """Return to the first position after the last one, instead of staying."""
    decay: float = Field(0.1, ge=0)
    """How fast stays get shorter with order decaying."""
    decay_from: int = Field(13, ge=0)
    """Position from which stays get shorter with order decaying."""


class RolloutConfig(Section):
    """How groups of images are sampled."""

    sampler: Literal["dance", "flow", "cps"] = "dance"
    """Stochastic sampler: dance (DanceGRPO), flow (Flow-GRPO) or cps; see docs/options.md."""
    eta: float = Field(0.4, gt=0)
    """Noise level of stochastic steps, in the sampler's own unit."""
    steps: int = Field(DEFAULT["rollout.steps"], ge=2, le=MOST_STEPS)
    """Denoising steps per image; the last one is deterministic."""
    shift: float | None = Field(DEFAULT["rollout.shift"], gt=0)
    """Timestep shift; 1 gives evenly spaced noise levels. null: the rule of the model's own scheduler, for each size of
    images.
    """
    group_size: int = Field(12, ge=2, le=4096)
    """Images per group; advantages are computed within a group."""
    pairs: int = Field(8, ge=1, le=65536)
    """Groups per iteration, over all processes."""
    shared_noise: bool = True
    """Start all images of a group from the same noise."""
    layout: Literal["groups", "spread"] = "groups"
    """Distribution over processes: whole groups each, or an equal share of all images each (spread)."""
    batch_size: SizeOrAuto = 8
    """Images per forward pass. auto: as many as fit into free memory."""
    overlap: bool | None = None
    """Score a batch while the next one is sampled. null: only if the policy is on an accelerator."""
    window: WindowConfig | None = None
    """Moving window of stochastic steps. null: all steps but the last are stochastic."""

    def conflicts(self) -> Iterator[tuple[Location, str]]:
        """Yield (key, message) for each setting that does not fit the others."""
        if self.sampler == "cps" and self.eta > 1:
            yield ("eta",), "should be at most 1 with sampler cps"
        window = self.window
        if window is not None and window.start + window.size > self.steps - 1:
            yield (
                ("window",),
                f"start {window.start} and size {window.size} pass the last stochastic step of "
                f"rollout.steps={self.steps}; together at most {self.steps - 1}",
            )


class TrainConfig(Section):
    """Optimisation, limits and checkpoints."""

    iterations: int = Field(300, ge=1, le=10_000_000)
    """Iterations; each samples groups, scores them and updates the policy."""
    updates: int = Field(3, ge=1, le=1000)
    """Optimizer steps per iteration."""
    trained_fraction: float = Field(0.6, gt=0, le=1)
    """Fraction of the stochastic steps that are trained on, chosen at random per image."""
    image_fraction: float = Field(1.0, gt=0, le=1)
    """Fraction of each group's images that are trained on: those whose advantages have the largest variance (PODS,
    arXiv 2504.13818). Fewer images make updates cheaper; all count in the advantages.
    """
    learning_rate: float = Field(2e-5, gt=0)
    """Learning rate of AdamW."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after the warm-up: constant, or a linear or cosine decay to 0 at the end."""
    warmup_iterations: int = Field(0, ge=0)
    """Iterations over which the learning rate rises linearly to its value. 0: no warm-up."""
    betas: TupleOrList[tuple[Decay, Decay]] = (0.9, 0.999)
    """Betas of AdamW, each in [0, 1)."""
    weight_decay: float = Field(1.1e-4, ge=0)
    """Weight decay of AdamW."""
    max_gradient_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm."""
    clip_range: float = Field(1e-4, gt=0)
    """Clip range of the importance ratio around 1. It is small because log-densities are means over latent elements."""
    clip_range_high: float | None = Field(None, gt=0)
    """Clip range above a ratio of 1 (DAPO). null: clip_range."""
    ratio: Literal["plain", "guard"] = "plain"
    """Importance ratio: plain, or normalised over steps as in GRPO-Guard (arXiv 2510.22319)."""
    kl_weight: float = Field(0.0, ge=0)
    """Weight of the KL divergence from the untuned model in the loss. 0: no KL term."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Decay per optimizer step of an average of the weights (EMA). 0: no average."""
    batch_size: SizeOrAuto = 4
    """(image, step) samples per forward and backward pass. auto: as many as fit into free memory."""
    threads: int | None = Field(None, ge=1, le=1024)
    """CPU threads of torch. null: OMP_NUM_THREADS, or one for each core. On cores that other processes keep busy, 1 is
    several times faster.
    """
    timeout: float = Field(30.0, gt=0, le=1e6)
    """Minutes that a process waits for the others before it fails."""
    max_missing: float = Field(0.1, ge=0, le=1)
    """Fraction of an iteration's images that may lack a score; above it the run stops."""
    max_skipped: int = Field(3, ge=0)
    """Updates in a row that may be skipped for a non-finite gradient; then the run stops."""
    max_drift: float | None = Field(1.0, gt=0)
    """Squared change of the velocities relative to the untuned model's squared velocities; above it the run stops.
    null: no limit.
    """
    checkpoint_every: int = Field(10, ge=1)
    """Save a checkpoint every N iterations."""
    keep_checkpoints: int = Field(2, ge=1)
    """Number of newest checkpoints to retain."""
    sample_every: int = Field(15, ge=1)
    """Generate sample images every N iterations."""
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(["tensorboard"])
    """Trackers to log to, in addition to metrics.jsonl. []: none."""

    def conflicts(self) -> Iterator[tuple[Location, str]]:
        """Yield (key, message) for each setting that does not fit the others."""
        if self.warmup_iterations and self.warmup_iterations >= self.iterations:
            yield ("warmup_iterations",), f"should be less than train.iterations={self.iterations}"
        if repeated := next((name for name in self.trackers if self.trackers.count(name) > 1), None):
            yield ("trackers",), f"lists {repeated} twice; list it once"


class EvaluationConfig(Section):
    """Held-out images that are generated and scored before and after training."""

    data: DataConfig = DataConfig(split="held-out", size=96, seed=1)
    """Held-out pairs; the path defaults to data.path."""
    steps: int = Field(DEFAULT["evaluation.steps"], ge=1, le=MOST_STEPS)
    """Denoising steps, by deterministic Euler sampling."""
    images: int = Field(1, ge=1, le=10_000)
    """Images per pair."""
    seed: int = 0
    """Random seed of the initial noise."""
    monitors: list[RewardConfig] = Field([RewardConfig(kind="copy-paste", role="guard", name="copy-paste")])
    """Scorers that are logged and never trained on; entries as under rewards."""


class ValidationConfig(Section):
    """Images on which gains are measured during training, for `method.weighting` constrained or adaptive."""

    data: DataConfig = DataConfig()
    """Pairs to measure on; the path defaults to data.path. Pairs that are not trained show what other prompts and
    subjects gain.
    """
    images: int = Field(64, ge=1, le=100_000)
    """Number of images, of the first pairs; several of each if there are fewer. The untuned model generates each once.
    """
    per_iteration: int = Field(8, ge=1, le=10_000)
    """Images that each iteration generates anew, in turn; of the others the last scores count."""


_WithData = TypeVar("_WithData", EvaluationConfig, ValidationConfig)


class Config(Section):
    """All settings of a run. The defaults are the paper's, for FLUX.1-Kontext-dev."""

    version: int = VERSION
    """Version of the settings' format. Files of another version are refused."""
    seed: int = Field(0, ge=0)
    """Random seed of noise, order of pairs and choice of trained steps."""
    policy: PolicyConfig = PolicyConfig()
    data: DataConfig = DataConfig()
    rewards: list[RewardConfig] = Field(
        [
            RewardConfig(kind="dino", role="identity", name="identity", path="facebook/dinov2-base"),
            RewardConfig(kind="clip", role="prompt", name="prompt", path="openai/clip-vit-large-patch14"),
        ]
    )
    """Reward models used for training. At least one must have role identity and one role prompt."""
    method: MethodConfig = MethodConfig()
    forward: ForwardConfig = ForwardConfig()
    rollout: RolloutConfig = RolloutConfig()
    train: TrainConfig = TrainConfig()
    validation: ValidationConfig = ValidationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @classmethod
    def defaults(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the values of the objective, and of the model's preset."""
        return {**preset_of(values.get("policy", {})).values, **objective_defaults(values.get("method", {}))}

    @field_validator("evaluation", "validation")
    @classmethod
    def _follow_data(cls, section: _WithData, info: ValidationInfo) -> _WithData:
        """Take other pairs from the training data's source unless another one is set."""
        data, own = info.data.get("data"), section.data
        if data is None or own.path is not None:
            return section
        followed = own.model_copy(update={"path": data.path, "root": own.root or data.root})
        return section.model_copy(update={"data": followed})

    def conflicts(self) -> Iterator[tuple[Location, str]]:
        """Yield (key, message) for each setting that does not fit the others."""
        if self.version != VERSION:
            yield (
                ("version",),
                f"should be {VERSION}: another version of this package wrote these settings; use that version (see a "
                f"run's starts.jsonl), or check them against `cgrpo settings` and set version: {VERSION}",
            )
        for i, reward in enumerate(self.rewards):
            if reward.role == "guard" and reward.limit is None:
                yield (
                    ("rewards", i),
                    "is a guard without a limit; set the limit above which images are removed, or move it to "
                    "evaluation.monitors",
                )
            if reward.role != "guard" and reward.limit is not None:
                yield ("rewards", i, "limit"), "is only for role guard; remove it"
        for i, monitor in enumerate(self.evaluation.monitors):
            if monitor.limit is not None:
                yield (
                    ("evaluation", "monitors", i, "limit"),
                    "has no effect, because monitors are only logged; remove it, or move the guard to rewards",
                )
        for role in ("identity", "prompt"):
            if not any(reward.role == role and reward.weight > 0 for reward in self.rewards):
                yield ("rewards",), f"no reward of role {role} has a weight above 0; add one"
        if self.method.weighting == "table":
            for key in ("prompt_table", "identity_table"):
                count, steps = len(getattr(self.method, key)), self.rollout.steps
                if count != steps:
                    yield ("method", key), f"has {count} weights; give one for each of rollout.steps={steps}"
        yield from self._objective_conflicts()
        names = [reward.name or reward.kind for reward in (*self.rewards, *self.evaluation.monitors)]
        if repeated := next((name for name in names if names.count(name) > 1), None):
            yield ("rewards",), f"two rewards or monitors have the name {repeated!r}; give each its own name"

    def _objective_conflicts(self) -> Iterator[tuple[Location, str]]:
        """Yield (key, message) for each setting that does not fit the objective."""
        objective, rollout = self.method.objective, self.rollout
        if objective == "grpo":
            return
        if rollout.shared_noise:
            yield (
                ("rollout", "shared_noise"),
                f"makes all images of a group the same, because method.objective={objective} samples by deterministic "
                "steps; set it to false",
            )
        if rollout.window is not None:
            yield ("rollout", "window"), f"needs method.objective=grpo, not {objective}; set one of them, or null"
        if self.forward.levels > rollout.steps - 1:
            yield (
                ("forward", "levels"),
                f"is above {rollout.steps - 1}, the number of rollout.steps={rollout.steps} but the last; lower it",
            )
        if self.forward.options and objective in OBJECTIVES:
            yield ("forward", "options"), f"are only for a function of your own, not for {objective}; remove them"
