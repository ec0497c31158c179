"""Training of the autoencoder: structure by pixels, speckle by spectra and by a critic."""

# B batch, C latent channels, H W image height and width

import random

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from tools.make_tiny.pace import Average, Pace, set_learning_rate
from tools.make_tiny.recipe import VaeRecipe
from tools.make_tiny.texture import PatchCritic, feature_distance, hinge_loss, local_log_spectra

# Stable Diffusion's own factor. The latents are scaled to fit it, so that code which assumes it is right here too.
SCALING_FACTOR = 0.18215


def new_vae(recipe: VaeRecipe, image_size: int) -> AutoencoderKL:
    """Return an untrained autoencoder: 8x down to 4 channels."""
    levels = len(recipe.block_out_channels)
    return AutoencoderKL(
        block_out_channels=recipe.block_out_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        norm_num_groups=recipe.norm_num_groups,
        layers_per_block=1,
        latent_channels=4,
        sample_size=image_size,
        scaling_factor=SCALING_FACTOR,
    )


def as_pixels(images_BHW: Tensor) -> Tensor:
    """Return uint8 images as float32 [B, 1, H, W] in [-1, 1]."""
    return images_BHW.unsqueeze(1).float() / 127.5 - 1


def encode(vae: AutoencoderKL, pixels_B1HW: Tensor) -> DiagonalGaussianDistribution:
    """Return the Gaussian over unscaled latents of grey images, [B, C, H/8, W/8] float32."""
    return DiagonalGaussianDistribution(vae.encode(pixels_B1HW.expand(-1, 3, -1, -1)).latent_dist.parameters.float())


def decode(vae: AutoencoderKL, latents_BCHW: Tensor) -> Tensor:
    """Return grey images of unscaled latents, [B, 1, H, W] float32."""
    return vae.decode(latents_BCHW).sample.float().mean(1, keepdim=True)


def train_vae(
    vae: AutoencoderKL, images_NHW: np.ndarray, recipe: VaeRecipe, pace: Pace, *, seed: int, compiled: bool = False
) -> None:
    """Train `vae` where it lies and leave the average of its weights in it, its latents normalised."""
    device = vae.device
    torch.manual_seed(seed)
    draw = random.Random(seed)
    critic = PatchCritic(recipe.critic_channels).to(device)
    is_cuda = device.type == "cuda"
    if compiled:
        for module in (vae.encoder, vae.decoder, critic):
            module.compile(dynamic=False)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1, betas=(0.5, 0.99), weight_decay=0, fused=is_cuda)
    critic_optimizer = torch.optim.AdamW(critic.parameters(), lr=1, betas=(0.5, 0.99), weight_decay=0, fused=is_cuda)
    average = Average(vae.parameters(), recipe.ema_decay)
    images = torch.from_numpy(images_NHW).to(device)
    vae.train()

    for _ in pace:
        set_learning_rate(optimizer, pace.learning_rate(recipe.learning_rate))
        set_learning_rate(critic_optimizer, pace.learning_rate(recipe.critic_learning_rate))
        real = _batch(images, recipe, draw)
        with torch.autocast(device.type, torch.bfloat16, enabled=is_cuda):
            posterior = encode(vae, real)
            fake = decode(vae, posterior.sample())
        # The losses see a copy of the output; the sum of their gradients then goes back through the model once.
        output = fake.detach().requires_grad_()
        loss, gradient, figures = _output_gradient(output, real, critic, recipe, draw, pace)
        kl = recipe.kl_weight * posterior.kl().mean() / posterior.mean[0].numel()
        optimizer.zero_grad()
        torch.autograd.backward([fake, kl], [gradient, torch.ones_like(kl)])
        torch.nn.utils.clip_grad_norm_(vae.parameters(), recipe.clip_norm)
        optimizer.step()
        average.update()
        if pace.fraction >= recipe.critic_learns_from:
            figures["critic"] = _train_critic(critic, critic_optimizer, real, output.detach(), recipe.clip_norm)
        if pace.is_reporting:
            spread = posterior.std.mean() / posterior.mean.std()
            pace.report(loss=loss, kl=kl, spread=spread, **figures)

    average.copy_to_parameters()
    vae.eval()
    make_grey(vae)
    # Batches of another size and type would be compiled anew.
    with torch.compiler.set_stance("force_eager"):
        normalise_latents(vae, *latent_statistics(vae, images[:4096]))


