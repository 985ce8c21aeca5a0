"""Networks of monai, transformers and diffusers, each from a small configuration."""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.sweep_networks import BATCH
from benchmarks.sweep_trial import Network

Shape = tuple[int, ...]
# A function of the package that builds a network, and the shapes of samples to try as inputs.
Recipe = tuple[Callable[[Any], nn.Module], Shape]
IMAGE, GRAY, VOLUME, SOUND = (3, 64, 64), (1, 64, 64), (1, 32, 32, 32), (1, 16000)
WAVE = (16000,)


def _down_up(**options: Any) -> dict[str, Any]:
    """Three stages of two-dimensional networks of monai."""
    return {"channels": (8, 16, 32), "strides": (2, 2), **options}


PLANE = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
SPACE = {**PLANE, "spatial_dims": 3}
CODING = {"channels": (8, 16, 32), "strides": (2, 2, 2)}
IN_PLANE = {"in_shape": (1, 64, 64), "channels": (8, 16), "strides": (2, 2)}
DIFFUSION: dict[str, Any] = {
    **PLANE,
    "channels": (16, 32),
    "attention_levels": (False, True),
    "num_res_blocks": 1,
    "norm_num_groups": 8,
    "num_head_channels": 8,
}
KERNELS = {"kernel_size": (3, 3, 3), "strides": (1, 2, 2), "upsample_kernel_size": (2, 2)}

