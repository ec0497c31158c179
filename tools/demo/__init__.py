"""`sonoshard demo`: the whole main job on built-in data, and a page of what came of it."""
