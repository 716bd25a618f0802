"""What the code cells of a lesson need of each other."""

import symtable

from IPython.core.inputtransformer2 import TransformerManager

to_python = TransformerManager().transform_cell  # without magics


def names_in(source: str) -> tuple[set[str], set[str]]:
    """Give the global names that a cell binds, and those that it uses, also within its functions."""
    bound, used = set(), set()
    tables = [symtable.symtable(to_python(source), "cell", "exec")]
    for table in tables:  # grows
        tables += table.get_children()
        is_module = table.get_type() == "module"
        for symbol in table.get_symbols():
            if is_module and (symbol.is_assigned() or symbol.is_imported()):
                bound.add(symbol.get_name())
            if symbol.is_referenced() and (is_module or symbol.is_global()):
                used.add(symbol.get_name())
    return bound, used


def needed(sources: list[str], wanted: set[int]) -> list[int]:
    """Give the places of these cells and of those that bind what they use, in their order."""
    found, names = [], set()
    for place in reversed(range(len(sources))):
        bound, used = names_in(sources[place])
        if place in wanted or bound & names:
            names |= used
            found.insert(0, place)
    return found
