"""A row of the results: what came of one exercise of one submission, and the time that it may take."""

SOLVED, WRONG, OPEN = "solved", "wrong", "open"  # what a check says
MISSING = "missing"  # the exercise's cell is not in the notebook
STOPPED = "stopped"  # a limit, or the end of the process, came before the verdict
PATCHED = "patched"  # the student's code changed what judges it
UNREADABLE = "unreadable"  # the file as a whole
CPU_SECONDS = 15  # of the processor, for one exercise; its check allows an answer about three
CLOCK_SECONDS = 60  # by the clock
TOO_LONG = f"The code did not end: it was stopped ({CPU_SECONDS} s of the processor, {CLOCK_SECONDS} s by the clock)."
LONGEST = 2000  # characters of a sentence


def row(exercise: str, result: str, sentence: str = "", note: str = "") -> dict[str, str]:
    """sentence: what the student saw below the check, or why there is no verdict. note: what else to know."""
    short = {name: text[:LONGEST] for name, text in (("sentence", sentence), ("note", note))}
    return {"exercise": exercise, "result": result, **short}
