"""A choice of things in a row that favours none of them."""


def evenly(num: int, count: int) -> list[int]:
    """Return `num` places of `count`, spread evenly over them; all where there are not more."""
    num = min(num, count)
    return [place * count // num for place in range(num)]
