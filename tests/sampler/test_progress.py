import io

from sampler.progress import ProgressBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal_and_nothing_elsewhere() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        bar = ProgressBar(4, stream)
        bar(2.5)
        bar.close()
    assert "2/4 images" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K"), "the line is cleared at the end"
    assert pipe.getvalue() == ""
