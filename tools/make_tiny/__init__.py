"""How the built-in model is made: recipe, simulated images, captions, tokenizer, autoencoder, denoiser, proof."""
