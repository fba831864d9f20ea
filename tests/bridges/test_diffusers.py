"""The knob in diffusers' own pipelines, with networks of a few thousand weights and PEFT's own adapters."""

import diffusers
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.modular_pipelines.stable_diffusion_3.denoise import StableDiffusion3DenoiseStep
from peft import LoraConfig

from sanov.bridges import diffusers as bridge
from sanov.bridges.adapter_switch import adapter_layers, reference_of
from sanov.bridges.diffusers import RLGuidance, reinforced
from sanov.core.errors import InputError, SanovWarning
from sanov.systems.rlg.weights import Window
from strategies import unchecked

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
STEPS, G = 3, 3.0


@pytest.fixture(autouse=True)
def quiet():
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()


def adapted(model, seed=0):
    torch.manual_seed(seed)
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    return model.eval()


def unet(seed=0, **more):
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        **{
            "sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "block_out_channels": (8, 16),
            "norm_num_groups": 4, "cross_attention_dim": 8, "attention_head_dim": 4,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), **more,
        }
    )  # fmt: skip


def transformer():
    torch.manual_seed(0)
    return SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=8, caption_projection_dim=16, pooled_projection_dim=8, out_channels=4, pos_embed_max_size=8,
    )  # fmt: skip


def vae():
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",), block_out_channels=(8,),
        norm_num_groups=4, latent_channels=4, sample_size=8,
    )  # fmt: skip


def classic(model=None, **scheduler):
    pipe = StableDiffusionPipeline(
        vae=vae(), text_encoder=None, tokenizer=None, unet=adapted(unet()) if model is None else model,
        scheduler=DDIMScheduler(**{"num_train_timesteps": 100, "clip_sample": False, "steps_offset": 1, **scheduler}),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def given(pooled=False):
    generator = torch.Generator().manual_seed(5)
    names = {"prompt_embeds": (2, 5, 8), "negative_prompt_embeds": (2, 5, 8), "latents": (2, 4, 8, 8)}
    if pooled:
        names |= {"pooled_prompt_embeds": (2, 8), "negative_pooled_prompt_embeds": (2, 8)}
    return {name: torch.randn(shape, generator=generator) for name, shape in names.items()}


def run(pipe, pooled=False, **more):
    about = {"num_inference_steps": STEPS, "guidance_scale": G, "output_type": "latent"}
    return pipe(**given(pooled), **{**about, **more}).images


def states(model):
    return [(layer._disable_adapters, [w.requires_grad for w in layer.parameters()]) for layer in adapter_layers(model)]


# -- classic pipelines ------------------------------------------------------------------------------------------------


def test_weights_0_and_1_are_the_two_models_bit_for_bit_and_cost_one_pass():
    pipe = classic()
    policy = run(pipe)
    with reference_of(pipe.unet):
        base = run(pipe)
    assert (policy - base).abs().max() > 0.1
    for w, expected in ((0, base), (1, policy)):
        with reinforced(pipe, w=w) as told:
            assert torch.equal(run(pipe), expected)
        assert told.passes == [1] * STEPS
    with reinforced(pipe, w=1, skip=False) as told:
        assert torch.equal(run(pipe), policy)
    assert told.passes == [2] * STEPS


def by_hand(pipe, w):
    """The pipeline's own loop, with both models written out: guidance within each first, then the mixture."""
    about, scheduler = given(), pipe.scheduler
    scheduler.set_timesteps(STEPS)
    x = about["latents"]
    for t in scheduler.timesteps:
        outputs = []
        for off in (True, False):
            layers = adapter_layers(pipe.unet)
            for layer in layers:
                layer._disable_adapters = off
            with torch.no_grad():
                c, u = (
                    pipe.unet(x, t, encoder_hidden_states=about[name]).sample
                    for name in ("prompt_embeds", "negative_prompt_embeds")
                )
            outputs.append(u + G * (c - u))
        v = outputs[0] + torch.as_tensor(w).float().view(-1, 1, 1, 1) * (outputs[1] - outputs[0])
        x = scheduler.step(v, t, x).prev_sample
    return x


@pytest.mark.parametrize("w", [-0.5, 0.4, 1.6, [0.5, 2.0]])
def test_it_is_the_rule(w):
    pipe = classic()
    with reinforced(pipe, w=w) as told:
        found = run(pipe)
    torch.testing.assert_close(found, by_hand(pipe, w), rtol=0, atol=2e-5)
    assert told.passes == [2] * STEPS


def test_a_flow_pipeline_has_its_own_sigmas_and_a_window():
    pipe = StableDiffusion3Pipeline(
        transformer=adapted(transformer()), scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae(), text_encoder=None,
        tokenizer=None, text_encoder_2=None, tokenizer_2=None, text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    seen = []

    def w(sigma):
        seen.append(sigma)
        return 1.5

    window = Window(start=0.9, stop=0.0, outside="reference")
    with reinforced(pipe, w=w, window=window) as told:
        run(pipe, pooled=True)
    assert told.sigmas == pytest.approx(pipe.scheduler.sigmas[:STEPS].tolist())
    inside = [sigma <= 0.9 for sigma in told.sigmas]
    assert told.passes == [2 if mixed else 1 for mixed in inside]
    assert seen == [sigma for sigma, mixed in zip(told.sigmas, inside, strict=True) if mixed]
    assert 0 < sum(inside) < STEPS


def test_a_reference_may_be_a_model_of_its_own():
    policy, base = unet(seed=1).eval(), unet(seed=2).eval()
    pipe, other = classic(policy), classic(base)
    with reinforced(pipe, w=0, reference=base) as told:
        assert torch.equal(run(pipe), run(other))
    assert told.passes == [1] * STEPS
    with reinforced(pipe, w=1, reference=base):
        assert torch.equal(run(pipe), run(classic(policy)))
    with (
        pytest.raises(InputError, match="cross_attention_dim is 8, and 16 in the reference"),
        reinforced(pipe, reference=unet(cross_attention_dim=16)),
    ):
        pass


def test_everything_is_as_it_was_also_after_a_failure():
    pipe = classic()
    before, forward = states(pipe.unet), pipe.unet.forward

    def fail(*_):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), reinforced(pipe, w=2):
        run(pipe, callback_on_step_end=fail)
    hook = pipe.unet.mid_block.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="stop"), reinforced(pipe, w=2):
        run(pipe)
    hook.remove()
    assert states(pipe.unet) == before
    assert pipe.unet.forward == forward
    assert "forward" not in vars(pipe.unet)


