"""Public networks, exported as they are and with one merge replaced by a fusion, run in bare ONNX Runtime beside eager.

    python -m benchmarks.public_networks                 # those whose packages are installed
    python -m benchmarks.public_networks --names bert gcn_jumping_knowledge

Weights are drawn, sizes are small, architectures whole. Both files run at sizes other than the example's, and are
compared with eager here, and then by `verify`. Each network has a process of its own; what is stored already is not
tried again. docs/networks.md is the table. A network more is a function more: it returns a `Network`.

Packages: transformers, torch-geometric and deepctr-torch beside the project's own environment; torchvision, timm,
effdet and segmentation-models-pytorch in an environment of their own, as torchvision has to meet torch's version.
"""

import argparse
import contextlib
import importlib.metadata
import io
import json
import logging
import subprocess
import sys
import time
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fusion_onnx
from fusion_onnx import FusionLayer

RESULTS = Path(__file__).parent / "results" / "public_networks.json"
PAGE = Path(__file__).parent.parent / "docs" / "networks.md"
SECONDS = 900
TOLERANCE = 1e-4
"""Of the largest entry of an output."""
PACKAGES = ("torch", "onnxscript", "onnxruntime", "onnxruntime-gpu")


@dataclass
class Network:
    """A module, what it is called with at a size, its dynamic axes, and how one of its merges becomes a fusion.

    inputs: of a size, such as a batch; keyword arguments. sizes: the example's, then those that are tried.
    merge: replaces a merge within the module, in place; says which.
    """

    module: nn.Module
    inputs: Callable[..., dict[str, Any]]
    dynamic: Any
    merge: Callable[[nn.Module], str]
    sizes: tuple[tuple[int, ...], ...] = ((2, 5), (3, 7), (1, 4))


NETWORKS: dict[str, tuple[str, Callable[[], Network]]] = {}


def network(package: str) -> Callable[[Callable[[], Network]], Callable[[], Network]]:
    """Add a network, by its function's name, of a package."""

    def add(make: Callable[[], Network]) -> Callable[[], Network]:
        NETWORKS[make.__name__] = package, make
        return make

    return add


def ids(batch: int, length: int, vocabulary: int = 50) -> torch.Tensor:
    """Draw (batch, length) token numbers, none of them padding."""
    return torch.randint(3, vocabulary, (batch, length), generator=torch.Generator().manual_seed(batch * 100 + length))


