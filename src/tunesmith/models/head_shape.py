"""What a head on a model is, in plain values: its tensors can be counted before there are any. Torch-free.

head.json beside trained tensors holds a shape and the labels, so that whoever opens them later builds the same head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from tunesmith.errors import ModelError, RecipeError
from tunesmith.foreign import read_object
from tunesmith.models.facts import ModelFacts
from tunesmith.models.families import OWN_HEADS
from tunesmith.recipe.heads import ClassifySection, HeadedSection, PooledSection, TagSection
from tunesmith.tags import OUTSIDE

NAME = "head.json"
TENSORS = "head.safetensors"

Task = Literal["classify", "multi_label", "regress", "tag"]


@dataclass(frozen=True)
class HeadShape:
    """A head's tensors and what it reads.

    Attributes:
        task: what it answers.
        kind: ``linear``, or ``mlp``: dense, activation, perhaps a layer norm without bias, output.
        inputs: width H of the hidden states.
        outputs: classes K; 1 for a number.
        width: inner width of ``mlp``, 0 for ``linear``.
        activation: of ``mlp``: ``tanh`` or ``gelu``.
        dense_bias: whether the first layer of ``mlp`` has a bias.
        norm: whether ``mlp`` has a layer norm behind its activation.
        bias: whether the output layer has a bias.
        pooling: ``last``, ``first``, ``mean``; ``words`` where each labelled token is read.
        layer: whose output is read; None is the last, after its final norm.
        dropout: on what is read.
    """

    task: Task
    kind: Literal["linear", "mlp"]
    inputs: int
    outputs: int
    width: int = 0
    activation: Literal["tanh", "gelu"] = "tanh"
    dense_bias: bool = True
    norm: bool = False
    bias: bool = True
    pooling: Literal["last", "first", "mean", "words"] = "last"
    layer: int | None = None
    dropout: float = 0.0

    @property
    def num_parameters(self) -> int:
        """Elements of all its tensors."""
        read = self.width or self.inputs
        inner = self.inputs * self.width + self.width * (self.dense_bias + self.norm)
        return inner + read * self.outputs + self.outputs * self.bias


@dataclass(frozen=True)
class HeadFile:
    """What head.json says.

    Attributes:
        shape: of the head.
        labels: in the order of its outputs.
        outside: of ``tag``: the label of words that are nothing.
        reads: of ``tag``: which token of a word answers for it.
        spans: of ``tag``: whether labels mark spans.
    """

    shape: HeadShape
    labels: tuple[str, ...]
    outside: str = OUTSIDE
    reads: Literal["first", "last"] = "first"
    spans: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        plain: dict[str, Any] = {"shape": asdict(self.shape), "labels": list(self.labels)}
        if self.shape.task == "tag":
            plain |= {"outside": self.outside, "reads": self.reads, "spans": self.spans}
        return plain


def read_head(folder: Path) -> HeadFile:
    """head.json of a folder.

    Raises:
        ModelError: it is broken, or its labels are not as many as the head's outputs.
    """
    path = folder / NAME
    values = read_object(path)
    try:
        shape = TypeAdapter(HeadShape).validate_python(values["shape"])
        labels = tuple(str(label) for label in values["labels"])
        if len(labels) != (0 if shape.task == "regress" else shape.outputs):
            raise ValueError(f"it names {len(labels)} labels, the head has {shape.outputs} outputs")
        if shape.task != "tag":
            return HeadFile(shape, labels)
        reads: Literal["first", "last"] = "last" if values["reads"] == "last" else "first"
        return HeadFile(shape, labels, str(values["outside"]), reads, bool(values["spans"]))
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise ModelError(
            f"the head cannot be used: {str(error).splitlines()[0]}",
            where=str(path),
            hint="the file is damaged or of another version: copy it again, or export the run again",
        ) from error


def has_head(folder: Path) -> bool:
    """Whether a folder holds a head of ours."""
    return (folder / NAME).is_file()


def task_of(section: HeadedSection) -> Task:
    """What a section's head answers."""
    if isinstance(section, ClassifySection):
        return "multi_label" if section.multi_label else "classify"
    return "tag" if isinstance(section, TagSection) else "regress"


