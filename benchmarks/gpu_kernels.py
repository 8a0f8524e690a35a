"""The Triton kernels: are they right, how long do they take, and how near is that to what the GPU can do?

    python benchmarks/gpu_kernels.py                         on a GPU: check and time every kernel
    python benchmarks/gpu_kernels.py --device cpu --quick    without one: check them through the interpreter
    python benchmarks/gpu_kernels.py --resources             without one: registers and spills, compiled for an H100
    python benchmarks/gpu_kernels.py --kernels triton reference cuequivariance openequivariance     beside others'

Each kernel of the message passing of typical models runs on silicon, and its results are compared with the reference
kernel in float64. On a GPU it is then timed by CUDA events, and so is the reference kernel. What a kernel could not do
without are its bytes (every row of an edge or atom read or written once) over the bandwidth of a copy, and the
operations of its unrolled products over the rate of multiply-adds, both measured here; the larger is its limit, and
`reached` is the limit over the time. Times are medians. Through the interpreter nothing is timed. `--kernels` says
whose message passing with two derivatives, as training has them, is checked and timed as a whole. The symmetric
contractions of MACE follow, compared with plain torch (`gpu_contraction.py`).
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import gpu_contraction
import machine
import systems
import tables
import torch
from torch import Tensor

from equipes.errors import InputError
from equipes.graph import AtomGraph
from equipes.irreps import Irrep, Irreps
from equipes.kernels import MessagePassingForm, peers, reference
from equipes.kernels.splines import RadialSplines, reference_spline_message_passing
from equipes.kernels.triton import launch, operation
from equipes.kernels.triton import splines as on_triton
from equipes.kernels.triton.source import kernel
from equipes.kernels.triton.writer import Kernel, Variant, arguments

NATURAL = [Irrep(l, (-1) ** l) for l in range(5)]
EVEN = [Irrep(l, 1) for l in range(5)]
BOTH = [Irrep(l, p) for l in range(4) for p in (-1, 1)]
# A middle layer of each, and the highest degree that is tested.
FORMS = {
    "NequIP, 32 features, l 2": MessagePassingForm(Irreps((32, irrep) for irrep in BOTH[:6]), 2, BOTH[:6]),
    "SevenNet-0": MessagePassingForm(Irreps("128x0e + 64x1e + 32x2e"), 2, EVEN[:3], parity=1),
    "MACE-MP-0 medium": MessagePassingForm(Irreps("128x0e + 128x1o"), 3, NATURAL[:4]),
    "l 4, 32 channels": MessagePassingForm(Irreps((32, irrep) for irrep in NATURAL), 4, NATURAL),
    "NequIP, 64 features, l 3": MessagePassingForm(Irreps((64, irrep) for irrep in BOTH), 3, BOTH),
}
# The last takes minutes to compile.
USUAL = tuple(FORMS)[:4]
QUICK = {"quick": MessagePassingForm(Irreps("3x0e + 2x1o"), 1, NATURAL[:2])}
CUTOFF = 4.5
N_INTERVALS = 200
KINDS = ("messages", "senders", "edges")
WHOLE = "two derivatives"
# How far results may be from those of the reference kernel in float64, relative to the largest.
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-12}


def variants(double: bool) -> dict[str, Variant]:
    """Every kernel that training and inference call, by name."""
    tangents = {"messages": "wxy", "senders": "wy", "edges": "wxy"}
    plain = {kind: Variant(kind, double) for kind in KINDS}
    second = {f"{kind}, tangents": Variant(kind, double, tangents[kind], ("tangent",)) for kind in KINDS}
    inside = {f"{kind}, splines": Variant(kind, double, wanted="yt", splines=True) for kind in KINDS}
    return plain | second | inside


class Operands:
    """Random numbers for one form on one graph, in float64 and in the number type of the kernels."""

    def __init__(self, form: MessagePassingForm, graph: AtomGraph, device: str, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device)

        n, e, width = graph.n_atoms, graph.n_edges, (form.l_max + 1) ** 2
        self.form, self.graph, self.dtype = form, graph, dtype
        shapes = {"x": (n, form.irreps_in.dim), "y": (e, width), "w": (e, form.n_weights)}
        shapes["g"] = (n, form.irreps_out.dim)
        self.exact = {name: random(*shape) for name, shape in shapes.items()}
        self.exact_tangents = {name: random(*shapes[name]) for name in "xyw"}
        self.values = {name: t.to(dtype) for name, t in self.exact.items()}
        self.tangents = {name: t.to(dtype) for name, t in self.exact_tangents.items()}
        knots = torch.linspace(0, 1, N_INTERVALS + 1, dtype=torch.float64, device=device)
        self.table = RadialSplines(knots, random(1, N_INTERVALS, 6, form.n_weights))
        self.small_table = RadialSplines(knots, self.table.coefficients.to(dtype))
        self.reduced = graph.edge_vectors().norm(dim=1) / CUTOFF
        self.places, self.small_places = (
            table.places(self.reduced) for table in (self.table, self.small_table)
        )

    def run(self, variant: Variant) -> dict[str, Tensor]:
        """The kernel's results by the names of its arguments; one launch."""
        given: dict[str, Any] = {**self.values, **{f"{name}_t": t for name, t in self.tangents.items()}}
        given |= {
            "table": self.small_table.coefficients,
            "interval": self.small_places.interval,
            "place": self.small_places.t,
        }
        for name in ("row_pointer", "sender", "sender_pointer", "sender_order", "receiver"):
            given[name] = getattr(self.graph, name)
        like = {"out": "g", "dx": "x", "dy": "y", "dw": "w", "dt": "place"}
        results = {
            name: torch.empty_like(given[like[name.removesuffix("_t")]])
            for name in arguments(variant)
            if name.removesuffix("_t") in like
        }
        launch.launch(self.form, variant, self.graph.n_atoms, given | results)
        return results

    def expected(self, variant: Variant) -> dict[str, Tensor]:
        """The same by the reference kernel in float64."""
        form, graph = self.form, self.graph
        x, y, w, g = (self.exact[name] for name in "xywg")

        def reverse(*given: Tensor) -> tuple[Tensor, ...]:
            _, pull = torch.func.vjp(lambda *o: reference.message_passing(form, *o, graph), *given)
            return pull(g)

        if variant.splines:
            leaves = [t.detach().requires_grad_() for t in (x, y, self.places.t)]
            moved = type(self.places)(self.places.interval, leaves[2])
            out = reference_spline_message_passing(form, leaves[0], leaves[1], self.table, moved, graph)
            dx, dy, dt = torch.autograd.grad(out, leaves, g)
            found = {"out": out.detach(), "dx": dx, "dy": dy, "dt": dt}
        elif variant.tangents:
            primals, tangents = (x, y, w), tuple(self.exact_tangents[name] for name in "xyw")
            forward = torch.func.jvp(lambda *o: reference.message_passing(form, *o, graph), primals, tangents)
            _, (dx, dy, dw) = torch.func.jvp(reverse, primals, tangents)
            found = {"out_t": forward[1], "dx_t": dx, "dy_t": dy, "dw_t": dw}
        else:
            out = reference.message_passing(form, x, y, w, graph)
            found = dict(zip(("dx", "dy", "dw"), reverse(x, y, w), strict=True)) | {"out": out}
        return {name: found[name] for name in arguments(variant) if name in found}


