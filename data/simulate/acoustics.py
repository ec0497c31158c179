"""From a scene to a log-compressed picture: attenuation and gain, scatterers, point-spread function, looks, grey curve.

A linear convolution model: the envelope is the magnitude of complex Gaussian scatterers blurred by the pulse and the
beam, which makes fully developed speckle (Wagner et al. 1983, IEEE Trans. Sonics Ultrason. 30(3): amplitude SNR 1.91).
"""

from dataclasses import dataclass

import numpy as np
from scipy import fft
from scipy.ndimage import gaussian_filter1d, uniform_filter1d

from data.simulate.geometry import BeamGrid, Float

SOUND_MM_PER_US = 1.54
# Rows of silence below the scene: the blur is circular, and without them the skin's echo comes back at the bottom.
GUARD_ROWS = 12


@dataclass(frozen=True)
class Settings:
    """What the operator and the make of the scanner decide."""

    frequency_mhz: float
    dynamic_range_db: float
    looks: int  # compounded pictures with independent speckle
    f_number: float  # of the beam at its focus
    focus_mm: float
    tgc_db: float  # time gain compensation, dB/cm/MHz one way
    gain_db: float = 0.0  # added to the picture's automatic level
    floor_db: float = -62.0  # noise and reverberation at the probe; rises by 14 dB to the bottom
    side_lobe_db: float = -30.0  # clutter from neighbouring beams
    gamma: float = 1.0  # exponent of the grey curve
    contrast: float = 0.0  # 0: straight grey curve; 1: an S between black and white


@dataclass
class Scene:
    """Tissue at the samples of a grid; arrays are [num_ranges, num_beams] float32."""

    echo_db: Float  # scatterers' strength
    attenuation_db: Float  # dB/cm/MHz one way
    specular: Float  # amplitude of smooth interfaces, 0 where there is none
    beam_loss_db: Float  # [num_beams], lost at the probe: ribs, lung, poor contact


def interface(grid: BeamGrid, level: Float, thickness_mm: float, directivity: float) -> Float:
    """Return the specular echo of the surface where `level` is 0: 1 where the beam meets it head-on.

    `directivity` is the power of the cosine between the beam and the surface's normal.
    """
    along, steepness = grid.slopes(level)
    cosine = np.abs(along) / steepness
    return np.exp(-((level / steepness) ** 2) * np.float32(1 / thickness_mm**2)) * cosine ** np.float32(directivity)


def layer_interface(grid: BeamGrid, below_mm: Float, line_mm: Float, thickness_mm: float, directivity: float) -> Float:
    """Return `interface` for a layer: `line_mm` [num_beams] is its depth, `below_mm` each sample's depth under it."""
    slope = np.gradient(line_mm) / np.float32(grid.geometry.width_mm / grid.num_beams)
    cosine = 1 / np.sqrt(1 + slope**2)
    return np.exp(-((below_mm * (cosine / np.float32(thickness_mm))) ** 2)) * cosine ** np.float32(directivity)


def _lateral_sigma(grid: BeamGrid, settings: Settings) -> Float:
    """Return the beam's width as a Gaussian sigma in beams, [num_ranges]: narrowest at the focus."""
    wavelength_mm = SOUND_MM_PER_US / settings.frequency_mhz
    defocus = np.abs(grid.range_mm - settings.focus_mm) / settings.focus_mm
    sigma_mm = 0.5 * wavelength_mm * settings.f_number * (0.8 + 0.9 * defocus)
    return np.clip(sigma_mm / grid.pitch_mm, 0.7, 0.02 * grid.num_beams)


