"""What is wrong with images: copies, overlays, masks that do not fit; and what is done about it."""
