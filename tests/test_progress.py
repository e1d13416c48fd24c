import io

import pytest

from nas.progress import LineProgress, SilentProgress, TerminalProgress, choose_progress, ended


class FakeClock:
    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


def lines_of(stream):
    return stream.getvalue().splitlines()


def test_lines_come_now_and_then_with_the_time_left():
    stream, clock = io.StringIO(), FakeClock()
    progress = LineProgress(stream, every_s=10, clock=clock)
    progress.start("search", 100)
    for done in range(1, 41):
        clock.now_s += 1
        progress.update(done, best=0.51234567)
    progress.finish()
    lines = lines_of(stream)
    assert lines[0] == "phase=search total=100"
    assert lines[1] == "phase=search done=10/100 left_s=90 best=0.5123"
    assert len(lines) == 1 + 4 + 1
    assert lines[-1] == "phase=search done=40 took_s=40 best=0.5123"


def test_the_time_left_of_a_resumed_phase_counts_only_what_was_done_now():
    stream, clock = io.StringIO(), FakeClock()
    progress = LineProgress(stream, every_s=10, clock=clock)
    progress.start("search", 100)
    clock.now_s = 1
    progress.update(81)
    clock.now_s = 10
    progress.update(90)
    assert "left_s=10" in lines_of(stream)[-1]


def test_a_phase_without_steps_counts_none():
    stream = io.StringIO()
    progress = LineProgress(stream, clock=FakeClock())
    progress.start("export")
    progress.finish("whole")
    assert lines_of(stream) == ["phase=export", "phase=export took_s=0 message=whole"]


def test_a_phase_ends_with_its_block_even_when_interrupted():
    stream = io.StringIO()

    def interrupted():
        with ended(LineProgress(stream, clock=FakeClock())) as progress:
            progress.start("search")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert lines_of(stream)[-1] == "phase=search took_s=0"
    with ended(None) as progress:
        progress.start("said to nobody")


def test_values_with_blanks_are_quoted_so_that_a_line_can_be_split():
    stream = io.StringIO()
    LineProgress(stream).note('a "b" = c')
    assert stream.getvalue() == 'note="a \\"b\\" = c"\n'


@pytest.mark.parametrize("kind", [LineProgress, TerminalProgress])
def test_finish_without_a_phase_and_update_without_a_phase_say_nothing(kind):
    stream = io.StringIO()
    progress = kind(stream)
    progress.finish()
    progress.update(3)
    progress.finish("again")
    assert stream.getvalue() == ""


@pytest.mark.parametrize("kind", [LineProgress, TerminalProgress])
def test_a_phase_leaves_its_name_and_message(kind):
    stream = io.StringIO()
    progress = kind(stream)
    progress.start("measure", 2)
    progress.update(1, model="[bold]L2-D128")
    progress.note("one is noisy")
    progress.start("next")
    progress.finish("all done")
    text = stream.getvalue()
    assert "measure" in text
    assert "one is noisy" in text
    assert "all done" in text


def test_terminal_progress_runs_no_thread_of_its_own():
    import threading

    progress = TerminalProgress(io.StringIO())
    before = threading.active_count()
    progress.start("measure", 2)
    assert threading.active_count() == before
    progress.finish()


def test_silence_and_lines_are_chosen(monkeypatch, capsys):
    assert isinstance(choose_progress(quiet=True), SilentProgress)
    assert isinstance(choose_progress(), LineProgress)
    choose_progress().start("x")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "phase=x" in captured.err


def test_a_terminal_gets_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("sys.stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(choose_progress(), TerminalProgress)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(choose_progress(), LineProgress)
