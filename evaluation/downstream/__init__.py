"""Whether generated images are of use: networks trained on them, beside others trained without, tested on real ones.

The experiments of "Ultrasound Image Generation using Latent Diffusion Models" (arXiv:2502.08580), with the splits by
patient, the intervals and the tests that they had not.
"""