def draw(*shape: int) -> torch.Tensor:
    """Draw a tensor."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def first(module: nn.Module, kind: str) -> nn.Module:
    """Return the first part of a class of that name."""
    return next(part for part in module.modules() if type(part).__name__ == kind)


def residual(kind: str, width: int) -> Callable[[nn.Module], str]:
    """Replace the sum in a block that ends with LayerNorm(dropout(dense(x)) + input): BERT's and its kin's."""

    def merge(module: nn.Module) -> str:
        part: Any = first(module, kind)
        part.merge = FusionLayer(fusion_onnx.create("sum", dims=[width, width]))

        def forward(self: Any, hidden_states: torch.Tensor, input_tensor: torch.Tensor, *args: Any) -> Any:
            return self.LayerNorm(self.merge([self.dropout(self.dense(hidden_states)), input_tensor]))

        part.forward = types.MethodType(forward, part)
        return f"{kind}'s residual sum: `sum`"

    return merge


def after(strategy: str, width: int, wrapped: str, **options: Any) -> Callable[[nn.Module], str]:
    """Replace the residual x + f(x) around a part by a fusion of x and f(x), where the caller adds x: f gives y − x.

    Such a part's caller computes x + part(x); the part is made to give fusion(x, part(x)) − x.
    """

    def merge(module: nn.Module) -> str:
        part: Any = next(part for name, part in module.named_modules() if name.endswith(wrapped))
        inner = part.forward
        part.merge = FusionLayer(fusion_onnx.create(strategy, dims=[width, width], **options))

        def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            y = inner(x, *args, **kwargs)
            return (self.merge([x, y[0]]), *y[1:]) if isinstance(y, tuple) else self.merge([x, y])

        part.forward = types.MethodType(forward, part)
        return f"`{strategy}` of a part's input and output"

    return merge


TEXT = {"input_ids": {0: "batch", 1: "length"}, "attention_mask": {0: "batch", 1: "length"}}
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "vocab_size": 60,
    "max_position_embeddings": 40,
}


def masked(batch: int, length: int) -> dict[str, Any]:
    """Draw tokens, and a mask that leaves out the last one of the first sample."""
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[0, -1] = 0
    return {"input_ids": ids(batch, length), "attention_mask": mask}


def text(name: str, merge: Callable[[nn.Module], str], **options: Any) -> Network:
    """Return a text encoder of transformers, drawn from a small config."""
    import transformers

    config = getattr(transformers, f"{name}Config")(**{**SMALL, **options})
    config.return_dict = True
    return Network(getattr(transformers, f"{name}Model")(config), masked, TEXT, merge)


@network("transformers")
def bert() -> Network:
    return text("Bert", residual("BertSelfOutput", 32))


@network("transformers")
def roberta() -> Network:
    return text("Roberta", residual("RobertaSelfOutput", 32), pad_token_id=1)


@network("transformers")
def electra() -> Network:
    return text("Electra", residual("ElectraSelfOutput", 32), embedding_size=32)


@network("transformers")
def layoutlm() -> Network:
    made = text("LayoutLM", residual("LayoutLMSelfOutput", 32), max_2d_position_embeddings=64)

    def inputs(batch: int, length: int) -> dict[str, Any]:
        corner = torch.randint(0, 20, (batch, length, 2), generator=torch.Generator().manual_seed(3))
        return {**masked(batch, length), "bbox": torch.cat([corner, corner + 9], -1)}

    return Network(made.module, inputs, {**TEXT, "bbox": {0: "batch", 1: "length"}}, made.merge)


@network("transformers")
def albert() -> Network:
    return text("Albert", after("weighted_sum", 32, "embeddings.LayerNorm", weights=[0.5, 0.5]), embedding_size=32)


@network("transformers")
def distilbert() -> Network:
    import transformers

    config = transformers.DistilBertConfig(
        vocab_size=60, dim=32, n_layers=2, n_heads=4, hidden_dim=37, max_position_embeddings=40
    )
    merge = after("mean", 32, "embeddings.LayerNorm")
    return Network(transformers.DistilBertModel(config), masked, TEXT, merge)


@network("transformers")
def gpt2() -> Network:
    import transformers

    config = transformers.GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=40, use_cache=False)
    return Network(transformers.GPT2LMHeadModel(config), masked, TEXT, after("mean", 32, "transformer.ln_f"))


@network("transformers")
def llama() -> Network:
    import transformers

    config = transformers.LlamaConfig(**SMALL, num_key_value_heads=2, use_cache=False)
    return Network(transformers.LlamaModel(config), masked, TEXT, after("max", 32, "norm"))


@network("transformers")
def t5() -> Network:
    import transformers

    config = transformers.T5Config(
        vocab_size=60, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, use_cache=False
    )

    def inputs(batch: int, length: int) -> dict[str, Any]:
        return {**masked(batch, length), "decoder_input_ids": ids(batch, length + 2)}

    dynamic = {**TEXT, "decoder_input_ids": {0: "batch", 1: "target"}}
    return Network(
        transformers.T5ForConditionalGeneration(config), inputs, dynamic, after("mean", 32, "encoder.final_layer_norm")
    )


@network("transformers")
def bart() -> Network:
    import transformers

    config = transformers.BartConfig(
        vocab_size=60,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=37,
        decoder_ffn_dim=37,
        max_position_embeddings=40,
        use_cache=False,
    )

    def inputs(batch: int, length: int) -> dict[str, Any]:
        return {**masked(batch, length), "decoder_input_ids": ids(batch, length + 2)}

    dynamic = {**TEXT, "decoder_input_ids": {0: "batch", 1: "target"}}
    return Network(transformers.BartModel(config), inputs, dynamic, after("mean", 32, "encoder.layernorm_embedding"))


@network("transformers")
def clip() -> Network:
    import transformers

    config = transformers.CLIPConfig(
        text_config={**SMALL, "eos_token_id": 2},
        vision_config={**SMALL, "image_size": 16, "patch_size": 8},
        projection_dim=16,
    )

    def inputs(texts: int, images: int) -> dict[str, Any]:
        return {
            "input_ids": ids(texts, 6),
            "pixel_values": draw(images, 3, 16, 16),
            "attention_mask": torch.ones(texts, 6, dtype=torch.int64),
        }

    dynamic = {"input_ids": {0: "texts"}, "attention_mask": {0: "texts"}, "pixel_values": {0: "images"}}
    return Network(
        transformers.CLIPModel(config),
        inputs,
        dynamic,
        after("mean", 32, "final_layer_norm"),
        ((2, 2), (3, 1), (1, 4)),
    )


@network("transformers")
def clip_text() -> Network:
    import transformers

    config = transformers.CLIPTextConfig(**SMALL, eos_token_id=2)
    return Network(transformers.CLIPTextModel(config), masked, TEXT, after("mean", 32, "final_layer_norm"))


def image(config: str, model: str, merge: Callable[[nn.Module], str], **options: Any) -> Network:
    """Return an image encoder of transformers."""
    import transformers

    made = getattr(transformers, model)(getattr(transformers, config)(**options))
    return Network(made, lambda batch: {"pixel_values": draw(batch, 3, 32, 32)}, "batch", merge, ((2,), (3,), (1,)))


VISION = {key: SMALL[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")}


@network("transformers")
def vit() -> Network:
    return image("ViTConfig", "ViTModel", after("median", 32, "layernorm"), **VISION, image_size=32, patch_size=8)


@network("transformers")
def swin() -> Network:
    return image(
        "SwinConfig",
        "SwinModel",
        after("mean", 32, "layernorm"),
        image_size=32,
        patch_size=2,
        embed_dim=16,
        depths=[1, 1],
        num_heads=[2, 4],
        window_size=4,
    )


@network("transformers")
def convnext() -> Network:
    return image(
        "ConvNextConfig",
        "ConvNextModel",
        after("mean", 16, "layernorm"),
        hidden_sizes=[8, 12, 16, 16],
        depths=[1, 1, 1, 1],
    )


@network("transformers")
def segformer() -> Network:
    return image(
        "SegformerConfig",
        "SegformerForSemanticSegmentation",
        channels("decode_head.batch_norm"),
        hidden_sizes=[16, 16, 16, 16],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 2, 2],
        decoder_hidden_size=16,
    )


@network("transformers")
def lxmert() -> Network:
    import transformers

    config = transformers.LxmertConfig(
        vocab_size=60,
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=37,
        l_layers=1,
        x_layers=1,
        r_layers=1,
        visual_feat_dim=12,
        max_position_embeddings=40,
    )

    def inputs(batch: int, length: int) -> dict[str, Any]:
        return {**masked(batch, length), "visual_feats": draw(batch, 4, 12), "visual_pos": draw(batch, 4, 4)}

    def merge(module: nn.Module) -> str:
        part: Any = first(module, "LxmertVisualFeatureEncoder")
        part.merge = FusionLayer(fusion_onnx.create("mean", dims=[32, 32]))

        def forward(self: Any, visual_feats: torch.Tensor, visual_pos: torch.Tensor) -> Any:
            x = self.visn_layer_norm(self.visn_fc(visual_feats))
            y = self.box_layer_norm(self.box_fc(visual_pos))
            return self.dropout(self.merge([x, y]))

        part.forward = types.MethodType(forward, part)
        return "features and boxes, (x + y) / 2: `mean`"

    dynamic = {**TEXT, "visual_feats": {0: "batch"}, "visual_pos": {0: "batch"}}
    return Network(transformers.LxmertModel(config), inputs, dynamic, merge)


@network("transformers")
def wav2vec2() -> Network:
    import transformers

    config = transformers.Wav2Vec2Config(
        **VISION,
        vocab_size=30,
        conv_dim=(16, 16),
        conv_stride=(4, 4),
        conv_kernel=(8, 8),
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4,
        num_feat_extract_layers=2,
        apply_spec_augment=False,
    )
    return Network(
        transformers.Wav2Vec2Model(config),
        lambda batch: {"input_values": draw(batch, 400)},
        "batch",
        after("mean", 32, "encoder.layer_norm"),
        ((2,), (3,), (1,)),
    )


@network("transformers")
def whisper() -> Network:
    import transformers

    config = transformers.WhisperConfig(
        vocab_size=60,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=37,
        decoder_ffn_dim=37,
        num_mel_bins=8,
        max_source_positions=20,
        max_target_positions=40,
        use_cache=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )

    def inputs(batch: int, length: int) -> dict[str, Any]:
        return {"input_features": draw(batch, 8, 40), "decoder_input_ids": ids(batch, length)}

    dynamic = {"input_features": {0: "batch"}, "decoder_input_ids": {0: "batch", 1: "length"}}
    return Network(transformers.WhisperModel(config), inputs, dynamic, after("mean", 32, "encoder.layer_norm"))


@network("transformers")
def vilt() -> Network:
    import transformers

    config = transformers.ViltConfig(**{**SMALL, "image_size": 32, "patch_size": 8, "max_image_length": -1})

    def inputs(batch: int, length: int) -> dict[str, Any]:
        return {**masked(batch, length), "pixel_values": draw(batch, 3, 32, 32)}

    dynamic = {**TEXT, "pixel_values": {0: "batch"}}
    return Network(transformers.ViltModel(config), inputs, dynamic, after("mean", 32, "layernorm"))


@network("transformers")
def time_series_transformer() -> Network:
    import transformers

    config = transformers.PatchTSTConfig(
        num_input_channels=3,
        context_length=24,
        patch_length=4,
        patch_stride=4,
        d_model=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        ffn_dim=20,
        prediction_length=4,
    )
    return Network(
        transformers.PatchTSTForPrediction(config),
        lambda batch: {"past_values": draw(batch, 24, 3)},
        "batch",
        _before_the_head,
        ((2,), (3,), (1,)),
    )


def _before_the_head(module: nn.Module) -> str:
    part: Any = first(module, "PatchTSTPredictionHead")
    inner = part.forward
    part.merge = FusionLayer(fusion_onnx.create("mean", dims=[16, 16]))

    def forward(self: Any, embedding: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return inner(self.merge([embedding, embedding.tanh()]), *args, **kwargs)

    part.forward = types.MethodType(forward, part)
    return "an embedding and its tanh before the head: `mean`"


# --- graphs: nodes and edges are both dynamic -------------------------------------------------------------------------


def graph(layer: str, jump: str, strategy: str, **options: Any) -> Network:
    """Return three layers of torch-geometric and a jumping-knowledge merge of what they give."""
    from torch_geometric import nn as geometric

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            widths = [(6, 8), (8, 8), (8, 8)]
            if layer == "GINConv":
                self.layers = nn.ModuleList([geometric.GINConv(nn.Linear(a, b)) for a, b in widths])
            else:
                self.layers = nn.ModuleList([getattr(geometric, layer)(a, b, **options) for a, b in widths])
            self.jump = geometric.JumpingKnowledge(jump)

        def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
            given = []
            for each in self.layers:
                x = each(x, edges).relu()
                given.append(x)
            return self.jump(given)

    def inputs(nodes: int, edges: int) -> dict[str, Any]:
        ends = torch.randint(0, nodes, (2, edges), generator=torch.Generator().manual_seed(edges))
        return {"x": draw(nodes, 6), "edges": ends}

    def merge(module: nn.Module) -> str:
        module.jump = FusionLayer(fusion_onnx.create(strategy, dims=[8, 8, 8]))
        return f"JumpingKnowledge({jump!r}): `{strategy}`"

    return Network(Graph(), inputs, {"x": {0: "nodes"}, "edges": {1: "edges"}}, merge, ((6, 9), (9, 21), (4, 7)))


@network("torch-geometric")
def graph_conv_jumping_knowledge() -> Network:
    return graph("GraphConv", "max", "max")


@network("torch-geometric")
def gcn_jumping_knowledge() -> Network:
    return graph("GCNConv", "cat", "concatenation")


@network("torch-geometric")
def sage_jumping_knowledge() -> Network:
    return graph("SAGEConv", "max", "max")


@network("torch-geometric")
def gin_jumping_knowledge() -> Network:
    return graph("GINConv", "cat", "concatenation")


@network("torch-geometric")
def gat_jumping_knowledge() -> Network:
    return graph("GATConv", "max", "max")


# --- recommenders -----------------------------------------------------------------------------------------------------


def recommender(name: str, merge: Callable[[nn.Module], str], **options: Any) -> Network:
    """Return a model of deepctr-torch over four sparse and three dense features."""
    import deepctr_torch.models as models
    from deepctr_torch.inputs import DenseFeat, SparseFeat

    features = [SparseFeat(f"s{i}", 20, embedding_dim=4) for i in range(4)] + [DenseFeat(f"d{i}", 1) for i in range(3)]
    kind = getattr(models, name)
    made = kind(features, features, dnn_hidden_units=(16, 8), device="cpu", **options)

    def inputs(batch: int) -> dict[str, Any]:
        sparse = torch.randint(0, 20, (batch, 4), generator=torch.Generator().manual_seed(batch)).float()
        return {"X": torch.cat([sparse, draw(batch, 3)], 1)}

    return Network(made, inputs, "batch", merge, ((4,), (6,), (1,)))


def linear_and_output(module: nn.Module) -> str:
    """Merge what the linear part gives with itself through the output: sum of the linear logit and its half."""
    part: Any = module.linear_model
    inner = part.forward
    part.merge = FusionLayer(fusion_onnx.create("weighted_sum", dims=[1, 1], weights=[0.5, 0.5]))

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        y = inner(*args, **kwargs)
        return self.merge([y, y.tanh()])

    part.forward = types.MethodType(forward, part)
    return "the linear logit and its tanh: `weighted_sum`"


@network("deepctr-torch")
def deepfm() -> Network:
    return recommender("DeepFM", linear_and_output)


@network("deepctr-torch")
def xdeepfm() -> Network:
    return recommender("xDeepFM", linear_and_output, cin_layer_size=(8, 8))


@network("deepctr-torch")
def dcn() -> Network:
    return recommender("DCN", linear_and_output)


@network("deepctr-torch")
def autoint() -> Network:
    return recommender("AutoInt", linear_and_output)


@network("deepctr-torch")
def wide_and_deep() -> Network:
    return recommender("WDL", linear_and_output)


@network("deepctr-torch")
def nfm() -> Network:
    return recommender("NFM", linear_and_output)


@network("deepctr-torch")
def fibinet() -> Network:
    return recommender("FiBiNET", linear_and_output)


# --- images -----------------------------------------------------------------------------------------------------------


def channels(name: str, strategy: str = "sum") -> Callable[[nn.Module], str]:
    """Merge a part's output (N, C, H, W) with its relu along the channels, behind movedim."""

    def merge(module: nn.Module) -> str:
        part: Any = next(part for path, part in module.named_modules() if path.endswith(name))
        inner = part.forward
        part.merge = FusionLayer(fusion_onnx.create(strategy))

        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            y = inner(*args, **kwargs).movedim(1, -1)
            return self.merge([y, y.relu()]).movedim(-1, 1)

        part.forward = types.MethodType(forward, part)
        return f"{name} and its relu: `{strategy}`"

    return merge


