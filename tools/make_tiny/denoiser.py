"""Training of UNet and text encoder on the latents of the finished autoencoder."""

# N images, P captions of an image, B batch, C latent channels, H W latent height and width, L prompt tokens

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tools.make_tiny.autoencoder import as_pixels, encode
from tools.make_tiny.captions import paraphrases
from tools.make_tiny.images import SimulatedSet
from tools.make_tiny.pace import Average, Pace, set_learning_rate
from tools.make_tiny.recipe import DenoiserRecipe

# A mirrored breast or head is another one; a mirrored heart has its left ventricle on the wrong side.
MIRRORED_PRESETS = ("breast", "fetal")


def new_scheduler() -> DDPMScheduler:
    """Return the noise schedule of Stable Diffusion 1.5, which predicts noise."""
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        clip_sample=False,
        steps_offset=1,
    )


def new_text_encoder(recipe: DenoiserRecipe, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Return an untrained text encoder for the tokens of `tokenizer`."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.text_width,
        intermediate_size=4 * recipe.text_width,
        projection_dim=recipe.text_width,
        num_hidden_layers=recipe.text_layers,
        num_attention_heads=recipe.num_heads,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def new_unet(recipe: DenoiserRecipe, latent_size: int) -> UNet2DConditionModel:
    """Return an untrained UNet: as in Stable Diffusion 1.5, all levels but the last attend to the prompt."""
    attending = len(recipe.block_out_channels) - 1
    return UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=4,
        out_channels=4,
        block_out_channels=recipe.block_out_channels,
        down_block_types=("CrossAttnDownBlock2D",) * attending + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * attending,
        layers_per_block=recipe.layers_per_block,
        norm_num_groups=recipe.norm_num_groups,
        # The number of heads, in spite of its name (huggingface/diffusers#2011).
        attention_head_dim=recipe.num_heads,
        cross_attention_dim=recipe.text_width,
    )


@dataclass(frozen=True)
class LatentSet:
    """Moments of images and of their mirror images, scaled to deviation 1, and the tokens of their captions."""

    mean_N2CHW: Tensor
    std_N2CHW: Tensor
    # Which rows of `tokens_TL` may describe an image: column 0 the simulator's prompt, then the paraphrases.
    captions_NP: Tensor
    can_mirror_N: Tensor
    tokens_TL: Tensor
    empty_L: Tensor

    def __len__(self) -> int:
        return len(self.captions_NP)