MONAI: dict[str, Recipe] = {
    "UNet": (lambda m: m.UNet(**PLANE, **_down_up(num_res_units=2)), GRAY),
    "UNet 3-D": (lambda m: m.UNet(**SPACE, **_down_up()), VOLUME),
    "BasicUNet": (lambda m: m.BasicUNet(**PLANE, features=(8, 8, 16, 16, 32, 8)), GRAY),
    "BasicUNet resized": (
        lambda m: m.BasicUNet(**PLANE, features=(8, 8, 16, 16, 32, 8), upsample="nontrainable"),
        GRAY,
    ),
    "BasicUNetPlusPlus": (
        lambda m: m.BasicUNetPlusPlus(**PLANE, features=(8, 8, 16, 16, 32, 8)),
        GRAY,
    ),
    "AttentionUnet": (lambda m: m.AttentionUnet(**PLANE, **_down_up()), GRAY),
    "AutoEncoder": (lambda m: m.AutoEncoder(**PLANE, **CODING), GRAY),
    "VarAutoEncoder": (
        lambda m: m.VarAutoEncoder(2, GRAY, out_channels=1, latent_size=8, **CODING),
        GRAY,
    ),
    "Regressor": (lambda m: m.Regressor(out_shape=(2,), **IN_PLANE), GRAY),
    "Classifier": (lambda m: m.Classifier(classes=3, **IN_PLANE), GRAY),
    "Discriminator": (lambda m: m.Discriminator(**IN_PLANE), GRAY),
    "Critic": (lambda m: m.Critic(**IN_PLANE), GRAY),
    "Generator": (
        lambda m: m.Generator((8,), (8, 8, 8), channels=(16, 8, 1), strides=(2, 2, 1)),
        (8,),
    ),
    "DenseNet": (lambda m: m.DenseNet(**PLANE, block_config=(2, 2, 2)), GRAY),
    "DenseNet 3-D": (lambda m: m.DenseNet(**SPACE, block_config=(2, 2)), VOLUME),
    "DiNTS": (
        lambda m: m.DiNTS(m.TopologyInstance(spatial_dims=2, device="cpu"), 1, 2, spatial_dims=2),
        GRAY,
    ),
    "DynUNet": (lambda m: m.DynUNet(**PLANE, **KERNELS, filters=(8, 16, 32)), GRAY),
    "DynUNet 3-D": (
        lambda m: m.DynUNet(**SPACE, **KERNELS, filters=(8, 16, 32), res_block=True),
        VOLUME,
    ),
    "EfficientNetBN": (lambda m: m.EfficientNetBN("efficientnet-b0", pretrained=False), IMAGE),
    "FlexibleUNet": (lambda m: m.FlexibleUNet(3, 2, "efficientnet-b0"), IMAGE),
    "FlexibleUNet resnet": (lambda m: m.FlexibleUNet(3, 2, "resnet18"), IMAGE),
    "GlobalNet": (lambda m: m.GlobalNet((64, 64), 2, 1, 8, 2), GRAY),
    "LocalNet": (lambda m: m.LocalNet(2, 1, 8, (0, 1, 2)), GRAY),
    "RegUNet": (lambda m: m.RegUNet(2, 1, 8, 2), GRAY),
    "HighResNet": (lambda m: m.HighResNet(**PLANE), GRAY),
    "MedNeXt": (lambda m: m.MedNeXt(**PLANE, init_filters=8), GRAY),
    "MILModel": (
        lambda m: m.MILModel(2, pretrained=False, backbone="resnet18"),
        (4, 3, 64, 64),
    ),
    "MultiScalePatchDiscriminator": (
        lambda m: m.MultiScalePatchDiscriminator(2, 2, 2, 8, 1, minimum_size_im=64),
        GRAY,
    ),
    "PatchDiscriminator": (lambda m: m.PatchDiscriminator(2, 8, 1), GRAY),
    "Quicknat": (lambda m: m.Quicknat(num_channels=1, num_filters=16), GRAY),
    "ResNet": (lambda m: m.resnet10(spatial_dims=2, n_input_channels=1, num_classes=3), GRAY),
    "ResNet 3-D": (lambda m: m.resnet10(n_input_channels=1, num_classes=3), VOLUME),
    "SENet": (lambda m: m.SEResNet50(spatial_dims=2, in_channels=3), IMAGE),
    "SegResNet": (lambda m: m.SegResNet(**PLANE), GRAY),
    "SegResNetDS": (lambda m: m.SegResNetDS(**PLANE, init_filters=8), GRAY),
    "SegResNetVAE": (lambda m: m.SegResNetVAE((64, 64), **PLANE), GRAY),
    "SwinUNETR": (lambda m: m.SwinUNETR(1, 2, spatial_dims=2, feature_size=12), GRAY),
    "UNETR": (
        lambda m: m.UNETR(
            1, 2, (64, 64), feature_size=8, hidden_size=48, mlp_dim=96, num_heads=4, spatial_dims=2
        ),
        GRAY,
    ),
    "ViT": (lambda m: m.ViT(1, (64, 64), 16, 48, 96, 2, 4, spatial_dims=2), GRAY),
    "VNet": (lambda m: m.VNet(spatial_dims=2), GRAY),
    "VNet 3-D": (lambda m: m.VNet(), VOLUME),
    "VoxelMorphUNet": (lambda m: m.VoxelMorphUNet(2, 2, 8, (8, 16, 16, 16), (8, 8)), (2, 64, 64)),
    "VQVAE": (
        lambda m: m.VQVAE(
            2, 1, 1, (16, 16), 1, (16, 16), ((2, 4, 1, 1),) * 2, ((2, 4, 1, 1, 0),) * 2, 8, 8
        ),
        GRAY,
    ),
    "AutoencoderKL": (
        lambda m: m.AutoencoderKL(
            2, 1, 1, channels=(8, 16), num_res_blocks=(1, 1), attention_levels=(False, False),
            latent_channels=4, norm_num_groups=8,
        ),
        GRAY,
    ),
    "DiffusionModelUNet": (lambda m: _WithTime(m.DiffusionModelUNet(**DIFFUSION)), GRAY),
    "DAF3D": (lambda m: m.DAF3D(1, 2), VOLUME),
}  # fmt: skip