def shape_of(section: HeadedSection, facts: ModelFacts, num_labels: int) -> HeadShape:
    """The head that a section asks for on a model.

    Args:
        section: of the recipe.
        facts: of the base.
        num_labels: classes; not used for a number.

    Raises:
        RecipeError: a layer that the model does not have, or a width without an inner layer.
    """
    if section.layer is not None and section.layer > facts.num_layers:
        raise RecipeError(
            f"`layer` is {section.layer}, the model has {facts.num_layers} layers",
            where="objective.layer",
            hint=f"give at most {facts.num_layers}, or leave it out for the last",
        )
    task = task_of(section)
    kind = section.head
    if kind == "auto":
        kind = "mlp" if _inner_by_default(facts, task, _pooling(section, facts)) else "linear"
    if section.width is not None and kind == "linear":
        raise RecipeError(
            "`width` is that of the inner layer, and a linear head has none",
            where="objective.width",
            hint="set `head: mlp`, or leave `width` out",
        )
    modern = facts.model_type == "modernbert"
    is_own = kind == "mlp" and facts.is_encoder and section.head == "auto"
    inner = kind == "mlp"
    return HeadShape(
        task=task,
        kind=kind,
        inputs=facts.hidden_size,
        outputs=1 if task == "regress" else num_labels,
        width=(section.width or facts.hidden_size) if inner else 0,
        activation="gelu" if inner and (modern or not facts.is_encoder) else "tanh",
        dense_bias=not (is_own and modern),
        norm=is_own and modern,
        bias=kind == "mlp" or facts.is_encoder or task == "tag",
        pooling=_pooling(section, facts),
        layer=None if section.layer == facts.num_layers else section.layer,
        dropout=section.dropout,
    )


def transformers_class(shape: HeadShape, facts: ModelFacts) -> str | None:
    """Name of the class of transformers that can hold this head on this model, or None where none can."""
    name = "AutoModelForTokenClassification" if shape.task == "tag" else "AutoModelForSequenceClassification"
    if shape.layer is not None:
        return None
    plain = shape.kind == "linear"
    if facts.is_encoder and facts.model_type not in OWN_HEADS:
        return None
    if facts.is_encoder and facts.model_type == "modernbert":
        modern = shape.norm and not shape.dense_bias and shape.width == shape.inputs and shape.bias
        return name if modern and shape.pooling in ("first", "mean", "words") else None
    if facts.is_encoder:
        if shape.task == "tag":
            return name if plain and shape.bias else None
        inner = not plain and shape.activation == "tanh" and shape.width == shape.inputs and not shape.norm
        return name if inner and shape.bias and shape.dense_bias and shape.pooling == "first" else None
    if shape.task == "tag":
        return name if plain and shape.bias else None
    return name if plain and not shape.bias and shape.pooling == "last" else None


def read_labels(names: Sequence[str] | None, counts: Mapping[str, int]) -> list[str]:
    """The labels in order: those that are given, else those of the training rows, sorted."""
    return list(names) if names is not None else sorted(counts)


def _inner_by_default(facts: ModelFacts, task: Task, pooling: str) -> bool:
    return facts.is_encoder and (facts.model_type == "modernbert" or (task != "tag" and pooling == "first"))


def _pooling(section: HeadedSection, facts: ModelFacts) -> Literal["last", "first", "mean", "words"]:
    if not isinstance(section, PooledSection):
        return "words"
    if section.pooling == "auto":
        return default_pooling(facts)[0]
    return section.pooling


def default_pooling(facts: ModelFacts) -> tuple[Literal["last", "first", "mean"], str]:
    """What a head reads of a row where the recipe does not say, and why."""
    if not facts.is_encoder:
        return "last", "a decoder's last token has read the whole text"
    if facts.has_pooler:
        return "first", "the model's files hold a pooler, so that its first token was trained to stand for the text"
    return "mean", "the model's files hold no pooler: its first token was never trained to stand for a text"
