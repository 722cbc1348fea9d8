"""Problem sets that grade themselves: released, collected, run in isolation, graded and reported.

| file | idea |
|---|---|
| `wire.py` | what passes between the grader and a student's process |
| `isolation.py` | a process that can see nothing and reach nobody |
| `worker.py` | what runs in there: the student's cells, and calls of their functions |
| `sandbox.py` | the grader's end: starting such processes, asking them, stopping them |
| `notebooks.py` | what was handed in, and what of it is the student's |
| `checks.py` | one submission against the checks of its problem set |
| `course.py` | nbgrader: releases and the gradebook |
| `reports.py` | grades.csv and the feedback pages |
"""
