"""A network as a functional graph of ATen operators, run node by node on any batch.

`torch.export` traces the network once, with a batch of any size; parameters and buffers are inputs of the graph, so one
program serves every set of weights of an architecture.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor, fx, nn

from tlkd.errors import BadInput

SHAPE_ONLY = frozenset({"sym_size", "new_zeros", "new_ones", "new_full", "new_empty", "zeros_like", "ones_like",
                        "full_like", "empty_like", "fill", "copy"})
"""Operators that take nothing but the shape of their first input."""
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class Program:
    """A traced network.

    A node is *active* where its value depends on the image's pixels; everything else is a constant of the weights and
    of the size of the batch.
    """

    name: str
    graph: fx.Graph
    image: fx.Node
    output: fx.Node
    sources: Mapping[fx.Node, str]  # placeholders of parameters and buffers -> their name in the network
    lifted: Mapping[fx.Node, Tensor]  # placeholders of constants that the network made while it was traced
    shape: tuple[int, ...]  # of one image: channel, height, width
    interleaved: set[fx.Node] = field(default_factory=set)  # active nodes that do not hold image after image

    @cached_property
    def active(self) -> frozenset[fx.Node]:
        """The nodes that depend on the image's pixels."""
        found = {self.image}
        for node in self.graph.nodes:
            if node.op == "call_function" and any(each in found for each in read_by(node)):
                found.add(node)
        return frozenset(found)

    @cached_property
    def sized(self) -> frozenset[fx.Node]:
        """The nodes that depend on the size of the batch."""
        found = {self.image}
        for node in self.graph.nodes:
            if any(each in found for each in node.all_input_nodes):
                found.add(node)
        return frozenset(found)

    def inputs(self, node: fx.Node) -> list[fx.Node]:
        """The active nodes whose values an operator reads."""
        return [each for each in read_by(node) if each in self.active]

    @cached_property
    def steps(self) -> tuple[fx.Node, ...]:
        """The active nodes that lead from the image to the output, in order."""
        wanted = {self.output}
        for node in reversed(self.graph.nodes):
            if node in wanted:
                wanted |= set(read_by(node))
        return tuple(node for node in self.graph.nodes
                     if node in wanted and node in self.active and node is not self.image)

    @cached_property
    def last_uses(self) -> Mapping[fx.Node, tuple[fx.Node, ...]]:
        """For each step the values that nothing needs after it."""
        last: dict[fx.Node, fx.Node] = {}
        for node in self.steps:
            last |= dict.fromkeys(self.inputs(node), node)
        found: dict[fx.Node, list[fx.Node]] = {}
        for value, user in last.items():
            found.setdefault(user, []).append(value)
        return {user: tuple(values) for user, values in found.items()}

    def batch_axis(self, node: fx.Node) -> tuple[int, int]:
        """The axis of a value that the batch lies on, outermost, and how many entries of that axis an image has."""
        shape = node.meta["val"].shape
        axes = [axis for axis, size in enumerate(shape) if not isinstance(size, int)]
        if len(axes) != 1:
            raise self.mixing(node)
        return axes[0], evaluate(shape[axes[0]], 1)

    def mixing(self, node: fx.Node) -> BadInput:
        """What to say of an operator that lets one image of a batch affect what becomes of another."""
        return BadInput(f"{self.name}: {operator_name(node)} mixes the images of a batch; it cannot be explained")


def read_by(node: fx.Node) -> list[fx.Node]:
    """The nodes whose values an operator reads, each once; where it takes but the shape of its first, not that one."""
    if node.op == "call_function" and operator_name(node) in SHAPE_ONLY:
        found: dict[fx.Node, None] = {}
        fx.node.map_arg((node.args[1:], node.kwargs), found.setdefault)
        return list(found)
    return node.all_input_nodes


def operator_name(node: fx.Node) -> str:
    """An operator's plain name, e.g. `conv2d`."""
    packet = getattr(node.target, "_schema", None)
    return packet.name.partition("::")[2] if packet is not None else getattr(node.target, "__name__", str(node.target))