def test_two_graphs_are_compiled_at_the_first_step_and_none_after():
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    pipe = classic()
    expected = by_hand(pipe, 1.6)
    pipe.unet = torch.compile(pipe.unet, backend=backend, fullgraph=True)
    with reinforced(pipe, w=1.6) as told:
        found = run(pipe)
        first = len(graphs)
        run(pipe)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    assert told.compiled == [first] + [0] * (2 * STEPS - 1)
    assert len(graphs) == first == 2


# -- modular pipelines ------------------------------------------------------------------------------------------------


@pytest.fixture
def modular():
    pipe = StableDiffusion3DenoiseStep().init_pipeline()
    pipe.update_components(transformer=adapted(transformer()), scheduler=FlowMatchEulerDiscreteScheduler())

    def go(guider):
        pipe.update_components(guider=guider)
        pipe.scheduler.set_timesteps(STEPS)
        about = {"timesteps": pipe.scheduler.timesteps, "num_inference_steps": STEPS, "output": "latents"}
        return pipe(**given(pooled=True), **about)

    return pipe, go


def test_the_guider_is_diffusers_own_guidance_of_either_model_at_0_and_1(modular):
    pipe, go = modular
    policy = go(ClassifierFreeGuidance(guidance_scale=G))
    with reference_of(pipe.transformer):
        base = go(ClassifierFreeGuidance(guidance_scale=G))
    assert torch.equal(go(RLGuidance(w=1, guidance_scale=G)), policy)
    assert torch.equal(go(RLGuidance(w=0, guidance_scale=G)), base)
    assert torch.equal(go(RLGuidance(w=1.6, guidance_scale=G, stop=0.0, outside="policy")), policy)
    assert torch.equal(go(RLGuidance(w=1.6, guidance_scale=G, stop=0.0, outside="reference")), base)
    assert not torch.equal(go(RLGuidance(w=1.6, guidance_scale=G)), policy)