def work(form: MessagePassingForm, variant: Variant, graph: AtomGraph) -> tuple[float, float]:
    """Bytes that a launch cannot do without, and the floating-point operations of its text.

    Rows are read or written once; of splines an edge's numbers, since the table stays in the cache. Operations are
    those of the lines in loops over edges: one for each + or * of floating-point numbers, times the channels of its
    tile, those of scalars too, because every lane repeats them.
    """
    size = 8 if variant.double else 4
    n, e = graph.n_atoms, graph.n_edges
    rows = {"x": n * form.irreps_in.dim, "g": n * form.irreps_out.dim, "w": e * form.n_weights}
    rows |= {"y": e * (form.l_max + 1) ** 2, "place": e, "out": n * form.irreps_out.dim}
    rows |= {"dx": n * form.irreps_in.dim, "dy": e * (form.l_max + 1) ** 2, "dw": rows["w"], "dt": e}
    names = arguments(variant)
    transferred = size * sum(rows.get(name.removesuffix("_t"), 0) for name in names)
    transferred += 8 * e * sum(name in ("sender", "sender_order", "receiver") for name in names)
    transferred += 4 * e * ("interval" in names)
    lanes, operations, repeats = 0, 0.0, 1
    inner = None
    for line in kernel(form, variant).text.splitlines():
        depth = len(line) - len(line.lstrip())
        if inner is not None and depth <= inner:
            inner, repeats = None, 1
        found = re.search(r"tl\.arange\(0, (\d+)\)", line)
        if found:
            lanes = max(32, int(found[1]))
            # Sections: as many programs as there are tiles; in the loop over channels of `edges`, the loop counts.
        if re.match(r"\s*for c in range\((\d+)\)", line):
            inner, repeats = depth, int(re.findall(r"\d+", line)[0])
        first = re.match(r"\s*if \(section >= (\d+)\) & \(section < (\d+)\)", line)
        if first:
            repeats = int(first[2]) - int(first[1])
        if re.match(r"\s*v\d+ (\+?=) ", line) and "tl." not in line:
            symbols = line.count(" + ") + line.count(" * ") + line.count(" += ")
            operations += symbols * lanes * repeats * e
    return float(transferred), operations


