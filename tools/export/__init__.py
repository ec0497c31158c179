"""Write a model in the forms that other programs read: a diffusers folder, a single file, a bundle of ONNX graphs."""
