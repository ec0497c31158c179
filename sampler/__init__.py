"""Draw images from an exported bundle with onnxruntime, numpy, Pillow and tokenizers alone: no torch, no network."""
