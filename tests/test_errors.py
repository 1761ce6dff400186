"""What users see of errors."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ram_tune.errors import error_line

TRACEBACK = """\
Traceback (most recent call last):
  File "loop.py", line 3, in fit
    raise ValueError("inner")
ValueError: inner

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "worker.py", line 9, in run
    step()
    ^^^^^^
ram_tune.training.loop.NotFiniteError: epoch 1, batch 2: the loss is nan.
Lower it.
  Note: indented

"""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (TRACEBACK, "NotFiniteError: epoch 1, batch 2: the loss is nan."),
        ('Traceback (most recent call last):\n  File "x", line 1\n    f()\nKeyboardInterrupt\n', "KeyboardInterrupt"),
        ("RuntimeError: CUDA error: out of memory\nCompile with DSA\n", "RuntimeError: CUDA error: out of memory"),
        (
            'ray.exceptions.RayTaskError(OSError): ray::f()\n  File "x", line 1\n    f()\nOSError: disk\n',
            "OSError: disk",
        ),
        ("ray.exceptions.RayTaskError(OSError): ray::f() [a.b: c]", "RayTaskError(OSError): ray::f() [a.b: c]"),
        ("not run: what it starts from failed", "not run: what it starts from failed"),
        ("first\nlast\n\n", "last"),
        ("Traceback (most recent call last):", ""),
        ("  only indented", "only indented"),
    ],
)
def test_the_line_of_an_error_that_says_what_went_wrong(error, line):
    assert error_line(error) == line


def test_a_reader_that_has_read_enough_is_no_error():
    code = (
        "from ram_tune.errors import command_line; command_line(lambda: [print('x' * 9999) for _ in range(999)] and 0)"
    )
    command = f'{sys.executable} -c "{code}" | head -n 1 | wc -l'
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("1", "")
