"""A page's number is part of its place: book/07-ode is chapter 7, the third deeper page is D3, the second appendix A2.

Sphinx would count on through all parts: an appendix would change its number with every new chapter, and a chapter that is not
yet shown would shift all that follow. The parts stand as `numbered` in _toc.yml; here the first number of everything in a page
(title, sections, equations, figures, theorems, exercises) is replaced.
"""

import re

from docutils import nodes

LETTERS = {"book/deeper": "D", "book/appendix": "A"}


def labels(docnames):
    """The label of each numbered page; for a part's own page ("index") only that of its equations."""
    count, found = dict.fromkeys(LETTERS, 0), {}
    for docname in docnames:  # in the order of the table of contents
        folder, _, page = docname.rpartition("/")
        if chapter := re.fullmatch(r"(\d\d)-.*", page):
            found[docname] = int(chapter[1])
        elif folder in LETTERS and page == "index":
            found[docname] = LETTERS[folder]
        elif folder in LETTERS:
            count[folder] += 1
            found[docname] = f"{LETTERS[folder]}{count[folder]}"
    return found


def replace_numbers(app, env):
    """After Sphinx has given out its numbers. Returns the pages that have to be written again."""
    changed = labels(env.toc_secnumbers)
    for docname, label in changed.items():
        unnumbered = docname.endswith("/index")

        def new(number, label=label, unnumbered=unnumbered):
            return (label, *number[1:]) if number and not unnumbered else None

        env.toc_secnumbers[docname] = {place: new(number) for place, number in env.toc_secnumbers[docname].items()}
        for node in [env.titles[docname], *env.tocs[docname].findall(nodes.reference)]:
            node["secnumber"] = new(node.get("secnumber"))
        for numbers in env.toc_fignumbers.get(docname, {}).values():
            numbers.update({name: (label, *number[1:]) for name, number in numbers.items()})
    return list(changed)


def setup(app):
    app.connect("env-get-updated", replace_numbers, priority=900)  # Sphinx's own is at 500
    return {"parallel_read_safe": True, "parallel_write_safe": True}
