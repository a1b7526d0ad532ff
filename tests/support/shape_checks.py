"""Run-time checks of shapes, as `conftest.py` installs them: jaxtyping with beartype, to which a whole number is a float.

jaxtyping's import hook decorates every function, which doubles the time of the tests; here those alone whose annotations have
shapes. Other types are mypy's business.
"""

import jaxtyping
from beartype import BeartypeConf, beartype

typecheck = beartype(conf=BeartypeConf(is_pep484_tower=True))
_jaxtyped = jaxtyping.jaxtyped


def install():
    """Check shapes in ``ddeq`` from here on: in modules that are imported later."""
    jaxtyping.jaxtyped = _where_there_are_shapes
    return jaxtyping.install_import_hook("ddeq", "shape_checks.typecheck")


def _where_there_are_shapes(*, typechecker):
    """``jaxtyping.jaxtyped``, but for functions and classes without shapes in their annotations."""

    def decorate(decorated):
        annotations = getattr(getattr(decorated, "__func__", decorated), "__annotations__", {})
        shaped = any("[Tensor," in str(annotation) for annotation in annotations.values())
        return _jaxtyped(decorated, typechecker=typechecker) if shaped else decorated

    return decorate
