"""Run cells of code for the host process, in one namespace that lasts.

Fd 0 is one end of a socket pair. To us: length (4 bytes), request id (4 bytes), source; after SHELL, a shell's;
after SETUP, what to get ready. From us, for each fact: length, a kind (1 byte), the request id, text. Kinds:
R ready, V value of the last expression, A of the last assignment, C exit status of the shell, E name of the error,
M its message, T its traceback, L its line, H what else to know about it, S what
the variables of that line hold, N the names of the variables, D done,
X the worker has died (from its template, see preload.py). Little is imported before the first cell: each module
costs a start some milliseconds.
"""

from __future__ import annotations

import _ast
import _signal as signal  # type: ignore[import-not-found]  # signal itself takes milliseconds to import
import builtins
import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from time import sleep as _sleep  # the code may replace the module's
from types import CodeType, FrameType, ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing takes longer than all the rest
    from collections.abc import Callable, Sequence
    from typing import Any

HOST_GONE = 72  # exit status
SHELL, SETUP = "\0$", "\0%"  # no Python source begins so

_MAX_VALUE = 60_000  # characters of one fact
_MAX_FIGURES = 10  # of one cell
_MAX_NAMES = 1000  # characters
_OURS = os.path.dirname(__file__)
_NETWORK_ERRORS = (100, 101, 113)  # ENETDOWN, ENETUNREACH, EHOSTUNREACH
_CJK_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN"),
    *("WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback", "SimHei", "Microsoft YaHei"),
    *("AR PL UMing CN", "IPAexGothic", "IPAGothic", "NanumGothic", "Unifont"),
)

_OF_A_VALUE = (LookupError, TypeError, AttributeError)  # what comes of taking data for other data

_running = False  # a cell is: an interrupt then has something to stop


def _on_interrupt(number: int, frame: FrameType | None) -> None:
    if _running:
        raise KeyboardInterrupt


def read_frame(control: int) -> tuple[bytes, str]:
    """The next request: its id, its source. Ends the process when there will be none."""
    head = _read(control, 8)
    return head[4:], _read(control, int.from_bytes(head[:4], "big")).decode("utf-8", "surrogatepass")


