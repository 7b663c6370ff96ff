"""Stage 2: the cloud half (ADR and FDA), trained through the device model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lit_mmpg.batch import Batch, Frames, frame_positions
from lit_mmpg.checkpoint import read_checkpoint, rebuild
from lit_mmpg.cloud.adaptor import ContextPool, FastDomainAdaptor
from lit_mmpg.cloud.codebooks import from_checkpoint, learn_codebooks, resolve
from lit_mmpg.cloud.controls import ConditionContext, ConstantContext, freeze_generators
from lit_mmpg.cloud.exchange import Anchors, Exchange, LinkConfig, check_download, state_digest
from lit_mmpg.cloud.generation import generate
from lit_mmpg.cloud.reasoner import AnchorFrameDistributionReasoner, Reconstruction, reconstruction_loss
from lit_mmpg.device.anchors import AnchorRule, select_anchors
from lit_mmpg.device.base import AnsweringModule, OptimiserConfig, shapes_of
from lit_mmpg.device.contract import DynamicConfig, NetworkFactory, build_network
from lit_mmpg.device.evaluation import Cost
from lit_mmpg.device.model import DeviceModelConfig
from lit_mmpg.device.module import DeviceModule
from lit_mmpg.device.outputs import Outputs, alignment_loss, answer_batch
from lit_mmpg.device.plots import reconstruction_curve
from lit_mmpg.errors import UserError
from lit_mmpg.link.product import ProductQuantiser
from lit_mmpg.settings import MOST, within

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lit_mmpg.data.datamodule import DeviceData


CURVE = (1, 2, 3, 4, 6, 8, 12, 16)
"""Numbers of anchors at which a test measures the reconstruction."""


@dataclass(frozen=True)
class AnchorConfig:
    """Anchor frames: the part of each context clip that a device uploads.

    Attributes:
        count: Number K of anchor frames of a clip; 0: all frames.
        rule: How they are selected.
    """

    count: int = 2
    rule: AnchorRule = "uniform"

    def __post_init__(self) -> None:
        """Refuse less than nothing."""
        within("model.anchors.", 0, count=self.count)


@dataclass(frozen=True)
class CloudConfig:
    """Sizes of the cloud half.

    Attributes:
        reasoner: ``adr``: reconstruct the distribution of the clips from the anchors. ``none``: use the anchors alone.
        latent: Size of the clip latent of the reasoner; 0: deterministic (no KL term).
        reasoner_hidden: Width of the reasoner.
        embedding: Width of the per-frame embedding that is pooled into the context beside the moments.
        adaptor_hidden: Width of the adaptor's encoders.
        context: Input of the adaptor. ``anchors``: the device's context. Controls: ``constant``, one learned vector for
            all devices; ``conditions``, the true settings of the device's camera (an oracle).
        generator: ``trained``; or the ablation ``frozen_random``, whose generators keep their random weights.
        place: Where parameters are generated. ``cloud``: anchors and parameters cross the link. ``device``: nothing
            crosses it (with ``anchors.count=0`` and ``reasoner=none`` all frames of the context are used).
    """

    reasoner: Literal["adr", "none"] = "adr"
    latent: int = 16
    reasoner_hidden: int = 128
    embedding: int = 64
    adaptor_hidden: int = 128
    context: Literal["anchors", "constant", "conditions"] = "anchors"
    generator: Literal["trained", "frozen_random"] = "trained"
    place: Literal["cloud", "device"] = "cloud"

    def __post_init__(self) -> None:
        """Refuse sizes of which there is no network."""
        within("model.cloud.", 0, MOST, latent=self.latent, embedding=self.embedding)
        within("model.cloud.", 1, MOST, reasoner_hidden=self.reasoner_hidden, adaptor_hidden=self.adaptor_hidden)


@dataclass(frozen=True)
class LossConfig:
    """Weights of the loss terms.

    Attributes:
        reconstruction: Weight of the reconstruction of the context clips.
        kl: Weight of KL(posterior || prior), in nats per clip.
        alignment: Weight of the alignment of adapted features of shifted frames with static features of their clean
            twins; needs data with clean twins.
        task: Weight of the task loss.
    """

    reconstruction: float = 0.1
    kl: float = 1e-3
    alignment: float = 0.0
    task: float = 1.0

    def __post_init__(self) -> None:
        """Refuse losses that would grow."""
        within("model.losses.", 0, **vars(self))


class CloudModule(AnsweringModule):
    """Trains the cloud half through the device model.

    Args:
        data: Description of the data (``DeviceData.meta``); a configuration leaves it out.
        device_ckpt: Checkpoint of the device half (stage 1), which a training starts from.
        network: The device model; ``None``: that of ``device_ckpt``.
        dynamic: Dynamic layers and the form of their parameters.
        anchors: What is uploaded.
        cloud: Sizes of the cloud half.
        losses: Weights of the losses.
        link: Codecs with which the test exchanges messages.
        freeze_static: Keep the static layers as stage 1 left them; ``false`` trains them jointly.
        frozen_noise: Whether dropout and noise of the frozen device half act on the clips that are asked about in
            training, as they did in stage 1. Contexts and alignment targets are always without.
        optimiser: Optimiser settings.
        label_smoothing: Share of the probability spread over all answers (open-ended questions).
    """

    half_name = "cloud"
    needs_context = True

    def __init__(
        self,
        data: dict[str, Any],
        device_ckpt: str | None = None,
        network: DeviceModelConfig | NetworkFactory | None = None,
        dynamic: DynamicConfig = DynamicConfig(),
        anchors: AnchorConfig = AnchorConfig(),
        cloud: CloudConfig = CloudConfig(),
        losses: LossConfig = LossConfig(),
        link: LinkConfig = LinkConfig(),
        freeze_static: bool = True,
        frozen_noise: bool = True,
        optimiser: OptimiserConfig = OptimiserConfig(),
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(data, optimiser, label_smoothing)
        self.device_ckpt = device_ckpt
        self.dynamic, self.anchor_config, self.cloud_config = dynamic, anchors, cloud
        self.losses, self.link, self.freeze_static = losses, link, freeze_static
        self.frozen_noise = frozen_noise
        self.needs_clean = losses.alignment > 0
        self.reasoner: AnchorFrameDistributionReasoner | None
        self.pool: ContextPool | ConstantContext | ConditionContext
        self.adaptor: FastDomainAdaptor
        self._conditions: Tensor | None = None
        self._exchange: Exchange | None = None
        self.quantiser: ProductQuantiser | None = None
        self._reconstruction: dict[tuple[str, int], list[float]] = {}
        self._factory = network or trained_network(self._device_half())
        with self._drawing():
            self._build(None)
        self.save_hyperparameters(self.settings(network=self._factory), logger=False)

    # -- building ------------------------------------------------------------------------------------------------

    def _device_half(self) -> dict[str, Any]:
        """The checkpoint of the device half, checked against the data.

        Raises:
            UserError: If there is none, or it was trained on other data.
        """
        if self.device_ckpt is None:
            raise UserError(
                "model.init_args.device_ckpt is not set: train the device half first and name its checkpoint, or "
                "name its config as device_stage"
            )
        stored = read_checkpoint(self.device_ckpt, half="device")
        trained = stored["lit_mmpg"]["data"]
        self.check_meta(trained, self.meta)
        if trained["max_words"] != self.meta["max_words"]:
            raise UserError(
                f"data.batch.max_words is {self.meta['max_words']}, the device half was trained with "
                f"{trained['max_words']}; use the same"
            )
        return stored

    def _build(self, state: dict[str, Tensor] | None) -> None:
        """Create both halves, the device half with the weights of a checkpoint.

        Args:
            state: State of the device half; ``None`` where a checkpoint of this half will be loaded.
        """
        self.network = build_network(self._factory, shapes_of(self.meta), self.dynamic)
        self._factory = self.network.factory  # type: ignore[assignment]
        if state is not None:
            own = {k.removeprefix("network."): v for k, v in state.items() if k.startswith("network.")}
            self.network.load_state_dict(own, strict=False)  # the dynamic forms' own parts are new
        width = self.network.anchor_width
        config = self.cloud_config
        if config.place == "cloud" and config.context == "anchors":
            check_download(self.link, self.network.spec)
        self.reasoner = (
            AnchorFrameDistributionReasoner(width, config.reasoner_hidden, config.latent)
            if config.reasoner == "adr"
            else None
        )
        self.pool = self._make_pool(width)
        self.adaptor = FastDomainAdaptor(self.network.dynamic_layers(), self.pool.width, config.adaptor_hidden)
        if config.generator == "frozen_random":
            freeze_generators(self.adaptor)
        if self.freeze_static:
            self.network.requires_grad_(False)
            for parameter in self.network.adapter_parameters():
                parameter.requires_grad_(True)

    def start(self, data: DeviceData, fresh: bool) -> None:
        """Weights of the device half, and the true conditions of the devices where this is the oracle."""
        self.know_conditions(data.corpus.conditions)
        if fresh:
            # Some generators start from the static weights, so everything is made again on top of them.
            self._build(self._device_half()["state_dict"])

    def _make_pool(self, width: int) -> ContextPool | ConstantContext | ConditionContext:
        config = self.cloud_config
        pool = ContextPool(width, config.embedding)
        if config.context == "constant":
            return ConstantContext(pool.width)
        if config.context == "conditions":
            return ConditionContext(self.meta.get("conditions") or 1, pool.width)
        return pool

    def know_conditions(self, conditions: np.ndarray | None) -> None:
        """Take the true conditions of the devices ``[devices, K]``, where this is the oracle.

        Raises:
            UserError: If the data does not know them.
        """
        if self.cloud_config.context != "conditions":
            return
        if conditions is None:
            raise UserError(
                "model.init_args.cloud.context is 'conditions', but this data does not know the cameras of its "
                "devices; use data with simulated cameras, or 'anchors'"
            )
        self._conditions = torch.from_numpy(conditions)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the codebooks of the link."""
        super().on_load_checkpoint(checkpoint)
        self.quantiser = from_checkpoint(checkpoint.get("lit_mmpg", {}))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the codebooks of the link."""
        super().on_save_checkpoint(checkpoint)
        self._fit_codebooks(again=False)
        if self.quantiser is not None:
            books = self.quantiser.to_tensors()
            checkpoint["lit_mmpg"]["codebooks"] = {name: torch.from_numpy(a.copy()) for name, a in books.items()}

    def _fit_codebooks(self, again: bool) -> None:
        """In training: codebooks for the anchors as the weights now make them, where these change (``again``)."""
        if self._trainer is None or self.trainer.state.fn != "fit" or self._training is None:
            return
        fixed = self.freeze_static and not self.network.context_parameters()
        if self.quantiser is None or (again and not fixed):
            self.quantiser = learn_codebooks(self.training_anchors(self._training), self.link)

    def training_anchors(self, data: DeviceData) -> Iterator[np.ndarray]:
        """Anchors ``[n, anchor_width]`` that the training devices would upload, one array per context."""
        training = self.training
        self.eval()
        # The state of the random generators is afterwards what it was before.
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for frames in data.training_contexts():
                context = replace(frames, values=frames.values.to(self.device), mask=frames.mask.to(self.device))
                selected, _ = self.select(context)
                yield selected.features[selected.mask].float().cpu().numpy()
        self.train(training)

    def on_fit_start(self) -> None:
        """A training needs its data beside the loaders: for codebooks and for frames that are encoded once."""
        super().on_fit_start()
        if self.freeze_static:
            self.network.eval()  # a trainer leaves each submodule's mode as it finds it, and never calls train()
        if self._training is None:
            raise UserError("call prepare(data) with the training data before trainer.fit(module, datamodule=data)")

    @property
    def static_encoder(self) -> bool:
        """Where the static layers are frozen."""
        return self.freeze_static

    # -- the two halves ------------------------------------------------------------------------------------------

    def select(self, context: Frames) -> tuple[Anchors, Tensor]:
        """On the device: project the context with the static parameters and choose the anchors.

        Args:
            context: ``[B, C, T, ...]``.

        Returns:
            The anchors, and all projected features ``[B, C, T, H]`` (known to the cloud in training only).
        """
        with torch.no_grad() if self.freeze_static else torch.enable_grad():
            encoded = self.network.encode(context.values)
        # The context projection is trained with the cloud half even where the static layers are frozen.
        learns = not self.freeze_static or bool(self.network.context_parameters())
        with torch.enable_grad() if learns and self.training else torch.no_grad():
            projected = self.network.anchor_features(encoded)
        features, times, mask = select_anchors(
            projected, context.mask, self.anchor_config.count, self.anchor_config.rule
        )
        return Anchors(features, times, mask, context.mask.sum(-1)), projected

    def reconstruct(
        self, anchors: Anchors, frames: Tensor | None = None, frame_mask: Tensor | None = None
    ) -> tuple[Reconstruction, Tensor]:
        """In the cloud: the distribution of all frames of the context, and the mask of its frames."""
        if self.reasoner is None:
            return Reconstruction(anchors.features, torch.zeros_like(anchors.features), None, None), anchors.mask
        longest = int(anchors.num_frames.max()) if frame_mask is None else frame_mask.shape[-1]
        if frame_mask is None:
            frame_mask = torch.arange(longest, device=anchors.mask.device) < anchors.num_frames.unsqueeze(-1)
        times = frame_positions(frame_mask)
        return self.reasoner(anchors.features, anchors.times, anchors.mask, times, frame_mask, frames), frame_mask

    def generate(self, anchors: Anchors) -> tuple[Tensor, ...]:
        """In the cloud: personal parameters from anchors, one set per device."""
        reconstruction, mask = self.reconstruct(anchors)
        return self.adaptor(self.pool(reconstruction, mask))

    def serve(self, anchors: Anchors) -> tuple[Tensor, ...]:
        """As :meth:`generate`, for inference: a device gets the same bits in every batch, here and from the service."""
        assert isinstance(self.pool, ContextPool)
        return generate(self.reasoner, self.pool, self.adaptor, anchors)

    def _context(self, reconstruction: Reconstruction, mask: Tensor, device: Tensor) -> Tensor:
        if isinstance(self.pool, ConditionContext):
            assert self._conditions is not None
            return self.pool.of(self._conditions.to(device.device)[device])
        return self.pool(reconstruction, mask)

    def personal(self, context: Frames, device: Tensor, names: list[str], exchange: Exchange) -> tuple[Tensor, ...]:
        """Parameters as devices load them: through the link, unless nothing crosses it.

        Args:
            context: ``[B, C, T, ...]``.
            device: ``[B]`` index of each device.
            names: Id of each device, for the messages.
            exchange: The link.
        """
        # A device and a service compute in float32, whatever precision a training has.
        with torch.autocast(self.device.type, enabled=False):
            if isinstance(self.pool, ConditionContext):
                assert self._conditions is not None
                return self.adaptor(self.pool.of(self._conditions.to(device.device)[device]))
            anchors, _ = self.select(context)
            # One vector for all devices is known before any of them sends something.
            if self.cloud_config.place == "device" or self.cloud_config.context == "constant":
                return self.generate(anchors)
            return exchange(anchors, names, self.serve)

    # -- training ------------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> CloudModule:
        """Frozen static layers stay in evaluation mode."""
        super().train(mode)
        if self.freeze_static and hasattr(self, "network"):
            self.network.eval()
        return self

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Task loss of the adapted device model, plus reconstruction, KL and alignment."""
        anchors, projected = self.select(batch.context)
        reconstruction, mask = self.reconstruct(anchors, projected.detach(), batch.context.mask)
        parameters = self.adaptor(self._context(reconstruction, mask, batch.device))
        fixed = self.freeze_static and not self.network.encodes_personally
        with torch.no_grad() if fixed else torch.enable_grad():
            features = self.network.encode_asked(batch.frames.values, parameters)
        noisy = self.freeze_static and self.frozen_noise
        if noisy:
            self.network.train()
            for part in self.network.modules():
                if isinstance(part, nn.modules.batchnorm._BatchNorm):  # its statistics would mix devices
                    part.eval()
        adapted = self.network.project(features, parameters)
        outputs = answer_batch(self.network, batch, features, parameters, adapted)
        if noisy:
            self.network.eval()
        terms = {"task": self.losses.task * self.task_loss(batch, outputs)}
        if self.reasoner is not None:
            terms["reconstruction"] = self.losses.reconstruction * reconstruction_loss(
                reconstruction, projected.detach(), batch.context.mask
            )
        if reconstruction.kl is not None:
            clips = batch.context.mask.any(-1)
            terms["kl"] = self.losses.kl * (reconstruction.kl * clips).sum() / clips.sum().clamp(min=1)
        if self.losses.alignment:
            terms["alignment"] = self.losses.alignment * alignment_loss(self.network, batch, adapted)
        loss = torch.stack(list(terms.values())).sum()
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        self.log_dict({f"train/loss_{name}": term for name, term in terms.items()}, batch_size=len(batch))
        return loss

    # -- evaluation ----------------------------------------------------------------------------------------------

    @property
    def methods(self) -> list[str]:
        """The method, the static model under it, and the control that loads another device's parameters."""
        # Trained jointly, the static layers without parameters are no longer the static model.
        own = ["cdc_mmpg", *(["static"] if self.freeze_static else [])]
        # Without a context another device's context means nothing.
        return [*own, "shuffled_device"] if self.cloud_config.context == "anchors" else own

    def _evaluate(self, loaders: Any, methods: list[str]) -> None:
        super()._evaluate(loaders, methods)
        self.know_conditions(self._groups[0].conditions)

    def on_validation_epoch_start(self) -> None:
        """Fresh metrics and byte counts."""
        super().on_validation_epoch_start()
        self._fit_codebooks(again=True)
        self._open_link()

    def on_test_epoch_start(self) -> None:
        """Fresh metrics and byte counts."""
        super().on_test_epoch_start()
        self._open_link()
        self._reconstruction = {}

    def on_predict_start(self) -> None:
        """Answers come from parameters that have crossed the link, too."""
        super().on_predict_start()
        self.know_conditions(self._groups[0].conditions)
        self._open_link()

    def digest(self) -> str:
        """SHA-256 of the weights of both halves, hexadecimal, as the messages of the link carry it."""
        parts = (self.network, self.reasoner, self.pool, self.adaptor)
        return state_digest(nn.ModuleList(part for part in parts if part is not None))

    def _open_link(self) -> None:
        self._exchange = Exchange(resolve(self.link, self.quantiser), self.network.spec, self.digest())

    def adapt(self, context: Frames, devices: Tensor) -> tuple[Tensor, ...]:
        """Parameters for each device, through the messages and codecs of the link."""
        assert self._exchange is not None
        names = [self._groups[0].devices[int(d)] for d in devices]
        return self.personal(context, devices, names, self._exchange)

    def respond(self, batch: Batch, methods: list[str]) -> dict[str, Outputs]:
        """Answers with the own, no, and another device's parameters."""
        features = self.network.encode_asked(batch.frames.values)
        anew = self.network.encodes_personally
        results = {}
        for method in methods:
            parameters: tuple[Tensor, ...] = ()
            if method == "cdc_mmpg":
                parameters = self.adapt(batch.context, batch.device)
            elif method == "shuffled_device":
                assert batch.foreign is not None
                parameters = self.adapt(batch.foreign, batch.device)
            own = self.network.encode_asked(batch.frames.values, parameters) if anew and parameters else features
            results[method] = answer_batch(self.network, batch, own, parameters)
        return results

    def costs(self) -> dict[str, Cost]:
        """Mean bytes of the messages of one adaptation."""
        if self._exchange is None or not self._exchange.adaptations:
            return {}
        cost = Cost(self._exchange.upload_bytes, self._exchange.download_bytes)
        return {"cdc_mmpg": cost, "shuffled_device": cost}

    @torch.compiler.disable
    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Collect answers, and reconstruction errors for several numbers of anchors."""
        super().test_step(batch, batch_idx, dataloader_idx)
        if self.reasoner is not None and dataloader_idx == 0:
            self._measure_reconstruction(batch.context)

    def _measure_reconstruction(self, context: Frames) -> None:
        """Squared errors of the reasoner and of what needs no reasoner, summed over frames, for several K."""
        assert self.reasoner is not None
        projected = self.network.anchor_features(self.network.encode(context.values))
        weight = context.mask.unsqueeze(-1).to(projected.dtype)
        times = frame_positions(context.mask)
        for count in [k for k in CURVE if k <= context.mask.shape[-1]]:
            anchors, at, valid = select_anchors(projected, context.mask, count, self.anchor_config.rule)
            mean = (anchors.sum(-2) / valid.sum(-1, keepdim=True).clamp(min=1)).unsqueeze(-2)
            gap = (times.unsqueeze(-1) - at.unsqueeze(-2)).abs().masked_fill(~valid.unsqueeze(-2), 9.0).argmin(-1)
            nearest = anchors.gather(-2, gap.unsqueeze(-1).expand(*gap.shape, anchors.shape[-1]))
            guesses = {
                "reasoner (ADR)": self.reasoner(anchors, at, valid, times, context.mask).mean,
                "nearest anchor": nearest,
                "mean of the anchors": mean.expand_as(projected),
            }
            for name, guess in guesses.items():
                error = ((guess - projected).square() * weight).sum().item()
                total = self._reconstruction.setdefault((name, count), [0.0, 0.0])
                total[0] += error
                total[1] += float(weight.sum()) * projected.shape[-1]

    def figures(self) -> dict[str, Figure]:
        """Adds the reconstruction quality against the number of anchors."""
        figures = dict(super().figures())
        if any(weight for _, weight in self._reconstruction.values()):
            counts = sorted({count for _, count in self._reconstruction})
            names = dict.fromkeys(name for name, _ in self._reconstruction)
            errors = {n: [self._reconstruction[n, k][0] / self._reconstruction[n, k][1] for k in counts] for n in names}
            figures["reconstruction"] = reconstruction_curve(counts, errors)
        return figures


def trained_network(checkpoint: dict[str, Any]) -> NetworkFactory:
    """What made the network of a checkpoint of the device half."""
    module: DeviceModule = rebuild(checkpoint, "the checkpoint of the device half", DeviceModule)
    return module.factory
