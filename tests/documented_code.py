"""Reads Python examples without running them: whether their imports, names, arguments and attributes exist.

What an expression is follows from annotations: of functions, of dataclasses, of attributes. Where they do not say it
(another package without them, a dictionary), nothing is claimed.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import equipes.calculators
import equipes.data
import equipes.models
import equipes.simulate
import equipes.training
from equipes.errors import InputError

# Where annotations find what modules import for type checkers alone.
_NAMES = {
    name: value
    for module in (
        equipes.simulate,
        equipes.training,
        equipes.calculators,
        equipes.data,
        equipes.models,
        equipes,
    )
    for name, value in ((name, getattr(module, name)) for name in dir(module))
    if isinstance(value, type)
}


class Unknown:
    """Of what nothing is known."""


class Instance:
    """A value of a type, as annotations write it."""

    def __init__(self, hint: Any) -> None:
        options = [one for one in typing.get_args(hint) if one is not type(None)]
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
            hint = options[0] if len(options) == 1 else None
        self.hint = hint
        self.kind = typing.get_origin(hint) or hint


def value_of(hint: Any) -> Any:
    value = Instance(hint)
    return value if isinstance(value.kind, type) and value.kind is not object else Unknown()


class Reader:
    """Goes through the blocks of a document, in order; `mistakes` collects what is wrong.

    Args:
        given: names that the text around the examples gives, with what they are.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.names: dict[str, Any] = {name: value_of(kind) for name, kind in given.items()}
        self.mistakes: list[str] = []

    def read(self, block: str) -> None:
        try:
            tree = ast.parse(block)
        except SyntaxError as error:
            self.mistakes.append(f"{error.text}: {error.msg}")
            return
        for statement in tree.body:
            self.statement(statement)

    def statement(self, node: ast.stmt) -> None:
        match node:
            case ast.Import():
                for alias in node.names:
                    whole = self.imported(alias.name)
                    name = alias.asname or alias.name.split(".")[0]
                    self.names[name] = whole if alias.asname else self.imported(name)
            case ast.ImportFrom():
                module = self.imported(node.module or "")
                for alias in node.names:
                    self.names[alias.asname or alias.name] = self.attribute(module, alias.name, node)
            case ast.Assign():
                value = self.value(node.value)
                for target in node.targets:
                    self.bind(target, value)
            case ast.For():
                self.bind(node.target, self.element(self.value(node.iter)))
                for statement in node.body:
                    self.statement(statement)
            case ast.With():
                for item in node.items:
                    value = self.value(item.context_expr)
                    if item.optional_vars is not None:
                        self.bind(item.optional_vars, value)
                for statement in node.body:
                    self.statement(statement)
            case ast.Expr():
                self.value(node.value)
            case _:
                self.mistakes.append(f"{ast.unparse(node)}: nobody can read this statement; teach the reader")

    def imported(self, name: str) -> Any:
        root = name.split(".")[0]
        if root != "equipes" and find_spec(root) is None:
            return Unknown()  # another package, not installed here
        try:
            return importlib.import_module(name)
        except (ImportError, InputError) as error:
            missing = getattr(error.__cause__ or error, "name", None) or "equipes"
            if missing.split(".")[0] != "equipes":  # what an extra brings, not installed here
                return Unknown()
            self.mistakes.append(f"import {name}: {error}")
            return Unknown()

    def bind(self, target: ast.expr, value: Any) -> None:
        match target:
            case ast.Name():
                self.names[target.id] = value
            case ast.Tuple():
                for part in target.elts:
                    self.bind(part, Unknown())
            case _:
                self.value(target.value)  # type: ignore[attr-defined]  # of an attribute or an element

    def value(self, node: ast.expr) -> Any:
        match node:
            case ast.Name():
                if node.id in self.names:
                    return self.names[node.id]
                if hasattr(builtins, node.id):
                    return getattr(builtins, node.id)
                self.mistakes.append(f"{node.id}: no such name")
                return Unknown()
            case ast.Attribute():
                return self.attribute(self.value(node.value), node.attr, node)
            case ast.Call():
                return self.call(node)
            case ast.Subscript():
                self.value(node.slice)
                return self.element(self.value(node.value))
            case ast.ListComp():
                for generator in node.generators:
                    self.bind(generator.target, self.element(self.value(generator.iter)))
                self.value(node.elt)
                return Unknown()
            case ast.Constant():
                return Instance(type(node.value))
            case _:
                for part in ast.iter_child_nodes(node):
                    if isinstance(part, ast.expr):
                        self.value(part)
                return Unknown()

    def element(self, value: Any) -> Any:
        """What iterating over a value gives, or an element of it."""
        if not isinstance(value, Instance):
            return Unknown()
        arguments = [one for one in typing.get_args(value.hint) if one is not Ellipsis]
        if isinstance(value.kind, type) and issubclass(value.kind, Mapping):
            return value_of(arguments[1]) if len(arguments) == 2 else Unknown()
        return value_of(arguments[0]) if len(set(arguments)) == 1 else Unknown()

    def attribute(self, of: Any, name: str, node: ast.AST) -> Any:
        if isinstance(of, Unknown):
            return of
        if not isinstance(of, Instance):
            if hasattr(of, name):
                return getattr(of, name)
            if isinstance(of, types.ModuleType) and find_spec(f"{of.__name__}.{name}"):
                return importlib.import_module(f"{of.__name__}.{name}")
            self.mistakes.append(f"{ast.unparse(node)}: no {name} in it")
            return Unknown()
        hints = dict(self.hints(of.kind))
        found = inspect.getattr_static(of.kind, name, None)
        if isinstance(found, property) or hasattr(found, "func"):  # cached_property
            return value_of(self.returned(getattr(found, "fget", None) or found.func))
        if name in hints:
            return value_of(hints[name])
        if found is not None:
            return getattr(of.kind, name) if callable(getattr(of.kind, name)) else Unknown()
        if not any(re.search(rf"\bself\.{name}\b.*=", self.source(base)) for base in of.kind.__mro__):
            self.mistakes.append(f"{ast.unparse(node)}: {of.kind.__name__} has no {name}")
        return Unknown()

    def call(self, node: ast.Call) -> Any:
        function = self.value(node.func)
        arguments = [self.value(argument) for argument in node.args]
        for keyword in node.keywords:
            self.value(keyword.value)
        bound = isinstance(node.func, ast.Attribute) and isinstance(self.quietly(node.func.value), Instance)
        if isinstance(function, Instance):
            function, bound = getattr(function.kind, "forward", None) or function.kind.__call__, True
        if isinstance(function, Unknown) or not callable(function):
            return Unknown()
        if not any(isinstance(a, ast.Starred) for a in node.args) and all(k.arg for k in node.keywords):
            try:
                signature = inspect.signature(function)
                first = [None] if bound and not isinstance(function, types.MethodType) else []
                signature.bind(*first, *arguments, **{str(k.arg): None for k in node.keywords})
            except TypeError as error:
                self.mistakes.append(f"{ast.unparse(node)}: {error}")
            except ValueError:  # builtins without a signature
                pass
        if isinstance(function, type):
            return value_of(function)
        return value_of(self.returned(function))

    def quietly(self, node: ast.expr) -> Any:
        before = list(self.mistakes)
        value = self.value(node)
        self.mistakes = before
        return value

    @staticmethod
    def hints(kind: Any) -> Iterator[tuple[str, Any]]:
        for base in reversed(kind.__mro__):
            for name in getattr(base, "__annotations__", {}):
                try:
                    yield name, typing.get_type_hints(base, localns=_NAMES)[name]
                except (NameError, TypeError, AttributeError):
                    yield name, object

    @staticmethod
    def returned(function: Any) -> Any:
        try:
            return typing.get_type_hints(function, localns=_NAMES).get("return", object)
        except (NameError, TypeError, AttributeError):
            return object

    @staticmethod
    def source(kind: type) -> str:
        try:
            return inspect.getsource(kind)
        except (OSError, TypeError):
            return ""