@torch.no_grad()
def encode_set(
    images: SimulatedSet, vae: AutoencoderKL, tokenizer: CLIPTokenizer, *, batch_size: int = 256
) -> LatentSet:
    """Return the moments and caption tokens of `images` on the device of `vae`, moments as float16."""
    device, scale = vae.device, vae.config.scaling_factor
    means, stds = [], []
    for batch in torch.from_numpy(images.images_NHW).split(batch_size):
        pixels = as_pixels(batch.to(device))
        posteriors = [encode(vae, pixels), encode(vae, pixels.flip(-1))]
        means.append(torch.stack([(p.mean * scale).half() for p in posteriors], dim=1))
        stds.append(torch.stack([(p.std * scale).half() for p in posteriors], dim=1))
    rows: dict[str, int] = {}
    captions = [
        [rows.setdefault(text, len(rows)) for text in (prompt, *paraphrases(preset, label))]
        for preset, label, prompt in zip(images.presets, images.labels, images.prompts, strict=True)
    ]
    return LatentSet(
        mean_N2CHW=torch.cat(means),
        std_N2CHW=torch.cat(stds),
        captions_NP=torch.tensor(captions, device=device),
        can_mirror_N=torch.tensor([preset in MIRRORED_PRESETS for preset in images.presets], device=device),
        tokens_TL=tokenize(tokenizer, list(rows)).to(device),
        empty_L=tokenize(tokenizer, [""])[0].to(device),
    )


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Return tokens padded to the context, [B, L] int64."""
    tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    return tokens.input_ids


def train_denoiser(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    latents: LatentSet,
    recipe: DenoiserRecipe,
    pace: Pace,
    *,
    seed: int,
    compiled: bool = False,
) -> None:
    """Train both models together where they lie and leave the averages of their weights in them."""
    device = unet.device
    is_cuda = device.type == "cuda"
    torch.manual_seed(seed)
    models = nn.ModuleList([unet, text_encoder])
    if compiled:
        unet.compile(dynamic=False)
    optimizer = torch.optim.AdamW(
        models.parameters(), lr=1, betas=(0.9, 0.99), weight_decay=recipe.weight_decay, fused=is_cuda
    )
    average = Average(models.parameters(), recipe.ema_decay)
    alpha_bar_T = new_scheduler().alphas_cumprod.to(device)
    models.train()

    for _ in pace:
        set_learning_rate(optimizer, pace.learning_rate(recipe.learning_rate))
        clean = _clean_batch(latents, recipe.batch_size)
        tokens = _caption_batch(latents, clean.chosen, recipe.caption_dropout)
        timesteps = stratified_timesteps(recipe.batch_size, len(alpha_bar_T), device)
        noise = torch.randn_like(clean.latents_BCHW)
        noisy = add_noise(clean.latents_BCHW, noise, alpha_bar_T[timesteps])
        with torch.autocast(device.type, torch.bfloat16, enabled=is_cuda):
            text = text_encoder(tokens).last_hidden_state
            predicted = unet(noisy, timesteps, encoder_hidden_states=text).sample
        error_B = (predicted.float() - noise).square().mean(dim=(1, 2, 3))
        loss = (error_B * min_snr_weight(alpha_bar_T[timesteps], recipe.min_snr_gamma)).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(models.parameters(), recipe.clip_norm)
        optimizer.step()
        average.update()
        if pace.is_reporting:
            pace.report(loss=loss, error=error_B.mean(), norm=norm)

    average.copy_to_parameters()
    models.eval()


@dataclass(frozen=True)
class _Clean:
    latents_BCHW: Tensor
    chosen: Tensor


def _clean_batch(latents: LatentSet, batch_size: int) -> _Clean:
    """Return latents drawn from the moments of random images or of their mirror images."""
    device = latents.captions_NP.device
    chosen = torch.randint(len(latents), (batch_size,), device=device)
    mirrored = torch.randint(2, (batch_size,), device=device) * latents.can_mirror_N[chosen]
    mean, std = latents.mean_N2CHW[chosen, mirrored].float(), latents.std_N2CHW[chosen, mirrored].float()
    return _Clean(mean + std * torch.randn_like(mean), chosen)


def _caption_batch(latents: LatentSet, chosen_B: Tensor, dropout: float) -> Tensor:
    """Return one caption an image, [B, L]: the simulator's prompt or a paraphrase, evenly; or else the empty one."""
    device, size = chosen_B.device, len(chosen_B)
    paraphrase = torch.randint(1, latents.captions_NP.shape[1], (size,), device=device)
    column = torch.where(torch.rand(size, device=device) < 0.5, 0, paraphrase)
    tokens = latents.tokens_TL[latents.captions_NP[chosen_B, column]]
    return torch.where(torch.rand(size, 1, device=device) < dropout, latents.empty_L, tokens)


def stratified_timesteps(batch_size: int, num_timesteps: int, device: torch.device) -> Tensor:
    """Return timesteps spread evenly over the schedule from one random start, [B] int64 in [0, num_timesteps).

    Each is uniform on its own; together they vary less. Source: VDM (arXiv:2107.00630), appendix I.1.
    """
    start = torch.rand((), device=device)
    fractions = (start + torch.arange(batch_size, device=device) / batch_size) % 1
    return (fractions * num_timesteps).long().clamp(max=num_timesteps - 1)


def add_noise(latents_BCHW: Tensor, noise_BCHW: Tensor, alpha_bar_B: Tensor) -> Tensor:
    """Return sqrt(a) * latents + sqrt(1 - a) * noise. Source: DDPM (arXiv:2006.11239), equation 4."""
    a = alpha_bar_B.view(-1, 1, 1, 1)
    return a.sqrt() * latents_BCHW + (1 - a).sqrt() * noise_BCHW


def min_snr_weight(alpha_bar_B: Tensor, gamma: float) -> Tensor:
    """Return min(SNR, gamma) / SNR, the weight of the noise error. Source: arXiv:2303.09556, section 3.4."""
    snr = alpha_bar_B / (1 - alpha_bar_B)
    return snr.clamp(max=gamma) / snr


@torch.no_grad()
def validation_loss(unet: UNet2DConditionModel, text_encoder: CLIPTextModel, latents: LatentSet) -> float:
    """Return the mean squared noise error on all of `latents` under their prompts, at fixed timesteps and noise."""
    device, alpha_bar_T = unet.device, new_scheduler().alphas_cumprod
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(latents.mean_N2CHW[:, 0].shape, generator=generator).to(device)
    timesteps = ((torch.arange(len(latents)) * 997) % len(alpha_bar_T)).to(device)
    noisy = add_noise(latents.mean_N2CHW[:, 0].float(), noise, alpha_bar_T.to(device)[timesteps])
    errors = []
    for rows in torch.arange(len(latents), device=device).split(256):
        text = text_encoder(latents.tokens_TL[latents.captions_NP[rows, 0]]).last_hidden_state
        predicted = unet(noisy[rows], timesteps[rows], encoder_hidden_states=text).sample
        errors.append((predicted - noise[rows]).square().mean(dim=(1, 2, 3)))
    return torch.cat(errors).mean().item()