def _batch(images_NHW: Tensor, recipe: VaeRecipe, draw: random.Random) -> Tensor:
    """Return random images, half of them mirrored, shifted together by a few pixels, [B, 1, H, W] in [-1, 1].

    The shift moves the anatomy and the speckle over the latent grid; what it uncovers is mirrored in.
    """
    chosen = torch.randint(len(images_NHW), (recipe.batch_size,), device=images_NHW.device)
    pixels = as_pixels(images_NHW[chosen])
    half = recipe.batch_size // 2
    pixels = torch.cat([pixels[:half].flip(-1), pixels[half:]])
    margin, (height, width) = recipe.shift_pixels, pixels.shape[-2:]
    rows, columns = draw.randint(0, 2 * margin), draw.randint(0, 2 * margin)
    return F.pad(pixels, [margin] * 4, mode="reflect")[
        ..., rows : rows + height, columns : columns + width
    ].contiguous()


def _output_gradient(
    output: Tensor, real: Tensor, critic: PatchCritic, recipe: VaeRecipe, draw: random.Random, pace: Pace
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return the loss of a reconstruction without the critic, the gradient by it with the critic, and the parts.

    The critic's gradient is scaled to a fixed share of the other's: VQGAN's adaptive weight (arXiv:2012.09841,
    equation 7), measured at the output as EnCodec does (arXiv:2210.13438, section 3.4) instead of at the last layer.
    """
    coarse = F.l1_loss(F.avg_pool2d(output, 4), F.avg_pool2d(real, 4))
    pixel = F.l1_loss(output, real)
    spectra = []
    for window in recipe.spectrum_windows:
        offset = (draw.randrange(window // 2), draw.randrange(window // 2))
        spectra.append(F.l1_loss(local_log_spectra(output, window, offset), local_log_spectra(real, window, offset)))
    spectrum = torch.stack(spectra).mean()
    loss = recipe.coarse_weight * coarse + recipe.pixel_weight * pixel + recipe.spectrum_weight * spectrum
    (gradient,) = torch.autograd.grad(loss, output)
    figures = {"coarse": coarse, "pixel": pixel, "spectrum": spectrum}
    if pace.fraction >= recipe.critic_counts_from:
        with torch.autocast(output.device.type, torch.bfloat16, enabled=output.is_cuda):
            with torch.no_grad():
                _, real_features = critic(real)
            verdicts, features = critic(output)
        distance = feature_distance(real_features, features)
        objection = -torch.stack([verdict.mean() for verdict in verdicts]).mean()
        (critic_gradient,) = torch.autograd.grad(objection + recipe.feature_weight * distance, output)
        scale = gradient.norm() / (critic_gradient.norm() + 1e-8)
        gradient = gradient + recipe.critic_weight * scale * critic_gradient
        figures |= {"features": distance, "objection": objection}
    return loss, gradient, figures


def _train_critic(
    critic: PatchCritic, optimizer: torch.optim.Optimizer, real: Tensor, fake: Tensor, clip_norm: float
) -> Tensor:
    """Take one step of the critic and return its loss."""
    with torch.autocast(real.device.type, torch.bfloat16, enabled=real.is_cuda):
        verdicts, _ = critic(torch.cat([real, fake]))
    loss = hinge_loss([v[: len(real)] for v in verdicts], [v[len(real) :] for v in verdicts])
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(critic.parameters(), clip_norm)
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def make_grey(vae: AutoencoderKL) -> None:
    """Make the three output channels equal: their mean, which is all that the losses saw."""
    for parameter in vae.decoder.conv_out.parameters():
        parameter.copy_(parameter.mean(0, keepdim=True).expand_as(parameter))


@torch.no_grad()
def latent_statistics(vae: AutoencoderKL, images_NHW: Tensor, batch_size: int = 256) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel of sampled latents, [C] each."""
    latents = [encode(vae, as_pixels(batch)).sample() for batch in images_NHW.to(vae.device).split(batch_size)]
    std, mean = torch.std_mean(torch.cat(latents), dim=(0, 2, 3))
    return mean, std


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, mean_C: Tensor, std_C: Tensor) -> None:
    """Fold into the 1x1 convolutions about the latents what gives them mean 0 and deviation 1 / SCALING_FACTOR.

    The model reconstructs as before. Every channel comes out alike, which the noise schedule takes for granted.
    """
    gain_C = 1 / (SCALING_FACTOR * std_C)
    into, out_of = vae.quant_conv, vae.post_quant_conv
    channels = len(mean_C)
    into.weight[:channels] *= gain_C.view(-1, 1, 1, 1)
    into.bias[:channels] = (into.bias[:channels] - mean_C) * gain_C
    into.bias[channels:] += 2 * gain_C.log()  # the other half are log-variances
    out_of.bias += out_of.weight[:, :, 0, 0] @ mean_C
    out_of.weight /= gain_C.view(1, -1, 1, 1)
