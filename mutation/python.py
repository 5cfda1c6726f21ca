"""The changes that are made to Python modules: comparisons, conditions, constants, arguments, statements, results.

Texts for people are left alone, as are annotations, logging and declarations: a change there is no fault, or one that
the type checker sees.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from mutation.change import Change

_COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
}
_OPERATORS: dict[type[ast.operator], ast.operator] = {
    ast.Add: ast.Sub(),
    ast.Sub: ast.Add(),
    ast.Mult: ast.FloorDiv(),
    ast.FloorDiv: ast.Mult(),
    ast.LShift: ast.RShift(),
    ast.RShift: ast.LShift(),
    ast.BitAnd: ast.BitOr(),
    ast.BitOr: ast.BitAnd(),
}
_UNTOUCHED_KEYWORDS = frozenset(
    {"hint", "strict", "frozen", "slots", "daemon", "repr", "errors", "help", "desc", "stacklevel"}
)
_UNTOUCHED_CALLS = ("log.", "logging.", "warnings.")


def changes(path: str, source: bytes) -> list[Change]:
    """Return every change to a module, in the order of its text."""
    finder = _Finder(path, source)
    finder.visit(ast.parse(source))
    return sorted(set(finder.found))


class _Finder(ast.NodeVisitor):
    def __init__(self, path: str, source: bytes) -> None:
        self.path = path
        self.source = source
        self.found: list[Change] = []
        self._starts = [0]
        for line in source.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))

    # ---- where a node is --------------------------------------------------------------------------------------------

    def _span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = self._starts[node.lineno - 1] + node.col_offset
        return start, self._starts[node.end_lineno - 1] + node.end_col_offset

    def _put(self, node: ast.expr | ast.stmt, text: str, kind: str) -> None:
        start, end = self._span(node)
        self.found.append(Change(self.path, node.lineno, start, end, text, kind))

    # ---- what is left alone -----------------------------------------------------------------------------------------

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for part in (*node.args.defaults, *node.args.kw_defaults, *node.body):
            if part is not None:
                self.visit(part)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        if not any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets):
            self.visit(node.value)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Leave f-strings alone: they are texts for people, and their positions are not exact before Python 3.12."""

    def visit_Assert(self, node: ast.Assert) -> None:
        """Leave assertions alone: they state what is known to hold."""

    # ---- expressions ------------------------------------------------------------------------------------------------

    def visit_Compare(self, node: ast.Compare) -> None:
        for position, operator in enumerate(node.ops):
            text = _COMPARISONS[type(operator)]
            left = node.left if position == 0 else node.comparators[position - 1]
            start, end = self._span(left)[1], self._span(node.comparators[position])[0]
            between = self.source[start:end]
            kept = between.strip()
            if b"(" in kept or b")" in kept or b"\n" in between:
                continue
            self.found.append(Change(self.path, left.lineno, start, end, f" {text} ", "comparison"))
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        other: ast.boolop = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        self._put(node, f"({ast.unparse(ast.BoolOp(other, node.values))})", "condition")
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):
            self._put(node, f"({ast.unparse(node.operand)})", "condition")
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        other = _OPERATORS.get(type(node.op))
        texts = (ast.JoinedStr, ast.List, ast.Tuple)
        if other is not None and not any(_is_text(side) or isinstance(side, texts) for side in (node.left, node.right)):
            self._put(node, f"({ast.unparse(ast.BinOp(node.left, other, node.right))})", "arithmetic")
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._put(node.test, f"(not ({ast.unparse(node.test)}))", "condition")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if node.value is True or node.value is False:
            self._put(node, str(not node.value), "constant")
        elif isinstance(node.value, int):
            self._put(node, str(node.value + 1), "constant")

    def visit_Call(self, node: ast.Call) -> None:
        for keyword in node.keywords:
            if keyword.arg is None or keyword.arg in _UNTOUCHED_KEYWORDS or _is_text(keyword.value):
                continue
            rest = [other for other in node.keywords if other is not keyword]
            self._put(node, ast.unparse(ast.Call(node.func, node.args, rest)), f"argument {keyword.arg}")
        self.generic_visit(node)

    # ---- statements -------------------------------------------------------------------------------------------------

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) == "TYPE_CHECKING":
            return
        leaves = isinstance(node.body[-1], ast.Raise | ast.Return | ast.Continue | ast.Break)
        if leaves:
            self._put(node.test, "False", "guard")
        else:
            self._put(node.test, f"not ({ast.unparse(node.test)})", "condition")
        if len(node.body) == 1 and leaves:
            self.visit(node.test)
            if isinstance(node.body[0], ast.Return):
                self.visit(node.body[0])
            for statement in node.orelse:
                self.visit(statement)
        else:
            self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Call) or ast.unparse(node.value).startswith(_UNTOUCHED_CALLS):
            return
        self._put(node, "pass", "statement")
        self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        self._put(node, "pass", "raise")

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._put(node, "pass", "statement")
        self.generic_visit(node)

    def visit_Continue(self, node: ast.Continue) -> None:
        self._put(node, "break", "statement")

    def visit_Break(self, node: ast.Break) -> None:
        self._put(node, "continue", "statement")

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is None:
            return
        constant = node.value.value if isinstance(node.value, ast.Constant) else ...
        if constant is not None and constant is not False:  # None is as false
            self._put(node, "return None", "result")
        self.generic_visit(node)

    def generic_visit(self, node: ast.AST) -> None:
        children: Iterator[ast.AST] = ast.iter_child_nodes(node)
        for child in children:
            if isinstance(node, ast.ClassDef) and child in node.decorator_list:
                continue
            self.visit(child)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str | bytes))
