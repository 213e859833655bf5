"""Small random vision transformers of every kind that timm builds, with the way in which their maps are computed."""

from functools import partial

from timm.layers import Attention, SwiGLUPacked
from timm.layers.diff_attention import DiffAttention
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer_relpos import VisionTransformerRelPos

eva = partial(Eva, global_pool="token")
dinov3 = partial(
    eva, use_rot_pos_emb=True, rope_type="dinov3", rope_rotate_half=True, use_abs_pos_emb=False, init_values=0.3
)


class GatedAttention(Attention):
    """timm's attention with the gate that its vision transformers have no argument for."""

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named, gated=True)


CLOSED = {
    "plain": {},
    "mlp_head": {"head": "mlp"},
    "registers": {"reg_tokens": 3, "no_embed_class": True},
    "layer_scale": {"init_values": 0.3},
    "no_bias": {"qkv_bias": False, "proj_bias": False},
    "not_square": {"img_size": (16, 24)},
    "patch_8": {"patch_size": 8, "img_size": (24, 16)},
    "swiglu": {"mlp_layer": SwiGLUPacked},
    "pre_norm": {"pre_norm": True},
    "drop": {"drop_path_rate": 0.3, "drop_rate": 0.3, "attn_drop_rate": 0.3, "proj_drop_rate": 0.3},
    "dynamic_size": {"dynamic_img_size": True},
    "two_heads": {"num_heads": 2},
    "one_block": {"depth": 1},
    "final_norm_after_pooling": {"fc_norm": True},
    "eva": {"kind": eva},
    "eva_separate_projections": {"kind": partial(eva, qkv_fused=False, swiglu_mlp=True, scale_mlp=True)},
    "eva_registers": {"kind": partial(eva, num_reg_tokens=2, init_values=0.3)},
    "beit": {"kind": partial(Beit, global_pool="token")},
}
"""Models on which the closed form holds."""

AUTOGRAD = {
    "qk_norm": ({"qk_norm": True}, "q_norm"),
    "inner_norm": ({"scale_attn_norm": True}, "norm"),
    "gated": ({"attn_layer": GatedAttention}, "gate"),
    "differential": ({"attn_layer": DiffAttention, "num_heads": 2, "embed_dim": 16}, "sub_norm"),
    "shared_keys": (
        {"kind": partial(eva, attn_type="rope", qkv_fused=False, num_kv_heads=1, scale_mlp=True, swiglu_mlp=True)},
        "shares keys",
    ),
    "rotary": ({"kind": partial(eva, use_rot_pos_emb=True)}, "given more than tokens"),
    "dinov3": ({"kind": partial(dinov3, num_reg_tokens=2)}, "given more than tokens"),
    "relative_position": ({"kind": partial(Beit, global_pool="token", use_rel_pos_bias=True)}, "relative_position"),
    "relative_position_module": (
        {"kind": partial(VisionTransformerRelPos, global_pool="token", class_token=True)},
        "rel_pos",
    ),
    "distilled": ({"kind": VisionTransformerDistilled}, "reads more than"),
    "mean_pooling": ({"global_pool": "avg"}, "reads more than"),
    "mean_pooling_norm_before": ({"global_pool": "avg", "fc_norm": False}, "reads more than"),
    "mean_pooling_without_class_token": ({"global_pool": "avg", "class_token": False}, "reads more than"),
    "attention_pooling": ({"global_pool": "map"}, "reads more than"),
    "eva_mean_pooling": ({"kind": Eva}, "reads more than"),
}
"""Models on which it does not, with a word of the reason."""
KINDS = CLOSED | {name: options for name, (options, _) in AUTOGRAD.items()}