def _read(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = os.read(fd, size - len(data))
        if not piece:
            os._exit(HOST_GONE)
        data += piece
    return data


def send_fact(control: int, kind: bytes, request: bytes, text: str) -> None:
    body = text.encode("utf-8", "backslashreplace")
    data = len(body).to_bytes(4, "big") + kind + request + body
    while data:
        data = data[os.write(control, data) :]


def set_up(settings: str) -> list[str]:
    """Put what the host sent into place; the modules that it wants imported."""
    head, _, fonts = settings.partition("\n\n")
    modules = []
    for line in head.splitlines():
        key, _, value = line.partition(" ")
        if key == "preload":
            modules.append(value)
        elif key == "path" and value not in sys.path:
            # what was resolved together is found together: before the interpreter's own packages
            places = (
                n for n, path in enumerate(sys.path) if path.endswith(("site-packages", "dist-packages"))
            )
            sys.path.insert(next(places, len(sys.path)), value)
            sys.path_importer_cache.clear()
        elif key == "fonts" and (directory := os.environ.get("MPLCONFIGDIR")):
            os.makedirs(directory, exist_ok=True)
            with open(f"{directory}/{value}", "w", encoding="utf-8") as file:
                file.write(fonts)
    return modules


def serve(control: int, workspace: str, begun: Callable[[bytes], None] | None = None) -> None:
    """Answer requests from *control* until it is closed; *begun* is told of each. Never returns."""
    output = {fd: os.dup(fd) for fd in (1, 2)}
    signal.signal(signal.SIGINT, _on_interrupt)
    try:
        cells = Cells(control, workspace, output)
        while True:
            cells.request, source = read_frame(control)
            if source.startswith(SETUP):
                set_up(source[len(SETUP) :])
                continue
            if begun is not None:
                begun(cells.request)
            cells.run(source)
    finally:  # the code broke the interpreter itself, or the host is gone
        os._exit(70)


class Cells:
    def __init__(self, control: int, workspace: str, output: dict[int, int]) -> None:
        self.control, self.workspace, self.output = control, workspace, output
        self.request = b"\0\0\0\0"
        self.pid = os.getpid()
        self.count = 0
        self.sources: dict[str, str] = {}  # cell name -> source
        self.loop: Any = None  # of top-level awaits
        self.shell = Shell(workspace)
        self.names = ""
        main = ModuleType("__main__")
        self.namespace = main.__dict__
        self.namespace["__builtins__"] = builtins
        sys.modules["__main__"] = main
        builtins.input = _no_input
        setattr(builtins, "display", self.display)  # noqa: B010
        setattr(builtins, "__shell__", self.shell_in_cell)  # noqa: B010
        hooks = {
            "linecache": self.fill_linecache,
            "matplotlib.pyplot": self.patch_pyplot,
            "pandas": _make_tables_compact,
        }
        sys.meta_path.insert(0, _AfterImport(hooks))
        self.open_streams()

    def send(self, kind: bytes, text: str) -> None:
        if os.getpid() != self.pid:
            self.end_child(kind)
            return
        send_fact(self.control, kind, self.request, text)

    def run(self, source: str) -> None:
        global _running
        self.count += 1
        name = f"<cell {self.count}>"
        self.sources[name] = source
        if "linecache" in sys.modules:
            sys.modules["linecache"].cache[name] = _as_cached(name, source)
        # whatever the last cell did to it
        signal.signal(signal.SIGINT, _on_interrupt)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        try:
            _running = True
            try:
                if source.startswith(SHELL):
                    self.send(b"C", str(self.shell.run(source[len(SHELL) :])))
                else:
                    self.execute(source, name)
                    self.save_figures()
            finally:
                _running = False
        except BaseException as error:
            self.forget_figures()
            try:
                _running = True  # a __str__ may take for ever, too
                self.report(error, name)
            except BaseException as another:  # of its __str__, or the interrupt of that
                self.send(b"E", type(error).__name__)
                self.send(b"M", f"(its message could not be had: {type(another).__name__})")
            finally:
                _running = False
        self.open_streams()
        names = ", ".join(n for n in list(self.namespace) if isinstance(n, str) and not n.startswith("_"))
        if names != self.names:
            self.names = names
            self.send(
                b"N", names if len(names) <= _MAX_NAMES else names[:_MAX_NAMES].rpartition(",")[0] + ", …"
            )
        self.send(b"D", "")

    def end_child(self, kind: bytes) -> None:
        """End here if we are a child that the code forked, and that has come to the end of the code."""
        if kind in (b"D", b"E"):
            for stream in (sys.stdout, sys.stderr):
                try:
                    stream.flush()
                except BaseException:  # whatever the code made of it
                    continue
            os._exit(kind == b"E")

    def execute(self, source: str, name: str) -> None:
        """Run *source* and tell the value that it ends in: of an expression, or of an assignment."""
        flags = _ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        tree = compile(source, name, "exec", flags | _ast.PyCF_ONLY_AST, dont_inherit=True)
        last = tree.body[-1] if tree.body and not source.rstrip().endswith(";") else None
        if isinstance(last, _ast.Expr):
            tree.body.pop()
        if tree.body:
            self.evaluate(compile(tree, name, "exec", flags, dont_inherit=True))
        if isinstance(last, _ast.Expr):
            code = compile(_ast.Expression(last.value), name, "eval", flags, dont_inherit=True)
            value = self.evaluate(code)
            if value is not None:
                self.namespace["_"] = value
                if not self.draw(value):
                    self.send(b"V", self.describe(value))
        elif (target := _assigned(last)) is not None and target in self.namespace:
            value = self.namespace[target]
            if value is not None and not _drawing(value):
                self.send(b"A", f"{target} = {_brief(value)}")

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
        frame = None
        step = error.__traceback__
        while step is not None:
            if step.tb_frame.f_code.co_filename == name:
                line, frame = step.tb_lineno, step.tb_frame
            step = step.tb_next
        if line is not None:
            self.send(b"L", str(line))
        if _needs_network(error):
            self.send(b"H", "the network is not available here")
        import traceback

        told = traceback.TracebackException(type(error), error, error.__traceback__, limit=-30)
        _leave_out_ours(told)
        text = "".join(told.format())
        self.send(b"T", text if len(text) <= _MAX_VALUE else "…" + text[-_MAX_VALUE:])
        self.send(b"M", self.shorten(str(error)))
        if line is not None and frame is not None and isinstance(error, _OF_A_VALUE):
            lines = self.sources.get(name, "").splitlines()[line - 1 : line]
            try:
                held = _held("".join(lines), {**frame.f_globals, **frame.f_locals})
            except Exception:  # of its __repr__
                held = ""
            if held:
                self.send(b"S", held)

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
            linecache.cache[name] = _as_cached(name, source)

    # ---------------------------------------------------------------- values

    def describe(self, value: object) -> str:
        text = repr(value)
        frames = sys.modules.get("pandas")
        if frames is not None and isinstance(value, frames.DataFrame):
            shown = frames.get_option("display.max_columns") or 0
            if value.shape[1] > shown > 0:
                text += f"\nAll columns: {', '.join(map(str, value.columns))}"
        return self.shorten(text)

    def shorten(self, text: str) -> str:
        """The text, if need be only its start; then all of it is in a file."""
        if len(text) <= _MAX_VALUE:
            return text
        path = self.free_path("output", "txt")
        with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        return f"{text[:_MAX_VALUE]}… ({len(text)} characters, all of them in {os.path.basename(path)})"

    def display(self, *values: object, **options: object) -> None:
        """What Jupyter has under this name: pictures become files, all else is printed."""
        for value in values:
            if not self.draw(value):
                print(value if isinstance(value, str) else self.describe(value))

    def draw(self, value: object) -> bool:
        """Save *value* as a picture, if it is one."""
        if _drawing(value):
            figure = value if type(value).__name__ == "Figure" else None
            if figure is not None and not getattr(figure, "_agentkit_saved", False):
                self.save_figure(figure)
            return True
        for kind, method in (("png", "_repr_png_"), ("svg", "_repr_svg_")):
            picture = getattr(type(value), method, None)
            data = picture(value) if callable(picture) else None
            if isinstance(data, tuple):  # with metadata
                data = data[0]
            if isinstance(data, str):
                data = data.encode()
            if isinstance(data, bytes) and data:
                with open(self.free_path("display", kind), "wb") as file:
                    file.write(data)
                return True
        return False

    def free_path(self, stem: str, kind: str) -> str:
        number = 1
        while os.path.lexists(path := f"{self.workspace}/{stem}-{number}.{kind}"):
            number += 1
        return path

    def shell_in_cell(self, command: str, capture: bool = False) -> list[str] | None:
        """`!command` in a cell; `x = !command` wants its lines."""
        if not capture:
            self.shell.run(command)
            return None
        path = f"{os.environ.get('TMPDIR', '/tmp')}/.captured-{os.getpid()}"
        self.shell.run(f"{{ {command}\n}} >{path}")
        try:
            with open(path, encoding="utf-8", errors="backslashreplace") as file:
                return file.read().splitlines()
        except OSError:
            return []

    # ---------------------------------------------------------------- figures

    def patch_pyplot(self, pyplot: Any) -> None:
        """`plt.show()` saves; a figure that the code saved itself is not saved again."""
        figure = sys.modules["matplotlib.figure"].Figure
        savefig = figure.savefig

        def save(self: Any, *args: Any, **options: Any) -> Any:
            savefig(self, *args, **options)
            self._agentkit_saved = True

        figure.savefig = save
        pyplot.show = lambda *args, **options: self.save_figures()
        manager = sys.modules["matplotlib.font_manager"].fontManager
        installed = {font.name for font in manager.ttflist}
        for name in _CJK_FONTS:
            if name in installed:
                pyplot.rcParams["font.sans-serif"] = [name, *pyplot.rcParams["font.sans-serif"]]
                pyplot.rcParams["font.family"] = ["sans-serif", name]  # also where the code sets another one
                pyplot.rcParams["axes.unicode_minus"] = False  # many of them do not have that sign
                break

    def save_figures(self) -> None:
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is None:
            return
        try:
            figures = [pyplot.figure(number) for number in pyplot.get_fignums()]
            unsaved = [figure for figure in figures if not getattr(figure, "_agentkit_saved", False)]
            for figure in unsaved[:_MAX_FIGURES]:
                self.save_figure(figure)
            if len(unsaved) > _MAX_FIGURES:
                print(f"only the first {_MAX_FIGURES} of {len(unsaved)} figures were saved", file=sys.stderr)
        finally:
            pyplot.close("all")

    def save_figure(self, figure: Any) -> None:
        figure.savefig(self.free_path("figure", "png"), bbox_inches="tight")

    def forget_figures(self) -> None:
        pyplot = sys.modules.get("matplotlib.pyplot")
        try:
            if pyplot is not None:
                pyplot.close("all")  # or each later cell would draw them again
        except (
            BaseException
        ):  # the code replaced it, or the interrupt comes twice: its error is told, not this
            self.namespace.pop("plt", None)


def _as_cached(name: str, source: str) -> tuple[int, None, list[str], str]:
    return len(source), None, source.splitlines(True), name


def _assigned(statement: object) -> str | None:
    """The variable that it sets, if it sets just one."""
    if isinstance(statement, _ast.Assign) and len(statement.targets) == 1:
        target: object = statement.targets[0]
    elif isinstance(statement, (_ast.AnnAssign, _ast.AugAssign)):
        target = statement.target
    else:
        return None
    return target.id if isinstance(target, _ast.Name) else None


def _brief(value: object) -> str:
    """Its repr without going through all of something big."""
    from reprlib import Repr

    short = Repr()
    short.maxlist = short.maxtuple = short.maxset = short.maxfrozenset = short.maxdeque = short.maxdict = 20
    short.maxarray, short.maxlevel = 20, 3
    short.maxstring, short.maxother, short.maxlong = 500, 4000, 200
    return short.repr(value)


def _held(line: str, variables: dict[str, Any]) -> str:
    """What the variables hold that a line of code looks into: a guess at a column or a key is then made only once."""
    import re  # an error has time

    said = []
    for name in dict.fromkeys(re.findall(r"(?<![\w.'\"])[^\W\d]\w*", line)):
        text = _kind(variables.get(name))
        if text:
            said.append(f"{name} is {text}")
    return "; ".join(said[:3])


def _kind(value: object) -> str:
    """What it is, and what can be asked of it; "" for what is no data."""
    frames = sys.modules.get("pandas")
    if frames is not None and isinstance(value, frames.DataFrame):
        rows = f"{len(value)} row{'s' * (len(value) != 1)}"
        return f"a DataFrame of {rows} with the columns {_some(value.columns)}"
    if type(value) is dict:
        return f"a dict with the keys {_some(value)}"
    if type(value) in (list, tuple):
        many: Any = value
        return f"a {type(value).__name__} of {len(many)}" + (
            f", the first is {_first(many[0])}" if many else ""
        )
    return f"the str {value[:80]!r}{'…' * (len(value) > 80)}" if type(value) is str else ""


def _first(value: object) -> str:
    text = _kind(value) if type(value) is dict else _brief(value)
    return text if len(text) <= 200 else text[:200] + "…"


def _some(names: Any) -> str:
    first = [_brief(name) for name in list(names)[:20]]
    return ", ".join(first) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _drawing(value: object) -> bool:
    """Something that matplotlib's functions return, whose repr tells nothing."""
    if "matplotlib" not in sys.modules:
        return False
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
    return type(value).__module__.startswith(("matplotlib.", "mpl_toolkits."))


def _make_tables_compact(pandas: Any) -> None:
    for option, value in (
        ("max_rows", 20),
        ("min_rows", 10),
        ("max_columns", 30),
        ("width", 160),
        ("max_colwidth", 60),
        ("show_dimensions", "truncate"),
    ):
        pandas.set_option(f"display.{option}", value)


def _needs_network(error: BaseException | None) -> bool:
    for _ in range(20):
        if error is None:
            return False
        if type(error).__name__ == "gaierror":
            return True
        if isinstance(error, OSError):
            step, where = error.__traceback__, ""
            while step is not None:
                where, step = step.tb_frame.f_code.co_filename, step.tb_next
            if error.errno in _NETWORK_ERRORS or (error.errno in (1, 13) and where.endswith("/socket.py")):
                return True
        error = error.__cause__ or error.__context__
    return False


def _leave_out_ours(told: Any) -> None:
    """Take our frames out of a traceback, and of those of its causes."""
    todo = [told]
    while todo:
        each = todo.pop()
        each.stack[:] = [frame for frame in each.stack if os.path.dirname(frame.filename) != _OURS]
        todo += [other for other in (each.__cause__, each.__context__) if other is not None]
        todo += getattr(each, "exceptions", None) or ()


class Shell:
    """Runs commands one after the other; where one leaves off (directory, exported variables) the next begins."""

    def __init__(self, directory: str) -> None:
        self.path = next(filter(os.path.exists, ("/bin/bash", "/usr/bin/bash")), "/bin/sh")
        self.directory = directory
        # pip must not look for an index for half a minute
        self.variables = {**os.environ, "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}

    def run(self, command: str) -> int:
        """Its exit status; its output goes where ours goes."""
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        state = f"{os.environ.get('TMPDIR', '/tmp')}/.shell-{os.getpid()}"
        quoted = "'" + self.directory.replace("'", "'\\''") + "'"
        # on the command's first line, so that the shell's errors name its lines
        script = f"cd {quoted} 2>/dev/null; trap '{{ pwd; env -0; }} >{state} 2>/dev/null' EXIT; {command}"
        child = os.posix_spawn(self.path, [self.path, "-c", script], self.variables, setpgroup=0)
        try:
            status = _wait(child)
        except KeyboardInterrupt:
            self.end(child)
            raise
        try:
            with open(state, encoding="utf-8", errors="surrogateescape") as file:
                self.directory, _, variables = file.read().partition("\n")
            os.unlink(state)
        except OSError:  # it replaced itself or was killed
            return status
        pairs = (pair.partition("=") for pair in variables.split("\0") if pair)
        self.variables = {name: value for name, _, value in pairs if name not in ("_", "SHLVL")}
        return status

    def end(self, child: int) -> None:
        """End it and what it started in the foreground: first as Ctrl-C does."""
        try:
            os.killpg(child, signal.SIGINT)
            for _ in range(10):
                if os.waitpid(child, os.WNOHANG)[0]:
                    break
                _sleep(0.05)
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
        except OSError:  # it is gone, or we have no right to send signals: the host will
            pass


def _wait(child: int) -> int:
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if code >= 0 else 128 - code


def _no_input(prompt: object = "") -> str:
    raise RuntimeError(
        "input() is not available here: nobody is there to answer; put the value into the code"
    )


class _AfterImport:
    """A finder that calls back right after certain modules have been loaded by whoever imports them."""

    def __init__(self, callbacks: dict[str, Callable[[Any], None]]) -> None:
        self.callbacks = callbacks
        for name in [name for name in callbacks if name in sys.modules]:
            callbacks.pop(name)(sys.modules[name])

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
