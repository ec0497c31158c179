"""The reader study: can people tell generated images from real ones? A page for readers, a key for its leader."""
