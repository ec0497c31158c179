"""What a trained model draws, judged against real images that it never saw."""