def evaluate(size: Any, batch: int) -> Any:
    """A number that may depend on the size of the batch, for a batch of this size."""
    if isinstance(size, torch.SymInt):
        return int(_substituted(size.node.expr, batch))
    return float(_substituted(size.node.expr, batch)) if isinstance(size, torch.SymFloat) else size


@lru_cache(maxsize=4096)  # sympy takes longer for it than a small operator takes to run
def _substituted(expression: Any, batch: int) -> Any:
    return expression.subs(dict.fromkeys(expression.free_symbols, batch))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a network into eval mode, module by module, and back as it was."""
    before = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in before:
            module.training = False
        yield
    finally:
        for module, mode in before:
            module.training = mode


def trace(model: nn.Module, shape: tuple[int, ...], name: str | None = None) -> Program:
    """Trace a network that maps images `[B, *shape]` to outputs `[B, output]`.

    The network is left as it was. Raises `BadInput` where it cannot be traced, draws random numbers, changes its own
    buffers, or gives an image another output beside other images.
    """
    name = name or getattr(model, "name", None) or type(model).__name__
    like = _first_of({**dict(model.named_parameters()), **dict(model.named_buffers())})
    example = torch.zeros(2, *shape, device=like.device, dtype=like.dtype)
    with evaluating(model), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            exported = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                                           strict=False).run_decompositions({})
        except Exception as error:  # the tracer lets every kind through
            line = next((text.strip() for text in str(error).splitlines() if text.strip()), "")
            raise BadInput(f"{name}: cannot be traced for an explanation ({type(error).__name__}: {line})") from error
    graph, signature = exported.graph, exported.graph_signature
    for node in graph.nodes:
        if node.op not in ("placeholder", "call_function", "output") or _draws(node):
            what = "draws random numbers" if _draws(node) else "cannot be traced"
            raise BadInput(f"{name}: {operator_name(node)} {what}; it cannot be explained")
    if signature.buffers_to_mutate:
        changed = ", ".join(signature.buffers_to_mutate.values())
        raise BadInput(f"{name}: changes its own buffers while it runs ({changed}); it cannot be explained")
    for node in graph.nodes:
        if node.target is torch.ops.aten.view.default:  # how values lie in memory was traced, too; it need not hold
            node.target = torch.ops.aten.reshape.default
    _fold_batch_norms(graph)
    # Before what the network returns stand the inputs that it writes into, which nobody reads after it.
    returned = next(node for node in graph.nodes if node.op == "output").args[0][len(signature.user_inputs_to_mutate):]
    held = returned[0].meta["val"] if len(returned) == 1 and isinstance(returned[0], fx.Node) else None
    if not isinstance(held, Tensor) or [isinstance(size, int) for size in held.shape] != [False, True]:
        raise BadInput(f"{name}: an explanation needs a network with outputs [image, class]")
    placeholders = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    named = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    lifted = {placeholders[key]: exported.constants[value]
              for key, value in signature.inputs_to_lifted_tensor_constants.items()}
    program = Program(name=name, graph=graph, image=placeholders[signature.user_inputs[0]], output=returned[0],
                      sources={placeholders[key]: value for key, value in named.items()}, lifted=lifted, shape=shape)
    if program.output not in program.active:
        raise BadInput(f"{name}: its outputs do not depend on the image; there is nothing to explain")
    with torch.no_grad():
        _keep_apart(program, Constants.of(program, model))
    return program


def _first_of(state: Mapping[str, Tensor]) -> Tensor:
    """The tensor whose device and precision are the network's."""
    return next((each for each in state.values() if each.is_floating_point()), torch.zeros(()))