def concatenated(name: str) -> Callable[[nn.Module], str]:
    """Replace GoogLeNet's concatenation of branches."""

    def merge(module: nn.Module) -> str:
        part: Any = next(part for path, part in module.named_modules() if path.endswith(name))
        part.merge = FusionLayer(fusion_onnx.create("concatenation"))

        def forward(self: Any, x: torch.Tensor) -> Any:
            return self.merge([y.movedim(1, -1) for y in self._forward(x)]).movedim(-1, 1)

        part.forward = types.MethodType(forward, part)
        return f"{name}'s branches: `concatenation`"

    return merge


def classifier(name: str, merge: Callable[[nn.Module], str], side: int = 64, **options: Any) -> Network:
    """Return a classifier of torchvision."""
    import torchvision

    made = getattr(torchvision.models, name)(weights=None, **options)
    return Network(made, lambda batch: {"x": draw(batch, 3, side, side)}, "batch", merge, ((2,), (3,), (1,)))


@network("torchvision")
def googlenet() -> Network:
    return classifier("googlenet", concatenated("inception3a"), aux_logits=False, init_weights=False)


@network("torchvision")
def resnet18() -> Network:
    return classifier("resnet18", channels("layer2.0.bn2"))


@network("torchvision")
def densenet121() -> Network:
    return classifier("densenet121", channels("features.norm0"))


