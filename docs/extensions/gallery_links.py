"""Links to the scripts of the gallery, as files show them, lead to the pages that are made of them."""

import re

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

SCRIPT = re.compile(r"(?:\.\./|/)*(?:docs/)?gallery/(plot_\w+)\.py")


class LinkPages(SphinxTransform):
    """Of ``[why](../gallery/plot_why.py)`` MyST would make a download."""

    default_priority = 400

    def apply(self) -> None:
        for node in list(self.document.findall(addnodes.download_reference)):
            match = SCRIPT.fullmatch(node["reftarget"])
            if match:
                node.replace_self(
                    addnodes.pending_xref(
                        "",
                        nodes.inline("", "", *(child.deepcopy() for child in node.children)),
                        refdomain="std",
                        reftype="doc",
                        reftarget=f"/examples/{match[1]}",
                        refdoc=self.env.docname,
                        refexplicit=True,
                        refwarn=True,
                    )
                )


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_transform(LinkPages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
