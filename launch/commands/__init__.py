"""The commands of `sonoshard`, put together in `launch.cli`. What they need is imported when they are called."""
