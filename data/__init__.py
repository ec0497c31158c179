"""Databases, manifest, latent shards, order and loader: everything between files on disk and a batch of latents."""
