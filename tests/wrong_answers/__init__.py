"""Known-wrong answers to the exercises, a module per lab.

WRONG lists (check, wrong answer, what the message must name). RIGHT has the functions that the wrong answers are made
of, without a fault, by the check that accepts them.
"""


def faulty(right, **fault):
    return lambda *args, **kwargs: right(*args, **kwargs, **fault)