def envelope(rng: np.random.Generator, grid: BeamGrid, scene: Scene, settings: Settings) -> Float:
    """Return the detected echo amplitude, [num_ranges, num_beams]; mean power 1 for tissue of 0 dB."""
    num_rows = fft.next_fast_len(grid.num_ranges + GUARD_ROWS)
    step_cm = grid.range_step_mm / 10
    path_db = np.cumsum(scene.attenuation_db - np.float32(settings.tgc_db), axis=0)
    path_db *= np.float32(2 * settings.frequency_mhz * step_cm)
    # A beam is fed by an aperture: shadows have soft sides.
    path_db = gaussian_filter1d(path_db, 0.014 * grid.num_beams, axis=1, truncate=3) + scene.beam_loss_db
    gain = np.exp(path_db * np.float32(-np.log(10) / 20))
    strength = np.exp(scene.echo_db * np.float32(np.log(10) / 20)) * gain
    specular = scene.specular * gain
    lobe = 10 ** (settings.side_lobe_db / 20) * uniform_filter1d(
        uniform_filter1d(strength + specular, grid.num_beams // 6, axis=1), grid.num_beams // 6, axis=1
    )
    floor = 10 ** ((settings.floor_db + 14 * grid.range_mm / grid.geometry.depth_mm) / 20)
    # Clutter and noise pass the same receiver as the tissue's echoes: independent scatterers, whose powers add.
    strength = np.sqrt((strength**2 + lobe**2 + floor[:, None] ** 2) / 2, dtype=np.float32)

    axial_sigma = max(0.5 * SOUND_MM_PER_US / settings.frequency_mhz / grid.range_step_mm, 0.7)
    lateral_sigma = _lateral_sigma(grid, settings)
    axial_gain = np.exp(-2 * (np.pi * axial_sigma * fft.fftfreq(num_rows)) ** 2)
    axial_gain /= np.sqrt((axial_gain**2).mean())
    lateral_gain = np.exp(-2 * (np.pi * lateral_sigma[:, None] * fft.fftfreq(grid.num_beams)) ** 2)
    lateral_gain /= np.sqrt((lateral_gain**2).mean(1, keepdims=True))
    axial_gain, lateral_gain = axial_gain.astype(np.float32)[:, None], lateral_gain.astype(np.float32)

    power = np.zeros(grid.shape, np.float32)
    for _ in range(settings.looks):
        scatterers = np.zeros((num_rows, grid.num_beams), np.complex64)
        noise = rng.standard_normal((2, *grid.shape), dtype=np.float32)
        scatterers.real[: grid.num_ranges] = noise[0] * strength
        scatterers.imag[: grid.num_ranges] = noise[1] * strength
        scatterers[: grid.num_ranges] += specular * np.complex64(np.exp(2j * np.pi * rng.random()))
        # The beam's width changes with range: back to ranges before the lateral blur, which is then a product per row.
        spectrum = fft.ifft(fft.fft2(scatterers) * axial_gain, axis=0)[: grid.num_ranges]
        echoes = fft.ifft(spectrum * lateral_gain, axis=1, overwrite_x=True)
        power += echoes.real**2 + echoes.imag**2
    return np.sqrt(power / settings.looks)


def log_compress(amplitude: Float, settings: Settings) -> Float:
    """Return grey values in 0..1 of an envelope: dynamic range below the automatic level, then the grey curve."""
    decibels = 20 * np.log10(amplitude + np.float32(1e-6))
    top = np.percentile(decibels[::3, ::3], 99) - settings.gain_db
    grey = np.clip((decibels - np.float32(top)) * np.float32(1 / settings.dynamic_range_db) + 1, 0, 1)
    if settings.contrast:
        grey = grey + np.float32(settings.contrast) * (grey * grey * (3 - 2 * grey) - grey)
    return grey ** np.float32(settings.gamma)


def form_image(rng: np.random.Generator, grid: BeamGrid, scene: Scene, settings: Settings) -> Float:
    """Return the beams' grey values in 0..1, [num_ranges, num_beams], filtered for a picture of coarser pixels."""
    grey = log_compress(envelope(rng, grid, scene, settings), settings)
    # Video filter: rows are finer than pixels.
    return gaussian_filter1d(grey, 0.6, axis=0, truncate=2)