def _draws(node: fx.Node) -> bool:
    """Whether an operator draws random numbers; dropout that is switched off does not."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    named = [each.name for each in node.target._schema.arguments]  # type: ignore[union-attr]
    arguments = {**dict(zip(named, node.args, strict=False)), **node.kwargs}
    if "dropout" in operator_name(node):
        return arguments.get("train") is not False
    return operator_name(node) != "scaled_dot_product_attention" or bool(arguments.get("dropout_p"))


def _keep_apart(program: Program, constants: "Constants") -> None:
    """Find the nodes that do not hold image after image; refuse a network whose images affect each other.

    Of two images one is made nan, which spreads to whatever depends on it.
    """
    draws = torch.Generator().manual_seed(0)
    image = constants.cast(torch.randn(1, *program.shape, generator=draws))
    gone = torch.full_like(image, torch.nan)

    def not_a_number(*images: Tensor) -> dict[fx.Node, list[bool]]:
        """For each node whether the rows of either image hold some nan."""
        found = {}
        for node, value in each_step(program, constants, torch.cat(images)):
            if isinstance(value, Tensor):
                axes = [axis for axis, size in enumerate(node.meta["val"].shape) if not isinstance(size, int)]
                rows = value.chunk(2, axes[0]) if len(axes) == 1 else (value, value)
                found[node] = [bool(each.isnan().any()) for each in rows]
        return found

    clean, *spread = not_a_number(image, image), not_a_number(image, gone), not_a_number(gone, image)
    for side in (0, 1):
        program.interleaved.update(node for node, rows in spread[side].items() if rows[side] and not clean[node][side])
    if program.output in program.interleaved:
        raise program.mixing(program.output)
    alone, beside = (run(program, constants, image.expand(number, *program.shape), frozenset())[program.output][0]
                     for number in (1, 3))
    tolerance = 0.01 * float(beside.nan_to_num().abs().max())
    if not torch.allclose(alone, beside, rtol=0.01, atol=tolerance, equal_nan=True):
        raise BadInput(f"{program.name}: what it makes of an image depends on the size of the batch; it cannot be "
                       "explained")


def folded_weight(weight: Tensor, scale: Tensor | None, variance: Tensor, epsilon: float) -> Tensor:
    """A convolution's weight that does what batch normalisation by stored statistics did after it."""
    factor = torch.rsqrt(variance + epsilon) * (1 if scale is None else scale)
    return weight * factor.reshape(-1, *[1] * (weight.ndim - 1))


def folded_bias(bias: Tensor | None, scale: Tensor | None, shift: Tensor | None, mean: Tensor, variance: Tensor,
                epsilon: float) -> Tensor:
    """The bias that goes with `folded_weight`."""
    factor = torch.rsqrt(variance + epsilon) * (1 if scale is None else scale)
    return ((0 if bias is None else bias) - mean) * factor + (0 if shift is None else shift)


def _fold_batch_norms(graph: fx.Graph) -> None:
    """Fold every batch normalisation that alone follows a convolution into it: one pass over the activations less."""
    for node in list(graph.nodes):
        before = node.args[0] if node.op == "call_function" and node.args else None
        if (operator_name(node) != "_native_batch_norm_legit_no_training" or not isinstance(before, fx.Node)
                or operator_name(before) != "conv2d" or len(before.users) != 1
                or any(operator_name(user) != "getitem" or user.args[1] != 0 for user in node.users)):
            continue
        scale, shift, mean, variance, _, epsilon = node.args[1:7]
        weight, bias, *rest = before.args[1:] if len(before.args) > 2 else (before.args[1], None)
        with graph.inserting_before(node):  # not before the convolution: what scales may be computed after it
            folded = (graph.call_function(folded_weight, (weight, scale, variance, epsilon)),
                      graph.call_function(folded_bias, (bias, scale, shift, mean, variance, epsilon)))
            for made, like in zip(folded, (weight, mean), strict=True):
                made.meta["val"] = like.meta["val"]
            new = graph.call_function(before.target, (before.args[0], *folded, *rest),  # type: ignore[arg-type]
                                      dict(before.kwargs))
            new.meta["val"] = before.meta["val"]
        for user in list(node.users):
            user.replace_all_uses_with(new)
            graph.erase_node(user)
        graph.erase_node(node)
        graph.erase_node(before)


