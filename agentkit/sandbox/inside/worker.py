"""Run cells of code for the host process, in one namespace that lasts.

Fd 0 is one end of a socket pair. To us: length (4 bytes), request id (4 bytes), source. From us, for each
fact: length, a kind (1 byte), the request id, text. Kinds: R ready, V value of the last expression, E name
of the error, M its message, T its traceback, L its line, D done. Little is imported before the first cell:
each module costs a start some milliseconds.
"""

from __future__ import annotations

import _ast
import _signal as signal  # type: ignore[import-not-found]  # signal itself takes milliseconds to import
import builtins
import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import CodeType, FrameType, ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing takes longer than all the rest
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Any

_MAX_VALUE = 20_000  # characters of one fact
_MAX_FIGURES = 10  # of one cell

_running = False  # a cell is: an interrupt then has something to stop


def _on_interrupt(number: int, frame: FrameType | None) -> None:
    if _running:
        raise KeyboardInterrupt


def serve(control: int, workspace: str, paths: Sequence[str]) -> None:
    """Answer requests from *control* until it is closed. Never returns."""
    output = {fd: os.dup(fd) for fd in (1, 2)}
    sys.path[:] = ["", *sys.path, *paths]
    sys.argv[:] = [""]
    signal.signal(signal.SIGINT, _on_interrupt)
    try:
        cells = Cells(control, workspace, output)
        cells.send(b"R", "")
        while True:
            head = _read(control, 8)
            cells.request = head[4:]
            source = _read(control, int.from_bytes(head[:4], "big"))
            cells.run(source.decode("utf-8", "surrogatepass"))
    finally:  # the code broke the interpreter itself, or the host is gone
        os._exit(70)