@network("torchvision")
def mobilenet_v3_small() -> Network:
    return classifier("mobilenet_v3_small", channels("features.1"))


@network("torchvision")
def feature_pyramid() -> Network:
    from torchvision.ops import FeaturePyramidNetwork

    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pyramid = FeaturePyramidNetwork([8, 16, 32], 8)

        def forward(self, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> Any:
            return list(self.pyramid({"a": a, "b": b, "c": c}).values())

    def inputs(batch: int) -> dict[str, Any]:
        return {"a": draw(batch, 8, 13, 11), "b": draw(batch, 16, 7, 6), "c": draw(batch, 32, 4, 3)}

    return Network(Pyramid(), inputs, "batch", channels("pyramid.inner_blocks.0"), ((2,), (3,), (1,)))


def timm_model(name: str, merge: Callable[[nn.Module], str], side: int, **options: Any) -> Network:
    """Return a model of timm."""
    import timm

    made = timm.create_model(name, pretrained=False, **options)
    return Network(made, lambda batch: {"x": draw(batch, 3, side, side)}, "batch", merge, ((2,), (3,), (1,)))


@network("timm")
def crossvit() -> Network:
    return timm_model("crossvit_9_240", after("mean", 128, "norm.0"), 240)


@network("timm")
def efficientnet_b0() -> Network:
    return timm_model("efficientnet_b0", channels("bn1"), 64)


@network("timm")
def mixer() -> Network:
    return timm_model("mixer_s32_224", after("mean", 512, "norm"), 224)


@network("segmentation-models-pytorch")
def unet() -> Network:
    import segmentation_models_pytorch as smp

    made = smp.Unet("resnet18", encoder_weights=None)
    return Network(
        made, lambda batch: {"x": draw(batch, 3, 64, 64)}, "batch", channels("encoder.bn1"), ((2,), (3,), (1,))
    )


@network("segmentation-models-pytorch")
def fpn() -> Network:
    import segmentation_models_pytorch as smp

    made = smp.FPN("resnet18", encoder_weights=None)
    return Network(
        made, lambda batch: {"x": draw(batch, 3, 64, 64)}, "batch", channels("encoder.bn1"), ((2,), (3,), (1,))
    )


@network("effdet")
def efficientdet_d0() -> Network:
    import effdet

    config = effdet.get_efficientdet_config("tf_efficientdet_d0")
    config.image_size = [128, 128]
    made = effdet.EfficientDet(config, pretrained_backbone=False)
    return Network(
        made, lambda batch: {"x": draw(batch, 3, 128, 128)}, "batch", channels("backbone.bn1"), ((2,), (3,), (1,))
    )


# --- trying them ------------------------------------------------------------------------------------------------------


def outputs(value: Any) -> list[torch.Tensor]:
    """Return the tensors that a module gives."""
    from torch.utils import _pytree as pytree

    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def differing(eager: list[torch.Tensor], actual: list[Any]) -> str:
    """Say how outputs differ from eager's; nothing where they do not."""
    import numpy as np

    if len(eager) != len(actual):
        return f"{len(actual)} outputs, eager gives {len(eager)}"
    for i, (tensor, y) in enumerate(zip(eager, actual, strict=True)):
        expected = tensor.detach().numpy()
        if expected.shape != y.shape or expected.dtype != y.dtype:
            return f"output {i}: {y.dtype}{y.shape}, eager {expected.dtype}{expected.shape}"
        if expected.dtype.kind != "f":
            if not np.array_equal(expected, y):
                return f"output {i}: other whole numbers"
            continue
        finite = np.isfinite(expected)
        if not np.array_equal(finite, np.isfinite(y)):
            return f"output {i}: other places that are not finite"
        off = np.abs(expected[finite] - y[finite]).max(initial=0)
        if off > TOLERANCE * np.abs(expected[finite]).max(initial=1e-30):
            return f"output {i}: off by {off:.3g}"
    return ""


def tried(subject: Network) -> dict[str, str]:
    """Export, run at each size in bare ONNX Runtime, compare, verify."""
    import onnxruntime

    module, began = subject.module.eval(), time.monotonic()
    example = subject.inputs(*subject.sizes[0])
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            model = fusion_onnx.export(module, example, dynamic=subject.dynamic, verify=False).model
    except Exception as error:
        return {"file": f"refused: {type(error).__name__}: {str(error)[:400]}"}
    exported = time.monotonic() - began
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [info.name for info in session.get_inputs()]
    result = "right"
    for size in subject.sizes:
        inputs = subject.inputs(*size)
        with torch.no_grad():
            eager = outputs(module(**inputs))
        wrong = differing(eager, session.run(None, {name: inputs[name].numpy() for name in names}))
        if wrong:
            result = f"wrong at {size}: {wrong}"
            break
    began = time.monotonic()
    try:
        verdict = fusion_onnx.verify(module, model, example)
        outcome = "passed" if verdict.passed else f"failed: {verdict.reasons[0][:300]}"
    except Exception as error:
        outcome = f"error: {type(error).__name__}: {str(error)[:300]}"
    seconds = f"{exported:.0f} + {time.monotonic() - began:.0f}"
    return {"file": result, "verdict": outcome, "seconds": seconds, "operators": str(len(model.graph.node))}


def work(name: str) -> dict[str, Any]:
    """Try a network as it is, and with a fusion."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    _, make = NETWORKS[name]
    torch.manual_seed(0)
    results: dict[str, Any] = {"plain": tried(make())}
    torch.manual_seed(0)
    fused = make()
    try:
        what = fused.merge(fused.module)
    except Exception as error:
        return {**results, "fused": {"file": f"no merge: {type(error).__name__}: {error}"}}
    return {**results, "merge": what, "fused": tried(fused)}


def page(data: dict[str, Any]) -> str:
    """Write the table as a page."""
    lines = [
        "# Public networks",
        "",
        "Networks of public libraries, with drawn weights and small sizes, exported by `fusion_onnx.export` as they "
        "are, and with a fusion in place of one merge or put in. Each file ran in bare ONNX Runtime at the example's "
        "and at two other sizes, was compared with eager execution by the script itself, and verified. "
        "Seconds: export + verification.",
        "",
        "| network | of | as it is | verdict | s | merge | with a fusion | verdict | s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, record in sorted(data.items(), key=lambda item: (item[1]["package"], item[0])):
        plain, fused = record["plain"], record.get("fused", {})
        cells = [
            f"`{name}`",
            record["package"],
            plain.get("file", ""),
            plain.get("verdict", ""),
            plain.get("seconds", ""),
            record.get("merge", ""),
            fused.get("file", ""),
            fused.get("verdict", ""),
            fused.get("seconds", ""),
        ]
        lines.append("| " + " | ".join(" ".join(str(cell).split()).replace("|", "\\|") for cell in cells) + " |")
    versions = sorted({f"{k} {v}" for record in data.values() for k, v in record["versions"].items()})
    return "\n".join([*lines, "", f"Versions: {', '.join(versions)}.", ""])


def versions(package: str) -> dict[str, str]:
    """Return the versions of what a network of a package was tried with."""
    result = {}
    for name in (*PACKAGES, package):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            result[name] = importlib.metadata.version(name).split("+")[0]
    return result


def main() -> None:
    """Try what is asked for and not stored, and write results and page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--names", nargs="*", default=[], choices=list(NETWORKS), help="those to try")
    parser.add_argument("--again", action="store_true", help="try those too that the results have already")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        print(json.dumps(work(options.work)))
        return
    data = json.loads(options.output.read_text()) if options.output.exists() else {}
    for name, (package, _) in NETWORKS.items():
        installed = package in versions(package)
        if (options.names and name not in options.names) or not installed or (name in data and not options.again):
            continue
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.public_networks", "--work", name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
            results = json.loads(done.stdout.splitlines()[-1])
        except subprocess.TimeoutExpired:
            results = {"plain": {"file": f"took more than {SECONDS} s"}}
        except (IndexError, ValueError):
            results = {"plain": {"file": f"did not run: {done.stderr.strip().splitlines()[-1:]}"}}
        data[name] = {"package": package, "versions": versions(package), **results}
        print(name, data[name]["plain"], data[name].get("fused"), flush=True)
        options.output.write_text(json.dumps(dict(sorted(data.items())), indent=1) + "\n")
    if options.output == RESULTS:
        PAGE.write_text(page(data))


if __name__ == "__main__":
    main()