@dataclass(eq=False)
class Constants:
    """All of a program that does not depend on pixels: weights, what is computed from them, and sizes of batches."""

    program: Program
    state: Mapping[str, Tensor]
    device: torch.device
    dtype: torch.dtype
    _values: dict[tuple[fx.Node, int], Any] = field(default_factory=dict)

    @classmethod
    def of(cls, program: Program, model: nn.Module, dtype: torch.dtype | None = None) -> "Constants":
        """The constants of a program for a network's present weights, in its own precision or another."""
        state = {**dict(model.named_parameters(remove_duplicate=False)),
                 **dict(model.named_buffers(remove_duplicate=False))}
        missing = sorted(set(program.sources.values()) - set(state))
        if missing:
            raise BadInput(f"{program.name}: was traced from another network: {missing[0]} is missing")
        first = _first_of(state)
        return cls(program, {name: each.detach() for name, each in state.items()}, first.device, dtype or first.dtype)

    def cast(self, value: Tensor) -> Tensor:
        """A tensor on the network's device, in the precision that is computed in where it is a floating-point one."""
        return value.to(self.device, self.dtype if value.is_floating_point() else None)

    def resolve(self, arguments: Any, batch: int, values: Mapping[fx.Node, Any]) -> Any:
        """A node's arguments with every node replaced by its value for a batch of this size."""
        def one(item: Any) -> Any:
            if isinstance(item, fx.Node):
                return values[item] if item in values else self.value(item, batch)
            if isinstance(item, torch.dtype) and item in FLOATS:  # all is computed in one precision
                return self.dtype
            return self.device if isinstance(item, torch.device) else item

        return fx.node.map_aggregate(arguments, one)

    def value(self, node: fx.Node, batch: int) -> Any:
        """A constant node's value; `batch` matters where it depends on the size of the batch."""
        if node in self.program.active:
            raise ValueError(f"{self.program.name}: {node} is no constant")
        held = node.meta.get("val")
        if isinstance(held, torch.SymInt | torch.SymFloat | int | float) and not isinstance(held, bool):
            return evaluate(held, batch)
        key = (node, batch if node in self.program.sized else 0)
        if key not in self._values:
            if node in self.program.sources:
                self._values[key] = self.cast(self.state[self.program.sources[node]])
            elif node in self.program.lifted:
                self._values[key] = self.cast(self.program.lifted[node])
            else:
                self._values[key] = self.call(node, batch, {})
        return self._values[key]

    def call(self, node: fx.Node, batch: int, values: Mapping[fx.Node, Any]) -> Any:
        """What an operator gives for these values of the active nodes that it reads."""
        first = node.args[0] if node.args and operator_name(node) in SHAPE_ONLY else None
        if isinstance(first, fx.Node) and first in self.program.active:
            values = {**values, first: self._stand_in(first, batch)}
        return node.target(*self.resolve(node.args, batch, values),  # type: ignore[operator]
                           **self.resolve(node.kwargs, batch, values))

    def _stand_in(self, node: fx.Node, batch: int) -> Tensor:
        shape = [evaluate(size, batch) for size in node.meta["val"].shape]
        return torch.zeros((), dtype=self.dtype, device=self.device).expand(shape)


def each_step(program: Program, constants: Constants, images: Tensor,
              keep: frozenset[fx.Node] = frozenset()) -> Iterator[tuple[fx.Node, Any]]:
    """Run a program on images `[B, *shape]`: each active node with its value, which is let go when it is not needed."""
    batch, values = len(images), {program.image: images}
    yield program.image, images
    for node in program.steps:
        values[node] = constants.call(node, batch, values)
        yield node, values[node]
        for done in program.last_uses.get(node, ()):
            if done not in keep:
                values.pop(done, None)


def run(program: Program, constants: Constants, images: Tensor, keep: frozenset[fx.Node]) -> dict[fx.Node, Tensor]:
    """The values of the nodes in `keep`, and of the output, on images `[B, *shape]`."""
    wanted = keep | {program.output}
    return {node: value for node, value in each_step(program, constants, images, wanted) if node in wanted}
