"""MViT V2 small for clips of any even length and any size that 32 divides.

torchvision's builder fixes 16 frames of 224 px, because the tables of relative positions depend on them. This builds
torchvision's own blocks from the table of the paper (Li et al., "MViTv2", CVPR 2022, table 2: MViTv2-S); at 16 frames of
224 px it is torchvision's network, weight for weight.
"""

from __future__ import annotations

from torchvision.models.video import MViT
from torchvision.models.video.mvit import MSBlockConfig

from mvfoul.clip import ClipSpec
from mvfoul.errors import ConfigError

# Per stage: blocks, channels, and the key/value pooling stride that keeps attention affordable at that resolution.
_STAGES = ((1, 96, 8), (2, 192, 4), (11, 384, 2), (2, 768, 1))
_CHANNELS_PER_HEAD = 96
_STOCHASTIC_DEPTH = 0.2


def build_mvit_v2_s(clip: ClipSpec) -> MViT:
    """Build the network for `clip`'s frames and size, with random weights and torchvision's 400-way head.

    Raises:
        ConfigError: An odd number of frames, or a size that 32 does not divide.
    """
    if clip.num_frames % 2 or clip.size_px % 32:
        raise ConfigError(
            f"mvit_v2_s needs an even number of frames and a size that 32 divides; the clip spec has "
            f"{clip.num_frames} frames of {clip.size_px} px."
        )
    return MViT(
        spatial_size=(clip.size_px, clip.size_px),
        temporal_size=clip.num_frames,
        block_setting=_blocks(),
        residual_pool=True,
        residual_with_cls_embed=False,
        rel_pos_embed=True,
        proj_after_attn=True,
        stochastic_depth_prob=_STOCHASTIC_DEPTH,
    )


def _blocks() -> list[MSBlockConfig]:
    blocks = []
    previous = _STAGES[0][1]
    for stage, (depth, channels, kv_stride) in enumerate(_STAGES):
        for block in range(depth):
            # The first block of each later stage halves the resolution and doubles the channels.
            q_stride = 2 if stage > 0 and block == 0 else 1
            blocks.append(
                MSBlockConfig(
                    num_heads=channels // _CHANNELS_PER_HEAD,
                    input_channels=previous,
                    output_channels=channels,
                    kernel_q=[3, 3, 3],
                    kernel_kv=[3, 3, 3],
                    stride_q=[1, q_stride, q_stride],
                    stride_kv=[1, kv_stride, kv_stride],
                )
            )
            previous = channels
    return blocks
