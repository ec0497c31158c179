"""The command line, the configuration and the training loop: here the other packages are composed."""