def test_the_guider_is_the_wrapper(modular):
    pipe, go = modular
    found = go(RLGuidance(w=1.6, guidance_scale=G))
    wrapped = StableDiffusion3Pipeline(
        transformer=pipe.transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae(), text_encoder=None,
        tokenizer=None, text_encoder_2=None, tokenizer_2=None, text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip
    wrapped.set_progress_bar_config(disable=True)
    with reinforced(wrapped, w=1.6):
        torch.testing.assert_close(found, run(wrapped, pooled=True), rtol=0, atol=2e-5)


@pytest.mark.parametrize(("w", "g", "expected"), [(1.6, 3.0, 4), (1.6, 1.0, 2), (1, 3.0, 2), (0, 3.0, 2), (0, 1.0, 1)])
def test_passes_are_counted(w, g, expected):
    guider = RLGuidance(w=w, guidance_scale=g)
    assert guider.num_conditions == expected == len(guider.prepare_inputs({"x": (torch.zeros(1), torch.ones(1))}))


def test_the_adapter_is_on_again_when_the_denoiser_fails(modular):
    pipe, go = modular
    before = states(pipe.transformer)

    def fail(*_):
        raise RuntimeError("stop")

    hook = pipe.transformer.transformer_blocks[0].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="stop"):
        go(RLGuidance(w=0, guidance_scale=G))
    hook.remove()
    assert states(pipe.transformer) == before
    assert not pipe.transformer._forward_hooks
    go(RLGuidance(w=2, guidance_scale=G))
    assert states(pipe.transformer) == before
    assert not pipe.transformer._forward_hooks


def test_a_guider_is_saved_and_copied(tmp_path):
    guider = RLGuidance(w=-0.5, guidance_scale=2.0, stop=0.5)
    guider.save_pretrained(tmp_path)
    again = RLGuidance.from_pretrained(tmp_path)
    assert (again.w, again.guidance_scale, again.config.stop) == (-0.5, 2.0, 0.5)
    assert guider.new(w=3.0).w == 3.0
    guider.disable()
    assert guider.passes == ["policy_cond"]


# -- what is refused --------------------------------------------------------------------------------------------------


def test_what_cannot_be_mixed_is_refused():
    pipe = classic()
    with pytest.raises(InputError, match="finite"), reinforced(pipe, w=float("nan")):
        pass
    with pytest.raises(InputError, match="w"), reinforced(pipe, w=[1.0, 2.0, 3.0]):
        run(pipe)
    with pytest.raises(InputError, match=r"there is no adapter.*cannot be disabled"), reinforced(classic(unet())):
        pass
    pipe.unet.fuse_lora()
    with pytest.raises(InputError, match=r"merged into the weights.*fuse_lora"), reinforced(pipe):
        pass
    with pytest.raises(InputError, match="transformer or a unet"), reinforced(object()):
        pass
    with unchecked(), pytest.raises(InputError, match="outside"):
        RLGuidance(outside="nowhere")
    with pytest.raises(AttributeError, match="RLGuider"):
        bridge.RLGuider  # noqa: B018


def test_a_guider_over_a_merged_adapter_is_refused(modular):
    pipe, go = modular
    pipe.transformer.fuse_lora()
    with pytest.raises(InputError, match="merged into the weights"):
        go(RLGuidance(w=2, guidance_scale=G))


def test_a_scheduler_that_clips_is_told_of():
    pipe = classic(thresholding=True)
    with (
        pytest.warns(SanovWarning, match="thresholding is on: the mix happens before clipping"),
        reinforced(pipe, w=1.6),
    ):
        pass
    with reinforced(pipe, w=1):
        pass


def test_an_adapter_of_the_text_encoder_is_refused():
    pipe = classic()
    pipe.text_encoder = adapted(unet())
    with pytest.raises(InputError, match="different prompts"), reinforced(pipe):
        pass
