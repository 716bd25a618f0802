"""What an interrupt in the middle of an import leaves: half a package, which Python cannot import again."""

import sys

ONCE = ("numpy", "pandas", "torch")  # a process can load their C extensions once


class HalfImported(ImportError):
    """A package whose import was interrupted. A notebook shows the sentence without a traceback."""

    def _render_traceback_(self) -> list[str]:  # asked for by IPython
        return [f"{type(self).__name__}: {self}"]


class Refuse:
    """A finder of `sys.meta_path` that finds nothing, and refuses to import the other half of a package."""

    @staticmethod
    def find_spec(name: str, path=None, target=None) -> None:
        if name in ONCE and name not in sys.modules and any(each.startswith(f"{name}.") for each in sys.modules):
            raise HalfImported(
                f"The import of {name} was interrupted, and cannot be made good in this process: "
                "choose Kernel > Restart Kernel, then run the cell again.",
                name=name,
            )
