"""The quizzes at the end of the chapters: plain folds in one form, each answer with its explanation (CONTRIBUTING.md)."""

import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLD = re.compile(r"^:::\{dropdown\} (?P<answer>.+)\n(?P<body>(?:.*\n)*?):::$", re.MULTILINE)
EXAMPLE = re.search(r"```\n(## Quiz\n.*?)\n\*\*Question 2\.\*\* …\n```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)[
    1
]


def quiz_of(path: Path) -> str:
    """The section of the quiz, out of the cell that holds it; an empty text where there is none."""
    cells = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown"]
    found = [source for source in cells if re.search(r"^## Quiz$", source, re.MULTILINE)]
    assert len(found) <= 1, f"{path.name} has {len(found)} quizzes; one cell holds them all"
    return re.search(r"^## Quiz$.*?(?=^## |\Z)", found[0], re.MULTILINE | re.DOTALL)[0] if found else ""


def faults(quiz: str) -> list[str]:
    """What is wrong with the form of a quiz, in words."""
    parts = re.split(r"^\*\*Question (\d+)\.\*\*", quiz, flags=re.MULTILINE)
    numbers, questions = parts[1::2], parts[2::2]
    wrong = [] if numbers == [str(i + 1) for i in range(len(numbers))] else [f"questions are numbered {numbers}"]
    if not 3 <= len(questions) <= 5:
        wrong.append(f"{len(questions)} questions, not three to five")
    for number, question in zip(numbers, questions, strict=True):
        folds = list(FOLD.finditer(question))
        if len(folds) != len(re.findall(r"^\W*\{", question, re.MULTILINE)):
            wrong.append(f"question {number}: a fold is not of the form :::{{dropdown}} answer")
        if not FOLD.split(question)[0].strip():
            wrong.append(f"question {number}: no question")
        if not 2 <= len(folds) <= 4:
            wrong.append(f"question {number}: {len(folds)} answers, not two to four")
        verdicts = [match[1] if (match := re.match(r"\*\*(Yes|No)\.\*\* ", fold["body"])) else None for fold in folds]
        if None in verdicts or verdicts.count("Yes") != 1:
            wrong.append(
                f"question {number}: one answer begins with **Yes.** and the others with **No.**, got {verdicts}"
            )
        wrong += [
            f"question {number}: no explanation of {fold['answer']!r}" for fold in folds if len(fold["body"]) < 40 + 8
        ]
    places = {[f["body"].startswith("**Yes") for f in FOLD.finditer(q)].index(True) for q in questions if "**Yes" in q}
    if len(questions) > 2 and len(places) == 1:
        wrong.append("the right answer is always in the same place")
    return wrong


CHAPTERS = re.findall(r"file: (book/\d\d-\S+)", (ROOT / "_toc.yml").read_text())


def test_there_are_chapters():
    assert len(CHAPTERS) > 10


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_chapter_has_a_quiz_of_this_form(chapter):
    quiz = quiz_of(ROOT / f"{chapter}.ipynb")
    assert quiz, f"{chapter} has no quiz"
    assert not faults(quiz)


def seen_length(answer: str) -> int:
    """About how many characters a reader sees of an answer: a formula is short."""
    return len(re.sub(r"\$[^$]*\$", "xxxx", answer))


def test_neither_the_place_nor_the_length_gives_the_answer_away():
    """Whoever always opens the first, middle, last or longest of three answers is wrong more often than right."""
    places, longest = [], []
    for chapter in CHAPTERS:
        for question in re.split(r"^\*\*Question \d+\.\*\*", quiz_of(ROOT / f"{chapter}.ipynb"), flags=re.MULTILINE)[
            1:
        ]:
            folds = list(FOLD.finditer(question))
            if len(folds) == 3:
                right = [fold["body"].startswith("**Yes") for fold in folds].index(True)
                places.append(right)
                longest.append(max(folds, key=lambda fold: seen_length(fold["answer"])) is folds[right])
    assert len(places) > 20
    assert max(places.count(place) for place in range(3)) < len(places) / 2
    assert sum(longest) < len(longest) / 2


def three(question: str) -> str:
    """A quiz of three questions out of one, the right answer not always in the same place."""
    head, *folds = re.split(r"(?=^:::\{dropdown\})", question.split("**Question 1.**")[1], flags=re.MULTILINE)
    turned = [head + "\n" + "\n\n".join(f.strip() for f in folds[k:] + folds[:k]) for k in range(3)]
    return "## Quiz\n\n" + "\n\n".join(f"**Question {i}.**{text}" for i, text in enumerate(turned, start=1)) + "\n"


def test_the_example_of_the_guide_has_the_form():
    assert not faults(three(EXAMPLE))


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("**Yes.**", "**No.**", "begins with"),
        ("**No.** That", "That", "begins with"),
        ("**No.** It would", "**Yes.** It would", "begins with"),
        (":::{dropdown} It", "```{dropdown} It", "not of the form"),
        ("**Question 2.**", "**Question 4.**", "numbered"),
        ("**Question 3.**", "And", "2 questions"),
        (" The pixels of $x_0$ have variance 1. What is the variance of a pixel of $x_t$?", "", "no question"),
        ("It would if each step only added noise. But each step shrinks the image first.", "", "no explanation"),
    ],
)
def test_each_departure_from_the_form_is_named(old, new, complaint):
    quiz = three(EXAMPLE)
    assert old in quiz
    assert any(complaint in fault for fault in faults(quiz.replace(old, new)))
