"""How training state is divided among the ranks, a file a ZeRO stage."""
