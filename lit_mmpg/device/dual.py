"""``DualEncoder``: a device model from a pretrained vision backbone and a pretrained text encoder.

    model:
      class_path: DeviceModule
      init_args:
        network: {class_path: lit_mmpg.device.DualEncoder, init_args: {vision: FOLDER_OR_NAME, text: FOLDER_OR_NAME}}

Both come from a folder or by a name on the hub (:mod:`lit_mmpg.hub`); either may be left out. Between and behind them
stand the layers of :class:`~lit_mmpg.device.model.DeviceNetwork`: frame projection, attention to the frames, fusion and
head. Any layer of either encoder may be dynamic (``encoder.model.*``, ``text_encoder.model.*``).

Text reaches a device model as words of the training vocabulary, and devices need no tokenizer: what it makes of each
word is kept as a table among the weights, so that checkpoints, bundles and ONNX graphs hold all there is to know.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from lit_mmpg.data.vocabulary import NUM_SPECIAL, UNKNOWN, tokenize
from lit_mmpg.device.contract import DynamicConfig, InitialisationConfig, NetworkFactory, Shapes
from lit_mmpg.device.model import DeviceModelConfig, DeviceNetwork
from lit_mmpg.errors import UserError, first_line
from lit_mmpg.hub import build_model, load_model, load_tokenizer, read_settings
from lit_mmpg.vision import build_vision_model, load_vision_model

if TYPE_CHECKING:
    from lit_mmpg.data.datamodule import DeviceData
    from lit_mmpg.data.vocabulary import Vocabulary

_log = logging.getLogger(__name__)

Pooling = Literal["mean", "first", "pooler"]

_POOLINGS: dict[str, Pooling] = {
    "cls_token": "first", "cls": "first", "mean_tokens": "mean", "mean": "mean", "pooler": "pooler",
}  # fmt: skip
"""What the folder of a sentence encoder calls them."""

_VISION, _TEXT = "model.network.vision", "model.network.text"

PIECES = 8
"""Most tokens of one word; of longer ones the first are kept."""
CHECKED = 1000
"""Training sentences on which the table is compared with the tokenizer."""


class WordTokens(nn.Module):
    """Words of a vocabulary to the tokens that a tokenizer makes of them, in tensor operations that can be exported.

    Args:
        words: Size of the vocabulary.
        tokens: Length of a row of tokens; longer texts are cut.
        description: Tokens in front of a text and behind it, and of padding: ``before``, ``behind``, ``padding``.
    """

    table: Tensor
    before: Tensor
    behind: Tensor

    def __init__(self, words: int, tokens: int, description: Mapping[str, Any]) -> None:
        super().__init__()
        self.words, self.tokens, self.padding = words, tokens, int(description["padding"])
        for name in ("before", "behind"):
            self.register_buffer(name, torch.tensor(description[name], dtype=torch.long), persistent=False)
        # A word at the start of a text, then the same words elsewhere: some tokenizers see the blank in front of it.
        self.register_buffer("table", torch.full((2 * words, PIECES), -1, dtype=torch.int32))

    def forward(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """``[N, L]`` words, 0 is padding ``-> [N, tokens]`` tokens, and a mask of the same shape."""
        rows, length = words.shape
        later = self.words * (torch.arange(length, device=words.device) > 0).long()
        pieces = self.table[words + later].reshape(rows, length * PIECES).long()
        before, behind = self.before.expand(rows, -1), self.behind.expand(rows, -1)
        body = torch.cat([before, pieces], 1)
        kept = body >= 0
        kept = kept & (kept.long().cumsum(1) <= self.tokens - behind.shape[1])
        body = torch.cat([body, behind], 1)
        kept = torch.cat([kept, behind >= 0], 1)
        # Tokens move up to where none are missing before them: the place of each is the number of those before.
        place = torch.where(kept, kept.long().cumsum(1) - 1, self.tokens)
        slots = torch.arange(self.tokens, device=words.device)
        found = torch.where(place.unsqueeze(1) == slots.unsqueeze(1), body.unsqueeze(1), 0).sum(-1)
        mask = slots < kept.long().sum(1, keepdim=True)
        return torch.where(mask, found, self.padding), mask

    def fill(self, tokenizer: Any, vocabulary: Vocabulary, sentences: Sequence[str]) -> None:
        """Make the table.

        Args:
            tokenizer: The tokenizer.
            vocabulary: The words.
            sentences: Sentences on which the table is compared with the tokenizer.

        Raises:
            UserError: If the tokenizer cuts words by their neighbours, which no table of words can say.
        """
        self.table.fill_(-1)
        unknown = tokenizer.unk_token_id
        if unknown is not None and unknown not in (tokenizer.eos_token_id, tokenizer.pad_token_id):
            self.table[[UNKNOWN, self.words + UNKNOWN], 0] = unknown
        first = _bare(tokenizer, list(vocabulary.words))
        start = _bare(tokenizer, ["a"])[0]
        behind = _bare(tokenizer, [f"a {word}" for word in vocabulary.words])
        cut = 0
        for i, (alone, after) in enumerate(zip(first, behind, strict=True)):
            word = i + NUM_SPECIAL
            for row, pieces in ((word, alone), (self.words + word, after[len(start) :])):
                cut += len(pieces) > PIECES
                pieces = pieces[:PIECES]
                self.table[row, : len(pieces)] = torch.tensor(pieces, dtype=torch.int32)
        if cut:
            _log.warning("%s: words of more than %d tokens are cut", _TEXT, PIECES)
        self._check(tokenizer, vocabulary, sentences)

    def _check(self, tokenizer: Any, vocabulary: Vocabulary, sentences: Sequence[str]) -> None:
        every = [tokenize(sentence) for sentence in sentences[:CHECKED]]
        texts = [words for words in every if words and all(vocabulary.index(word) != UNKNOWN for word in words)]
        long = 0
        for words, expected in zip(texts, _bare(tokenizer, [" ".join(words) for words in texts]), strict=True):
            rows = [vocabulary.index(w) + self.words * (i > 0) for i, w in enumerate(words)]
            pieces = self.table[rows]
            if not bool((pieces[:, -1] >= 0).any()) and pieces[pieces >= 0].tolist() != expected:
                raise UserError(
                    f"{_TEXT}: its tokenizer cuts words by their neighbours ('{' '.join(words)}'), which a device "
                    "without a tokenizer cannot repeat; choose a text encoder with word pieces (as BERT's), or leave "
                    "text out"
                )
            long += len(expected) + len(self.before) + len(self.behind) > self.tokens
        if long:
            _log.warning("%s: %d of %d sentences are cut to %d tokens", _TEXT, long, len(texts), self.tokens)


class PretrainedText(nn.Module):
    """Words to one vector by a pretrained text encoder and a linear layer behind it.

    Args:
        model: The encoder, of the transformers library.
        description: What it was built from, with pooling and special tokens.
        words: Size of the vocabulary.
        tokens: Most tokens of a text.
        width: Width H of the output.

    Raises:
        UserError: If the model is none of texts that are padded.
    """

    def __init__(self, model: Any, description: Mapping[str, Any], words: int, tokens: int, width: int) -> None:
        super().__init__()
        most = getattr(model.config, "max_position_embeddings", None) or -1
        tokens = min(tokens, most) if most > 0 else tokens
        self.pooling: Pooling = description["pooling"]
        self.pools = self.pooling == "pooler"
        self.tokenise = WordTokens(words, tokens, description)
        self.model = model.eval()
        self.output = nn.Linear(self._tried(), width)

    def _tried(self) -> int:
        """Width D of what the model gives.

        Raises:
            UserError: If it gives nothing, or what it gives depends on the padding behind a text.
        """
        length, before, behind = self.tokenise.tokens, self.tokenise.before, self.tokenise.behind
        short = torch.cat([before, before.new_zeros(1), behind])
        whole, padded = before.new_zeros(length), before.new_full((length,), self.tokenise.padding)
        padded[: len(short)] = short[:length]
        try:
            with torch.no_grad():
                self.vectors(whole.unsqueeze(0), torch.ones(1, length, dtype=torch.bool))
                expected = self.vectors(short.unsqueeze(0), torch.ones(1, len(short), dtype=torch.bool))
                got = self.vectors(padded.unsqueeze(0), torch.arange(length).unsqueeze(0) < len(short))
        except Exception as error:  # whatever a model says to texts that it does not take
            raise UserError(
                f"{_TEXT}: the model gives no features of texts of {length} tokens ({first_line(error)}); name a text "
                "encoder, or fewer model.network.tokens"
            ) from error
        if not torch.allclose(got, expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max()), equal_nan=True):
            raise UserError(
                f"{_TEXT}: what the model gives for a text depends on the padding behind it, and devices pad; name a "
                "text encoder that takes an attention mask"
            )
        return expected.shape[-1]

    def pooled(self, words: Tensor) -> Tensor:
        """``[N, L]`` words ``-> [N, D]``."""
        return self.vectors(*self.tokenise(words))

    def vectors(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """``[N, L]`` tokens and which of them count ``-> [N, D]``."""
        output = self.model(input_ids=tokens, attention_mask=mask.long())
        if self.pooling == "pooler":
            return output.pooler_output  # type: ignore[no-any-return]
        last = output.last_hidden_state
        if self.pooling == "first":
            return last[:, 0]  # type: ignore[no-any-return]
        weight = mask.unsqueeze(-1).to(last.dtype)
        return (last * weight).sum(1) / weight.sum(1).clamp(min=1)  # type: ignore[no-any-return]

    def forward(self, text: Tensor) -> Tensor:
        """``[..., L]`` words, 0 is padding ``-> [..., H]``."""
        encoded: Tensor = self.output(self.pooled(text.reshape(-1, text.shape[-1])))
        return encoded.reshape(*text.shape[:-1], encoded.shape[-1])


class DualEncoder(DeviceNetwork):
    """A pretrained vision backbone and a pretrained text encoder as a device model.

    Args:
        shapes: What the data decides.
        dynamic: Dynamic layers; ``None`` for a purely static model.
        vision: Backbone of transformers, or of timm as transformers wraps it: a folder or a name on the hub, or what a
            checkpoint kept of it. ``None`` for data with features, or to train a small encoder from nothing.
        text: Text or sentence encoder of transformers, likewise; ``None``: words are learnt from the data.
        size: Edge in pixels of the pictures that the backbone sees, to which frames of another size are resized;
            ``None``: as its image processor says.
        pooling: How the text encoder's outputs become one vector: their mean, the first, or as the model pools;
            ``None``: as the folder of a sentence encoder says, else the mean, or as the model pools where it is one
            tower of a model of pictures and texts.
        tokens: Most tokens of a text, special ones included.
        frozen: Leave both encoders as they are and train what is behind them. ``false`` trains them too, except the
            statistics of batch norms, which would mix devices.
        width: Width H, see :class:`~lit_mmpg.device.model.DeviceModelConfig`; so for what follows.
        heads: Attention heads over frames.
        temporal: Mix frames with their time by a small network.
        dropout: Dropout in the fusion.
        frame_dropout: Dropout on the frame features.
        correction: Hidden width of a residual network on the frame features.
        context_width: Width of a projection of its own for what is uploaded.

    Raises:
        UserError: If an encoder cannot be loaded, or does not fit the data.
    """

    _pretrained: Sequence[nn.Module] = ()
    _frozen = False

    def __init__(
        self,
        shapes: Shapes,
        dynamic: DynamicConfig | None = None,
        vision: str | dict[str, Any] | None = None,
        text: str | dict[str, Any] | None = None,
        size: int | None = None,
        pooling: Pooling | None = None,
        tokens: int = 32,
        frozen: bool = True,
        width: int = 128,
        heads: int = 4,
        temporal: bool = True,
        dropout: float = 0.0,
        frame_dropout: float = 0.0,
        correction: int = 0,
        context_width: int = 0,
    ) -> None:
        eyes = reader = None
        written: dict[str, Any] = {"vision": None, "text": None}
        features = DeviceModelConfig.encoder_features
        if vision is not None:
            if not shapes.pixels:
                raise UserError(f"{_VISION}: this data has features, not pixels; leave it out")
            known = isinstance(vision, str)
            found = load_vision_model(vision, size, _VISION) if known else build_vision_model(vision, _VISION)  # type: ignore[arg-type]
            eyes, features, written["vision"] = found.module, found.features, found.description
            eyes.size = (found.height, found.width)
        if text is not None:
            model, written["text"] = (
                _load_text(text, pooling) if isinstance(text, str) else (build_model(text["config"], _TEXT), text)
            )
            reader = PretrainedText(model, written["text"], shapes.words, tokens, width)
        config = DeviceModelConfig(
            width, features, heads=heads, temporal=temporal, dropout=dropout, frame_dropout=frame_dropout,
            correction=correction, context_width=context_width,
        )  # fmt: skip
        super().__init__(shapes, config, dynamic, eyes, reader)
        self._written, self._frozen = written, frozen
        self._tokenizer = text if isinstance(text, str) else None
        self._pretrained = [part.model for part in (eyes, reader) if part is not None]
        self.frozen_encoder = frozen and eyes is not None
        for part in (part for part in (eyes, reader) if part is not None):
            for name, parameter in part.model.named_parameters():
                # A pooling layer that is not used would wait for gradients that never come.
                parameter.requires_grad_(not frozen and (part.pools or "pooler" not in name.split(".")))
        self.train(self.training)

    def made_again(self, factory: NetworkFactory) -> NetworkFactory:
        """With what was loaded written out, so that a checkpoint is all that is needed."""
        given = dict(factory.keywords) if isinstance(factory, partial) else {}
        return partial(type(self), **(given | self._written))

    def train(self, mode: bool = True) -> DualEncoder:
        """Frozen encoders stay in evaluation mode, and so do all batch norms within them."""
        super().train(mode)
        for model in self._pretrained:
            for part in model.modules():
                if self._frozen or isinstance(part, nn.modules.batchnorm._BatchNorm):
                    part.training = False
        return self

    def start(self, data: DeviceData, settings: InitialisationConfig) -> None:
        """The tokens of the words of the training data, and what the data tells about the other layers."""
        if isinstance(self.text_encoder, PretrainedText):
            if settings.words != "random":
                raise UserError(f"model.initialisation.words is '{settings.words}', but {_TEXT} brings its own words")
            if self._tokenizer is None:
                raise UserError(
                    f"{_TEXT} is what a checkpoint kept, without a tokenizer; name its folder to train anew"
                )
            tokenizer = load_tokenizer(self._tokenizer, _TEXT)
            self.text_encoder.tokenise.fill(tokenizer, data.vocabulary, data.training_sentences())
        super().start(data, settings)


def _load_text(source: str, pooling: Pooling | None) -> tuple[nn.Module, dict[str, Any]]:
    """A text encoder, and what it is made from again.

    Raises:
        UserError: If it cannot be loaded, or does not pool as it is asked to.
    """
    model, config, missing = load_model(source, "text", _TEXT)
    if pooling is None:
        said = read_settings(source, "1_Pooling/config.json")
        tower = "text_config" in read_settings(source, "config.json")
        modes = [name.removeprefix("pooling_mode_") for name, on in said.items() if on is True and "_mode_" in name]
        modes = modes or [str(said.get("pooling_mode", "pooler" if tower else "mean"))]
        if len(modes) > 1 or modes[0] not in _POOLINGS:
            raise UserError(
                f"{_TEXT} {source} pools by {' and '.join(modes)} (1_Pooling/config.json), which a DualEncoder cannot; "
                f"name another one, or set model.network.pooling to one of {', '.join(get_args(Pooling))}"
            )
        pooling = _POOLINGS[modes[0]]
    if pooling == "pooler" and missing:
        raise UserError(f"model.network.pooling is 'pooler', but {source} has no trained pooling layer; use 'mean'")
    tokenizer = load_tokenizer(source, _TEXT)
    whole, bare = tokenizer("a")["input_ids"], _bare(tokenizer, ["a"])[0]
    at = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    special = {"before": whole[:at], "behind": whole[at + len(bare) :], "padding": tokenizer.pad_token_id or 0}
    return model, {"config": config, "pooling": pooling, **special}


def _bare(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of texts, without special ones."""
    try:
        return tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
    except Exception as error:  # of the tokenizers library, whose errors have no type of their own
        raise UserError(f"{_TEXT}: its tokenizer fails ({first_line(error)}); mend its tokenizer.json") from error