class _WithTime(nn.Module):
    """A denoiser at time step 5, as function of the image alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model(x, torch.full((x.shape[0],), 5))


def _model(name: str, config: str, **options: Any) -> Callable[[Any], nn.Module]:
    """A network of transformers from a configuration of its package."""
    return lambda m: getattr(m, name)(getattr(m, config)(**options))


SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"intermediate_size": 96}
SQUARE = {**SMALL, "image_size": 64, "patch_size": 16}
SHALLOW = {"depths": [1, 1, 1, 1]}
STAGES = {"hidden_sizes": [16, 32, 48, 64], **SHALLOW}
ENCODING = {**SMALL, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
CLASSES = {"num_labels": 3}

TRANSFORMERS: dict[str, Recipe] = {
    "ASTModel": (
        _model("ASTModel", "ASTConfig", **SMALL, max_length=128, num_mel_bins=32),
        (128, 32),
    ),
    "BeitModel": (_model("BeitModel", "BeitConfig", **SQUARE), IMAGE),
    "BitModel": (
        _model("BitModel", "BitConfig", **SHALLOW),
        IMAGE,
    ),
    "CLIPVisionModel": (_model("CLIPVisionModel", "CLIPVisionConfig", **SQUARE), IMAGE),
    "ConvNextModel": (_model("ConvNextModel", "ConvNextConfig", **STAGES), IMAGE),
    "ConvNextV2Model": (_model("ConvNextV2Model", "ConvNextV2Config", **STAGES), IMAGE),
    "CvtModel": (
        _model("CvtModel", "CvtConfig", embed_dim=[16, 32, 48], num_heads=[1, 2, 3]),
        IMAGE,
    ),
    "DacModel": (
        _model(
            "DacModel", "DacConfig", encoder_hidden_size=8, decoder_hidden_size=64, codebook_dim=8,
            downsampling_ratios=[2, 4], upsampling_ratios=[4, 2], n_codebooks=2,
        ),
        (1, 4096),
    ),
    "Data2VecAudioModel": (_model("Data2VecAudioModel", "Data2VecAudioConfig", **ENCODING), WAVE),
    "DepthAnythingForDepthEstimation": (
        _model("DepthAnythingForDepthEstimation", "DepthAnythingConfig"),
        (3, 56, 56),
    ),
    "DetrModel": (
        _model("DetrModel", "DetrConfig", d_model=32, encoder_layers=1, decoder_layers=1),
        IMAGE,
    ),
    "Dinov2Model": (_model("Dinov2Model", "Dinov2Config", **SQUARE), IMAGE),
    "DPTForDepthEstimation": (
        _model(
            "DPTForDepthEstimation", "DPTConfig", **{**SQUARE, "num_hidden_layers": 4},
            backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[16, 16, 32, 32], fusion_hidden_size=16,
        ),
        IMAGE,
    ),
    "EfficientNetModel": (
        _model("EfficientNetModel", "EfficientNetConfig", width_coefficient=0.5, hidden_dim=640),
        IMAGE,
    ),
    "EncodecModel": (
        _model(
            "EncodecModel", "EncodecConfig", num_filters=4, hidden_size=16, codebook_size=16,
            upsampling_ratios=[4, 2],
        ),
        (1, 4096),
    ),
    "FocalNetModel": (
        _model("FocalNetModel", "FocalNetConfig", embed_dim=16, depths=[1, 1, 1, 1], image_size=64),
        IMAGE,
    ),
    "GLPNForDepthEstimation": (
        _model("GLPNForDepthEstimation", "GLPNConfig", **SHALLOW),
        IMAGE,
    ),
    "HGNetV2ForImageClassification": (
        _model("HGNetV2ForImageClassification", "HGNetV2Config", **CLASSES),
        IMAGE,
    ),
    "HubertModel": (_model("HubertModel", "HubertConfig", **ENCODING), WAVE),
    "LevitModel": (
        _model("LevitModel", "LevitConfig", image_size=64, depths=[1, 1, 1]),
        IMAGE,
    ),
    "MobileNetV1Model": (_model("MobileNetV1Model", "MobileNetV1Config"), IMAGE),
    "MobileNetV2Model": (_model("MobileNetV2Model", "MobileNetV2Config"), IMAGE),
    "MobileNetV2ForSemanticSegmentation": (
        _model("MobileNetV2ForSemanticSegmentation", "MobileNetV2Config", **CLASSES),
        IMAGE,
    ),
    "MobileViTModel": (_model("MobileViTModel", "MobileViTConfig", image_size=64), IMAGE),
    "MobileViTV2Model": (_model("MobileViTV2Model", "MobileViTV2Config", image_size=64), IMAGE),
    "PoolFormerModel": (
        _model("PoolFormerModel", "PoolFormerConfig", **STAGES),
        IMAGE,
    ),
    "PvtModel": (_model("PvtModel", "PvtConfig", image_size=64, **SHALLOW), IMAGE),
    "PvtV2Model": (_model("PvtV2Model", "PvtV2Config", image_size=64, **SHALLOW), IMAGE),
    "RegNetModel": (
        _model("RegNetModel", "RegNetConfig", **SHALLOW),
        IMAGE,
    ),
    "ResNetModel": (
        _model("ResNetModel", "ResNetConfig", **SHALLOW),
        IMAGE,
    ),
    "ResNetForImageClassification": (
        _model("ResNetForImageClassification", "ResNetConfig", **SHALLOW),
        IMAGE,
    ),
    "SegformerModel": (_model("SegformerModel", "SegformerConfig", **SHALLOW), IMAGE),
    "SegformerForSemanticSegmentation": (
        _model("SegformerForSemanticSegmentation", "SegformerConfig", **SHALLOW),
        IMAGE,
    ),
    "SEWModel": (_model("SEWModel", "SEWConfig", **ENCODING), WAVE),
    "SuperPointForKeypointDetection": (
        _model("SuperPointForKeypointDetection", "SuperPointConfig"),
        IMAGE,
    ),
    "SwiftFormerModel": (_model("SwiftFormerModel", "SwiftFormerConfig", image_size=64), IMAGE),
    "Swin2SRModel": (
        _model("Swin2SRModel", "Swin2SRConfig", image_size=64, embed_dim=24, depths=[1]),
        IMAGE,
    ),
    "SwinModel": (
        _model(
            "SwinModel", "SwinConfig", image_size=64, embed_dim=24, depths=[1, 1], num_heads=[2, 2],
            window_size=4,
        ),
        IMAGE,
    ),
    "TextNetModel": (_model("TextNetModel", "TextNetConfig"), IMAGE),
    "TimesformerModel": (
        _model("TimesformerModel", "TimesformerConfig", **SQUARE, num_frames=4),
        (4, 3, 64, 64),
    ),
    "UniSpeechModel": (_model("UniSpeechModel", "UniSpeechConfig", **ENCODING), WAVE),
    "UperNetForSemanticSegmentation": (
        lambda m: m.UperNetForSemanticSegmentation(
            m.UperNetConfig(
                backbone_config=m.ConvNextConfig(
                    **STAGES, out_features=["stage1", "stage2", "stage3", "stage4"]
                ),
                hidden_size=32,
                auxiliary_in_channels=48,
            )
        ),
        IMAGE,
    ),
    "ViTModel": (_model("ViTModel", "ViTConfig", **SQUARE), IMAGE),
    "UnivNetModel": (_model("UnivNetModel", "UnivNetConfig", model_hidden_channels=8), (64, 100)),
    "Wav2Vec2Model": (_model("Wav2Vec2Model", "Wav2Vec2Config", **ENCODING), WAVE),
    "Wav2Vec2 feature encoder": (
        lambda m: m.Wav2Vec2Model(m.Wav2Vec2Config(**ENCODING)).feature_extractor,
        WAVE,
    ),
    "WavLMModel": (_model("WavLMModel", "WavLMConfig", **ENCODING), WAVE),
    "WhisperEncoder": (
        lambda m: m.WhisperModel(
            m.WhisperConfig(
                d_model=48, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
                decoder_attention_heads=4, encoder_ffn_dim=96, decoder_ffn_dim=96,
                max_source_positions=100,
            )
        ).encoder,
        (80, 200),
    ),
    "YolosModel": (_model("YolosModel", "YolosConfig", **SMALL, image_size=[64, 64]), IMAGE),
}  # fmt: skip

GROUPS = {"norm_num_groups": 8}
TWO = {"block_out_channels": (16, 32), "layers_per_block": 1}
CROSS = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
LATENT = (4, 32, 32)

DIFFUSERS: dict[str, Recipe] = {
    "UNet2DModel": (
        lambda m: _WithTime(
            m.UNet2DModel(
                sample_size=32, in_channels=3, out_channels=3, **TWO, **GROUPS,
                down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            )
        ),
        (3, 32, 32),
    ),
    "UNet2DConditionModel": (
        lambda m: _Conditioned(
            m.UNet2DConditionModel(
                sample_size=32, **TWO, **GROUPS, cross_attention_dim=16, attention_head_dim=4,
                down_block_types=CROSS[0], up_block_types=CROSS[1],
            )
        ),
        LATENT,
    ),
    "UNet1DModel": (
        lambda m: _WithTime(
            m.UNet1DModel(
                sample_size=256, in_channels=2, out_channels=2, block_out_channels=(16, 32),
                down_block_types=("DownBlock1DNoSkip", "DownBlock1D"),
                up_block_types=("UpBlock1D", "UpBlock1DNoSkip"), extra_in_channels=32,
            )
        ),
        (2, 256),
    ),
    "UNet3DConditionModel": (
        lambda m: _Conditioned(
            m.UNet3DConditionModel(
                sample_size=16, **TWO, **GROUPS, cross_attention_dim=16, attention_head_dim=8,
                down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
                up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
            )
        ),
        (4, 2, 16, 16),
    ),
    "AutoencoderKL": (
        lambda m: m.AutoencoderKL(
            block_out_channels=(16, 32), layers_per_block=1, latent_channels=4, **GROUPS,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        ),
        IMAGE,
    ),
    "AutoencoderKL encoder": (
        lambda m: m.AutoencoderKL(
            block_out_channels=(16, 32), layers_per_block=1, latent_channels=4, **GROUPS,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        ).encoder,
        IMAGE,
    ),
    "AutoencoderTiny encoder": (
        lambda m: m.AutoencoderTiny(
            encoder_block_out_channels=(16, 16), decoder_block_out_channels=(16, 16),
            num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
        ).encoder,  # whole, it rounds the code, which no gradient passes
        IMAGE,
    ),
    "VQModel": (
        lambda m: m.VQModel(
            block_out_channels=(16, 32), layers_per_block=1, latent_channels=3, **GROUPS,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        ),
        IMAGE,
    ),
    "AsymmetricAutoencoderKL": (
        lambda m: m.AsymmetricAutoencoderKL(
            down_block_out_channels=(16, 32), layers_per_down_block=1, norm_num_groups=8,
            up_block_out_channels=(16, 32), layers_per_up_block=1,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        ),
        IMAGE,
    ),
    "AutoencoderOobleck": (
        lambda m: m.AutoencoderOobleck(
            encoder_hidden_size=8, decoder_channels=8, downsampling_ratios=[2, 4],
            channel_multiples=[1, 2], decoder_input_channels=4,
        ),
        (2, 4096),
    ),
    "T2IAdapter": (
        lambda m: m.T2IAdapter(channels=[16, 32], num_res_blocks=1, downscale_factor=4),
        IMAGE,
    ),
}  # fmt: skip


class _Conditioned(nn.Module):
    """A denoiser at time step 5 that attends to zeros, as function of the image alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        time, text = torch.full((x.shape[0],), 5), x.new_zeros(x.shape[0], 4, 16)
        return self.model(x, time, text)


def packaged(module: str, recipes: dict[str, Recipe], name: str) -> Network:
    """A network by its name, and random inputs."""
    build, shape = recipes[name]
    return Network(build(importlib.import_module(module)), [(torch.rand(BATCH, *shape),)])
