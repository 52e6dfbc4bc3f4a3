"""The cause of a failure, in one line, whatever engine tells it.

Engines are written in Python, Java and Go, and wrap each other's errors: a worker's traceback stands in a Java stack
trace, which stands in the details of a gRPC error.
"""

import json
import re
from collections.abc import Iterator
from contextlib import suppress

#: Characters of a line that a terminal and a log still show well.
_LONGEST = 400
#: Errors within errors that are followed.
_DEEPEST = 8
_TRACEBACK = "Traceback (most recent call last):"
#: Our own errors speak for themselves.
_OURS = re.compile(r"^(?:[\w.]+\.)?(?:User|MapFile|Unavailable)Error: ")
_CHAINED = re.compile(r"(?:During handling of the above exception|The above exception was the direct cause)")
#: A line of a Java stack trace that tells no error.
_JAVA_FRAME = re.compile(r"\s*(?:at [\w.$/<>@-]+\(.*\)?|\.\.\. \d+ (?:more|common frames omitted).*)\s*$")
_JAVA_CAUSE = re.compile(r"\s*Caused by: ")
_JAVA_SUPPRESSED = re.compile(r"\s+Suppressed: ")
#: What Java puts before a message: the class of the exception with its packages.
_JAVA_CLASS = re.compile(r"(?:[a-z_]\w*\.)+(?:[\w$]+\$)?([A-Z]\w*)(?::\s*|$)")
_RPC = re.compile(r"<_?\w+ of RPC that terminated with:")
_RPC_DETAILS = re.compile(r'details = "((?:[^"\\]|\\.)*)"', re.DOTALL)
_RPC_STATUS = re.compile(r"status = StatusCode\.(\w+)")
#: How requests tells where it didn't get through, and why.
_UNREACHED = re.compile(
    r"HTTPS?ConnectionPool\(host='([^']+)', port=(\d+)\): Max retries exceeded with url: .*"
    r"""\(Caused by \w+\((?P<quote>["'])(.*)(?P=quote)\)\)""",
    re.DOTALL,
)
#: How Google's clients quote an answer.
_HTTP_RETURNED = re.compile(r'<HttpError \d+ when requesting \S+ returned "((?:[^"\\]|\\.)*)"')
_JSON_MESSAGE = re.compile(r'"(?:message|error_description|detail)"\s*:\s*"((?:[^"\\]|\\.)*)"')
#: What stands before the cause in the messages of services and of Go.
_INTRODUCED = re.compile(r"(?:Root cause: |Workflow failed\. Causes: |^panic: )", re.MULTILINE)
_GO_STACK = re.compile(r"\n\s*goroutine \d+ \[.*", re.DOTALL)


def cause_of(text: str) -> str:
    """The cause in what an engine or a library says of a failure.

    Args:
        text: the message of an exception, of any number of lines: Python's and Java's stack traces, gRPC's errors, the
            answers of web services, or plain words.

    Returns:
        One line of bounded length; empty if the text is.
    """
    for _ in range(_DEEPEST):
        inner = _inner(text)
        if inner is None or inner == text:
            break
        text = inner
    line = _without_java_class(" ".join(text.split()))
    return line if len(line) <= _LONGEST else line[: _LONGEST - 3].rstrip() + "..."


def _inner(text: str) -> str | None:
    """One layer less; None where there is none left."""
    call = _RPC.search(text)
    if call and _TRACEBACK not in text[: call.start()]:
        details, status = _RPC_DETAILS.search(text), _RPC_STATUS.search(text)
        if details and details[1].strip():
            return _unescaped(details[1])
        return status[1] if status else None
    python, java = _python_error(text), _java_error(text)
    if python and (not java or python[0] > java[0] or "from SDK harness" in text):
        return python[1]
    if java:
        return java[1]
    unreached = _UNREACHED.search(text)
    if unreached:
        host, port, _, why = unreached.groups()
        return f"{host}:{port}: {why.partition(': ')[2] or why}"
    quoted = _HTTP_RETURNED.search(text) or ("{" in text and _JSON_MESSAGE.search(text)) or None
    if quoted and quoted[1].strip():
        return _unescaped(quoted[1])
    introduced = list(_INTRODUCED.finditer(text))
    if introduced:
        return _GO_STACK.sub("", text[introduced[-1].end() :])
    return None


def _python_error(text: str) -> tuple[int, str] | None:
    """Place and text of the last error of Python's tracebacks, without the traceback."""
    start = text.rfind(_TRACEBACK)
    if start < 0:
        return None
    found: list[str] = []
    place = start
    for offset, line in _lines(text, start + len(_TRACEBACK)):
        if not found:
            if line.strip() and not line[0].isspace():
                found, place = [line], offset
        elif _JAVA_FRAME.match(line) or _JAVA_CAUSE.match(line) or _CHAINED.match(line):
            break
        else:
            found.append(line)
    message = _OURS.sub("", "\n".join(found).strip())
    return (place, message) if message else None


def _java_error(text: str) -> tuple[int, str] | None:
    """Place and text of the deepest cause of a Java stack trace, without the stack."""
    causes: list[tuple[int, list[str]]] = [(0, [])]
    is_trace, in_message = False, True
    suppressed = 0  # how far an error beside the point is indented, while its lines last
    for offset, line in _lines(text):
        indent = len(line) - len(line.lstrip())
        if line.strip() and indent < suppressed:
            suppressed = 0
        if suppressed:
            continue
        if _JAVA_SUPPRESSED.match(line):
            suppressed, is_trace, in_message = indent, True, False
        elif _JAVA_FRAME.match(line):
            is_trace, in_message = True, False
        elif found := _JAVA_CAUSE.match(line):
            causes.append((offset, [line[found.end() :]]))
            is_trace, in_message = True, True
        elif in_message:
            causes[-1][1].append(line)
    if not is_trace:
        return None
    place = causes[-1][0]
    *outer, deepest = ["\n".join(lines).strip() for _, lines in causes]
    words = _words(deepest)
    for message in reversed(outer):
        said = _words(message)
        if words and words in said and len(said) < _LONGEST:
            return place, said  # the same, and more: the address that refused the connection
        if said and not words:  # a class alone says little
            return place, f"{said} ({_without_java_class(deepest)})"
    return place, deepest


def _words(message: str) -> str:
    """A Java message without the classes that it begins with; empty where nothing else is left."""
    while found := _JAVA_CLASS.match(message):
        message = message[found.end() :]
    return "" if message.strip() in ("", "null") else message


def _without_java_class(line: str) -> str:
    """Classes are left out before a sentence, and told without their packages before a mere name."""
    name = ""
    while found := _JAVA_CLASS.match(line):
        name, line = found[1], line[found.end() :]
    if not name or (name.endswith("Exception") and " " in line.strip()):
        return line
    return f"{name}: {line}" if line.strip() not in ("", "null") else name


def _lines(text: str, start: int = 0) -> Iterator[tuple[int, str]]:
    """Lines and where each begins."""
    for line in text[start:].splitlines(keepends=True):
        yield start, line.rstrip("\r\n")
        start += len(line)


def _unescaped(quoted: str) -> str:
    """What stands between the quotes of a string in C, JSON or Python."""
    with suppress(ValueError):
        return str(json.loads(f'"{quoted}"', strict=False))
    return quoted.replace(r"\n", "\n").replace(r"\t", "\t").replace(r"\"", '"').replace(r"\'", "'")