def limits(device: str) -> dict[str, float]:
    """Bytes a second of a copy, and operations a second of multiply-adds in registers."""
    source = torch.empty(1 << 28, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    copy = 2 * source.numel() * 4 / time_of(lambda: target.copy_(source))
    return {"copy": copy} | {
        str(dtype): fused_operations(dtype, device) for dtype in (torch.float32, torch.float64)
    }


_FMA = """def chains(out):
    number = out.dtype.element_ty
    lane = tl.program_id(0) * 128 + tl.arange(0, 128)
    a = lane.to(number) * 1e-9
    b = a + 1.0
    c = a + 2.0
    d = a + 3.0
    for k in range(4096):
        a = a * 0.999 + 0.5
        b = b * 0.998 + 0.5
        c = c * 0.997 + 0.5
        d = d * 0.996 + 0.5
    tl.store(out + lane, a + b + c + d)
"""


def fused_operations(dtype: torch.dtype, device: str) -> float:
    """Four chains of multiply-adds in every lane of a full GPU."""
    function = launch.compiled(Kernel("chains", _FMA, 0))
    programs = 132 * 64
    out = torch.empty(programs * 128, dtype=dtype, device=device)
    return 2 * 4 * 4096 * out.numel() / time_of(lambda: function[(programs,)](out, num_warps=4))


def time_of(call: Callable[[], object], rounds: int = 20) -> float:
    """Seconds of a call, the median by CUDA events after a warm-up."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    times = []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def resources(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Registers and local memory of the kernels asked for, compiled for an H100."""
    rows = []
    for name in options.forms:
        for label, variant in variants(options.double).items():
            if options.variants and label not in options.variants:
                continue
            found = launch.assemble(FORMS[name], variant)
            rows.append({"form": name, "kernel": label, "registers": found.registers})
            rows[-1]["local bytes"] = found.local_bytes
            print(".", end="", flush=True)
    return rows


def check(name: str, operands: Operands) -> dict[str, float]:
    """How far each kernel is from the reference kernel, relative to the largest result.

    Raises:
        InputError: too far.
    """
    errors = {}
    for label, variant in variants(operands.dtype == torch.float64).items():
        found, expected = operands.run(variant), operands.expected(variant)
        errors[label] = max(
            float((found[k].double() - expected[k]).abs().max() / expected[k].abs().max()) for k in expected
        )
        if not errors[label] < TOLERANCES[operands.dtype]:
            raise InputError(
                f"{name}, {label}: off by {errors[label]:.1e} from the reference kernel; set EQUIPES_KERNEL=reference "
                "on this machine, and report it"
            )
        print(".", end="", flush=True)
    return errors


def all_rows(options: argparse.Namespace, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Those of the parts that were asked for."""
    reached = limits(options.device) if options.device != "cpu" else {}
    rows = check_and_time(options, dtype, reached) if "messages" in options.parts else []
    if "contraction" in options.parts:
        rows += gpu_contraction.check_and_time(options, dtype, TOLERANCES[dtype], time_of, reached)
    return rows


def check_and_time(
    options: argparse.Namespace, dtype: torch.dtype, reached: dict[str, float]
) -> list[dict[str, Any]]:
    """One row for each kernel of each form, and on a GPU one for each form of what is made of them."""
    on_gpu = options.device != "cpu"
    cutoff = 2.6 if options.quick else CUTOFF

    def graph_of(atoms: int) -> AtomGraph:
        return AtomGraph.from_atoms(systems.silicon(atoms)[0], cutoff).to(options.device)

    rows = []
    for name, form in (QUICK if options.quick else {name: FORMS[name] for name in options.forms}).items():
        # The reference kernel writes all messages down: it gets a small system.
        small = Operands(form, graph_of(8 if options.quick else 512), options.device, dtype)
        by_triton = "triton" in options.kernels
        errors = check(name, small) if by_triton else {}
        errors |= {label_of(kernel): check_whole(name, small, kernel) for kernel in options.kernels}
        graph = graph_of(options.atoms) if on_gpu else small.graph
        operands = Operands(form, graph, options.device, dtype) if on_gpu else None
        for label, variant in variants(dtype == torch.float64).items() if by_triton else ():
            transferred, operations = work(form, variant, graph)
            row = {"form": name, "kernel": label, "error": errors[label]}
            row |= {"MB": transferred / 1e6, "GFLOP": operations / 1e9}
            if operands is not None:
                seconds = time_of(lambda v=variant, o=operands: o.run(v))
                least = max(transferred / reached["copy"], operations / reached[str(dtype)])
                row |= {"ms": 1e3 * seconds, "limit, ms": 1e3 * least, "reached": least / seconds}
            rows.append(row)
        times = whole(operands, options.kernels) if operands is not None else {}
        for label in dict.fromkeys([*map(label_of, options.kernels), *times]):
            row = {"form": name, "kernel": label, "error": errors.get(label)}
            rows.append(row | ({"ms": times[label]} if label in times else {}))
    return rows


def versions_of(kernels: list[str]) -> list[str]:
    packages = {"triton": ["triton"], "cuequivariance": ["cuequivariance", "cuequivariance-ops-torch-cu12"]}
    return [
        package for kernel in kernels for package in packages.get(kernel, [kernel]) if kernel != "reference"
    ]


def label_of(kernel: str) -> str:
    return WHOLE if kernel == "triton" else f"{WHOLE}, {kernel}"


def message_passing_by(kernel: str) -> Callable[..., Tensor]:
    """Of a form, its operands and a graph."""
    if kernel in peers.PEERS:
        return partial(peers.message_passing, kernel)
    return {"triton": operation, "reference": reference}[kernel].message_passing


def derivatives(
    compute: Callable[..., Tensor], operands: Operands, values: dict[str, Tensor]
) -> list[Tensor]:
    """Messages with their first and second derivatives, as a training step has them."""
    given = [values[name].detach().requires_grad_() for name in "xyw"]
    value = compute(operands.form, *given, operands.graph)
    first = torch.autograd.grad(value, given, values["g"], create_graph=True)
    second = torch.autograd.grad(sum((f**2).sum() for f in first), given)
    return [tensor.detach() for tensor in (value, *first, *second)]


def check_whole(name: str, operands: Operands, kernel: str) -> float:
    """How far messages and two derivatives are from those of the reference kernel in float64.

    Raises:
        InputError: too far; a peer that is not installed, or cannot compute the form.
    """
    if kernel in peers.PEERS and kernel not in peers.installed():
        raise InputError(f"--kernels {kernel}: it is not installed; get it with {peers.PEERS[kernel][1]}")
    found = derivatives(message_passing_by(kernel), operands, operands.values)
    expected = derivatives(reference.message_passing, operands, operands.exact)
    pairs = zip(found, expected, strict=True)
    error = max(float((f.double() - e).abs().max() / e.abs().max()) for f, e in pairs)
    if not error < 10 * TOLERANCES[operands.dtype]:  # squares of derivatives add up here
        raise InputError(
            f"{name}, {kernel}: messages or derivatives off by {error:.1e} from the reference kernel in float64; "
            "do not use it on this machine, and report it"
        )
    return error


def whole(operands: Operands, kernels: list[str]) -> dict[str, float | str]:
    """Milliseconds of message passing with two derivatives by each kernel, and of the reverse pass with splines."""
    form, graph, values = operands.form, operands.graph, operands.values

    def reverse() -> None:
        x, y, g = (values[name] for name in "xyg")
        on_triton.spline_reverse(form, x, y, operands.small_table, operands.small_places, graph, g)

    calls = {
        label_of(kernel): partial(derivatives, message_passing_by(kernel), operands, values)
        for kernel in kernels
    }
    if "triton" in kernels:
        calls["reverse, splines"] = reverse
    times: dict[str, float | str] = {}
    for label, call in calls.items():
        try:
            times[label] = 1e3 * time_of(call)
        except torch.cuda.OutOfMemoryError:
            times[label] = "out of memory"
    return times


def main() -> None:
    parser = tables.parser(__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 .. or, with --quick, cpu")
    parser.add_argument("--atoms", type=int, default=4096, help="of silicon, for the times")
    parser.add_argument("--double", action="store_true", help="float64 in place of float32")
    parser.add_argument(
        "--kernels",
        nargs="+",
        choices=["triton", "reference", *peers.PEERS],
        default=["triton", "reference"],
        help="default: triton and reference",
    )
    parser.add_argument("--resources", action="store_true", help="registers and spills; needs no GPU")
    parser.add_argument(
        "--forms", nargs="+", choices=tuple(FORMS), default=USUAL, help="default: all but the last"
    )
    parser.add_argument(
        "--variants", nargs="+", choices=tuple(variants(False)), help="for --resources; default: all"
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=("messages", "contraction"),
        default=("messages", "contraction"),
        help="default: both",
    )
    options = parser.parse_args()
    tables.check_outputs(options)
    facts = machine.conditions(("equipes", "torch", *versions_of(options.kernels)))
    number = "float64" if options.double else "float32"
    if options.resources:
        rows = resources(options) if "messages" in options.parts else []
        if "contraction" in options.parts:
            rows += gpu_contraction.resources(getattr(torch, number))
        title = f"Kernels compiled for an H100, {number}"
    elif options.device == "cpu":
        if not options.quick:
            raise InputError("the interpreter is slow: add --quick to --device cpu, or use a GPU")
        rows = all_rows(options, getattr(torch, number))
        title = f"Through the interpreter, for correctness alone, {number}"
    else:
        if not torch.cuda.is_available():
            raise InputError("there is no CUDA GPU here; --device cpu --quick checks the kernels without one")
        facts["gpu"] = torch.cuda.get_device_name(options.device)
        rows = all_rows(options, getattr(torch, number))
        title = f"On {facts['gpu']}, {options.atoms} atoms of silicon, {number}, medians"
    columns = [name for name in dict.fromkeys(key for row in rows for key in row) if name != "form"]
    cells = [[f"{row['form']}: {row['kernel']}", *(row.get(name) for name in columns[1:])] for row in rows]
    tables.show(title, columns, cells)
    print(f"\n{machine.sentence(facts)}")
    tables.write_json(options, rows, facts)


if __name__ == "__main__":
    tables.run(main)
