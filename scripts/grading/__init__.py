"""Grading of submitted notebooks, which `make grade` drives.

`submissions` finds the files, `sandbox` judges each in an isolated process, `judge` is what runs in there, `report`
writes the tables and the page.
"""