def _read(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = os.read(fd, size - len(data))
        if not piece:
            os._exit(0)
        data += piece
    return data


class Cells:
    def __init__(self, control: int, workspace: str, output: dict[int, int]) -> None:
        self.control, self.workspace, self.output = control, workspace, output
        self.request = b"\0\0\0\0"
        self.count = 0
        self.sources: dict[str, str] = {}  # cell name -> source
        self.loop: Any = None  # of top-level awaits
        main = ModuleType("__main__")
        self.namespace = main.__dict__
        self.namespace["__builtins__"] = builtins
        sys.modules["__main__"] = main
        builtins.input = _no_input
        sys.meta_path.insert(
            0, _AfterImport({"linecache": self.fill_linecache, "matplotlib.pyplot": self.patch_pyplot})
        )
        self.open_streams()

    def send(self, kind: bytes, text: str) -> None:
        data = text.encode("utf-8", "backslashreplace")
        data = len(data).to_bytes(4, "big") + kind + self.request + data
        while data:
            data = data[os.write(self.control, data) :]

    def run(self, source: str) -> None:
        global _running
        self.count += 1
        name = f"<cell {self.count}>"
        self.sources[name] = source
        if "linecache" in sys.modules:
            self.fill_linecache(sys.modules["linecache"])
        # whatever the last cell did to it
        signal.signal(signal.SIGINT, _on_interrupt)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        try:
            _running = True
            try:
                value = self.execute(source, name)
                if value is not None:
                    self.namespace["_"] = value
                    self.send(b"V", _shorten(repr(value)))
                self.save_figures()
            finally:
                _running = False
        except BaseException as error:
            self.forget_figures()
            try:
                _running = True  # a __str__ may take for ever, too
                self.report(error, name)
            except BaseException:
                self.send(b"E", type(error).__name__)
            finally:
                _running = False
        self.open_streams()
        self.send(b"D", "")

    def execute(self, source: str, name: str) -> object:
        """Run *source*; the value of its last expression, if that is what it ends in."""
        flags = _ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        tree = compile(source, name, "exec", flags | _ast.PyCF_ONLY_AST, dont_inherit=True)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], _ast.Expr) else None
        if tree.body:
            self.evaluate(compile(tree, name, "exec", flags, dont_inherit=True))
        if last is None:
            return None
        return self.evaluate(compile(_ast.Expression(last.value), name, "eval", flags, dont_inherit=True))

    def evaluate(self, code: CodeType) -> object:
        value = eval(code, self.namespace)
        if not code.co_flags & 0x80:  # CO_COROUTINE: it awaits at top level
            return value
        import asyncio

        if self.loop is None:
            self.loop = asyncio.new_event_loop()
        return self.loop.run_until_complete(value)

    def report(self, error: BaseException, name: str) -> None:
        if isinstance(error, SystemExit) and error.code in (None, 0):
            return
        self.send(b"E", type(error).__name__)
        line = error.lineno if isinstance(error, SyntaxError) and error.filename == name else None
        trace: TracebackType | None = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        step = trace
        while step is not None:
            if step.tb_frame.f_code.co_filename == name:
                line = step.tb_lineno
            if step.tb_next is not None and step.tb_next.tb_frame.f_code.co_filename == __file__:
                step.tb_next = None  # our handler of the interrupt
            step = step.tb_next
        if line is not None:
            self.send(b"L", str(line))
        import traceback

        text = "".join(traceback.format_exception(type(error), error, trace, limit=-20))
        self.send(b"T", text if len(text) <= _MAX_VALUE else "…" + text[-_MAX_VALUE:])
        self.send(b"M", _shorten(str(error)))

    def open_streams(self) -> None:
        """Make fd 1 and 2, and the streams on them, what they were before the cell."""
        for fd, original in self.output.items():
            try:
                same = os.path.sameopenfile(fd, original)
            except OSError:
                same = False
            if not same:
                os.dup2(original, fd)
        for fd, name in ((1, "stdout"), (2, "stderr")):
            stream = getattr(sys, name)
            try:
                stream.flush()
                usable = stream.encoding == "utf-8" and stream.errors == "backslashreplace"
            except BaseException:
                usable = False
            if not usable:
                how = {"encoding": "utf-8", "errors": "backslashreplace", "closefd": False}
                fresh: Any = open(fd, "w", buffering=1, **how)  # type: ignore[call-overload]  # noqa: SIM115
                setattr(sys, name, fresh)
                setattr(sys, f"__{name}__", fresh)

    def fill_linecache(self, linecache: Any) -> None:
        for name, source in self.sources.items():
            linecache.cache[name] = (len(source), None, source.splitlines(True), name)

    def patch_pyplot(self, pyplot: Any) -> None:
        """`plt.show()` saves; a figure that the code saved itself is not saved again."""
        figure = sys.modules["matplotlib.figure"].Figure
        savefig = figure.savefig

        def save(self: Any, *args: Any, **options: Any) -> Any:
            savefig(self, *args, **options)
            self._agentkit_saved = True

        figure.savefig = save
        pyplot.show = lambda *args, **options: self.save_figures()

    def save_figures(self) -> None:
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is None:
            return
        try:
            figures = [pyplot.figure(number) for number in pyplot.get_fignums()]
            unsaved = [figure for figure in figures if not getattr(figure, "_agentkit_saved", False)]
            for figure in unsaved[:_MAX_FIGURES]:
                number = 1
                while os.path.lexists(path := f"{self.workspace}/figure-{number}.png"):
                    number += 1
                figure.savefig(path, bbox_inches="tight")
            if len(unsaved) > _MAX_FIGURES:
                print(f"only the first {_MAX_FIGURES} of {len(unsaved)} figures were saved", file=sys.stderr)
        finally:
            pyplot.close("all")

    def forget_figures(self) -> None:
        pyplot = sys.modules.get("matplotlib.pyplot")
        try:
            if pyplot is not None:
                pyplot.close("all")  # or each later cell would draw them again
        except BaseException:
            pass


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_VALUE else f"{text[:_MAX_VALUE]}… ({len(text)} characters)"


def _no_input(prompt: object = "") -> str:
    raise RuntimeError(
        "input() is not available here: nobody is there to answer; put the value into the code"
    )


class _AfterImport:
    """A finder that calls back right after certain modules have been loaded by whoever imports them."""

    def __init__(self, callbacks: dict[str, Callable[[Any], None]]) -> None:
        self.callbacks = callbacks

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: Any = None
    ) -> ModuleSpec | None:
        callback = self.callbacks.pop(name, None)
        spec = PathFinder.find_spec(name, path) if callback else None
        if callback is None or spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_call(module: ModuleType) -> None:
            execute(module)
            callback(module)

        setattr(spec.loader, "exec_module", execute_and_call)  # noqa: B010
        return spec
