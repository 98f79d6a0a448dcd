"""Progress for anything longer than two seconds: tqdm on a terminal where it is installed, plain lines otherwise."""
import sys
import time


class Progress:
    """with Progress(total, "encode", unit="doc") as bar: bar.update(1); bar.note(loss="2.31").

    Nothing is shown before `delay` seconds; without a terminal a line is written at most every `every` seconds.
    """

    def __init__(self, total=None, label="", unit="it", start=0, delay=1.0, every=10.0, file=None):
        self.total, self.label, self.unit, self.n = total, label, unit, start
        self.file = file or sys.stderr
        self.every, self.bar, self.text = every, None, ""
        self.began = time.monotonic()
        self.next_line = self.began + delay
        self.first = start
        if self.file.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self.bar = tqdm(total=total, desc=label, unit=unit, initial=start, delay=delay, file=self.file, leave=False,
                            dynamic_ncols=True, unit_scale=unit in ("B", "tok"))

    def update(self, n=1):
        self.n += n
        if self.bar is not None:
            self.bar.update(n)
        elif time.monotonic() >= self.next_line:
            self._line()

    def note(self, **values):
        """Values shown behind the bar."""
        self.text = "  ".join(f"{k} {v}" for k, v in values.items())
        if self.bar is not None:
            self.bar.set_postfix_str(self.text, refresh=False)

    def line(self, text):
        """A line of its own on standard output, above the bar."""
        if self.bar is not None:
            self.bar.clear()
        print(text, flush=True)
        if self.bar is not None:
            self.bar.refresh()

    def _line(self):
        now = time.monotonic()
        rate = (self.n - self.first) / max(now - self.began, 1e-9)
        of = f"/{self.total} ({100 * self.n / self.total:.0f} %)" if self.total else ""
        left = f"  {max(self.total - self.n, 0) / rate:.0f} s left" if self.total and rate > 0 else ""
        print(f"{self.label} {self.n}{of} {self.unit}  {rate:.1f} {self.unit}/s{left}  {self.text}".rstrip(), file=self.file, flush=True)
        self.next_line = now + self.every

    def close(self):
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
