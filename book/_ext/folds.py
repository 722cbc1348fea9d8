"""Folded cells that follow one another are one fold, and it says what is in it, as far as can be seen from the code.

A cell whose metadata have a `code_prompt_show` of their own keeps it, and stays by itself.
"""

import re
from collections.abc import Iterator

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform


class OneFold(SphinxPostTransform):
    default_priority = 198  # before myst-nb folds the cells

    def run(self, **kwargs):
        cells = [node for node in self.document.findall(nodes.container) if node.get("nb_element") == "cell_code"]
        names: dict[nodes.container, list[str]] = {}
        for cell in cells:
            if cell.get("prompt_show") != self.config.nb_code_prompt_show:
                continue
            found = list(dict.fromkeys([*names.pop(cell, []), name_of(cell)]))
            following = cell.next_node(siblings=True, descend=False)
            if not has_output(cell) and following in cells and can_take(following, cell):
                source_of(following).insert(0, source_of(cell).children)
                cell.parent.remove(cell)
                names[following] = found
            else:
                name = " and ".join(found[:1] + [name for name in found[1:] if name != "the helper code"])
                cell["prompt_show"], cell["prompt_hide"] = f"Show {name}", f"Hide {name}"


def can_take(following: nodes.container, cell: nodes.container) -> bool:
    """Whether the code of `cell` can stand with that of the next one, which must be folded, too."""
    return following.get("prompt_show") == cell["prompt_show"] and following.get("hide_mode") in ("input", "all")


def name_of(cell: nodes.container) -> str:
    """What a reader finds in the fold, told from the code and from what it puts out."""
    if any(True for part in outputs(cell) for _ in part.findall(nodes.image)):
        return "the code of the figure"
    if has_output(cell):
        return "the code of what stands below"
    return "the setup" if re.match(r"(?:#.*\n|\s)*(?:import|from)\s", source_of(cell).astext()) else "the helper code"


def source_of(cell: nodes.container) -> nodes.container:
    return next(part for part in cell.children if part.get("nb_element") == "cell_code_source")


def outputs(cell: nodes.container) -> Iterator[nodes.container]:
    return (part for part in cell.children if part.get("nb_element") == "cell_code_output")


def has_output(cell: nodes.container) -> bool:
    return next(outputs(cell), None) is not None


def setup(app):
    app.add_post_transform(OneFold)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
