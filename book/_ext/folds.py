"""Folded code says what is in it: the cell's own `code_prompt_show` if it has one, otherwise what can be seen from the cell."""

import re

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform


def name_of(cell: nodes.container) -> str:
    """What a reader finds in the fold, told from the code and from what it puts out."""
    code = "".join(block.astext() for block in cell.findall(nodes.literal_block) if not_output(block))
    output = [part for part in cell.children if part.get("nb_element") == "cell_code_output"]
    if any(True for part in output for _ in part.findall(nodes.image)):
        return "the code of the figure"
    if output:
        return "the code of what stands below"
    return "the setup" if re.match(r"(?:#.*\n|\s)*(?:import|from)\s", code) else "the helper code"


def not_output(block: nodes.Node) -> bool:
    return block.parent.get("nb_element") == "cell_code_source"


class NameFolds(SphinxPostTransform):
    default_priority = 198  # before myst-nb folds the cells

    def run(self, **kwargs):
        default = self.config.nb_code_prompt_show
        for cell in self.document.findall(nodes.container):
            if cell.get("nb_element") == "cell_code" and cell.get("prompt_show") == default:
                name = name_of(cell)
                cell["prompt_show"], cell["prompt_hide"] = f"Show {name}", f"Hide {name}"


def setup(app):
    app.add_post_transform(NameFolds)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
