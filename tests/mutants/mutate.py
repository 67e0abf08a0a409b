"""Lists the mutants of a Rust file, as cargo-mutants would, but from the text that rustfmt writes, so nothing is installed.

Its operators are replaced, `!` and match arms before a `_` are removed, guards become `true` and `false`, and bodies of
functions become a plain value of the return type. Tests and `#[cfg(test)]` items stay as they are. A mutant that does not
compile is no loss: run counts it as not viable.
"""
import re

LITERALS = re.compile(
    r"""//[^\n]*|/\*.*?\*/|\b[bc]?r(#*)".*?"\1|[bc]?"(?:\\.|[^"\\])*"|b?'(?:\\(?:u\{[^}]*\}|x..|.)|[^\\'\n])'""", re.DOTALL)

OPERATORS = {
    "==": ["!="], "!=": ["=="], "<": ["==", ">", "<="], ">": ["==", "<", ">="], "<=": [">"], ">=": ["<"],
    "&&": ["||"], "||": ["&&"], "+": ["-", "*"], "-": ["+", "/"], "*": ["+", "/"], "/": ["%", "*"], "%": ["/", "+"],
    "<<": [">>"], ">>": ["<<"], "&": ["|", "^"], "|": ["&", "^"], "^": ["|", "&"],
    "+=": ["-=", "*="], "-=": ["+=", "/="], "*=": ["+=", "/="], "/=": ["%=", "*="], "%=": ["/=", "+="],
    "<<=": [">>="], ">>=": ["<<="], "&=": ["|=", "^="], "|=": ["&=", "^="], "^=": ["|=", "&="],
}
# rustfmt puts blanks around every binary operator, and around no bracket of generics.
BINARY = re.compile(r"(?<=\s)(" + "|".join(map(re.escape, sorted(OPERATORS, key=len, reverse=True))) + r")(?=\s)")
UNARY = re.compile(r"(?<![\w)\]#])!(?=[\w(*])|(?<=[(\s=,])-(?=[\w(])")
# Lines in which such a sign belongs to a type or a pattern.
BOUNDS = re.compile(r"\b(dyn|impl|where|use) |^\s*(impl|pub trait|trait)\b|^\s*(pub )?(trait|fn) |^\s*\w+: [^,]*\w \+ \w+,?$|\bderive\b")
PATTERN = re.compile(r"=>|matches!|^\s*\| |\blet\b.*[^|]\|[^|].*=|^\s*\|")

INTEGERS = {f"{sign}{size}" for sign in "iu" for size in (8, 16, 32, 64, 128, "size")}


def mutants(file, text):
    """Returns the mutants, each with its place in the text, the replacement, and a name."""
    masked = mask(text)
    spans = functions(masked)
    found = []

    def add(start, end, new, what):
        name = next((name for name, _, begin, stop in reversed(spans) if begin <= start and end <= stop), None)
        line = text.count("\n", 0, start) + 1
        context = text[text.rfind("\n", 0, start) + 1:].split("\n", 1)[0].strip()
        found.append({"file": file, "start": start, "end": end, "new": new, "title": f"{file}: {what} in {name} | {context}",
                      "name": f"{file}:{line}: {what} in {name}"})

    for match in BINARY.finditer(masked):
        line = line_at(masked, match.start())
        if BOUNDS.search(line) or (match[0] in "|&" and PATTERN.search(line)):
            continue
        for new in OPERATORS[match[0]]:
            add(match.start(), match.end(), new, f"replace {match[0]} with {new}")
    for match in UNARY.finditer(masked):
        add(match.start(), match.end(), "", f"delete {match[0]}")
    for match in re.finditer(r" if (?!let\b)([^\n]+?) =>", masked):
        for new in ("true", "false"):
            add(match.start(1), match.end(1), new, f"replace match guard with {new}")
    for start, end in arms(masked):
        add(start, end, "", "delete match arm")
    for name, result, begin, end in spans:
        for new in values(result) if name != "default" else []:
            if text[begin:end].strip() != new and masked[begin:end].strip():
                add(begin, end, f" {new} ", f"replace body with {new}")
    return sorted(found, key=lambda mutant: (mutant["start"], mutant["name"]))


def mask(text):
    """Returns the code, of the same length, with an x for each character of a literal, a comment, or a test."""
    def blank(found):
        return re.sub(r"[^\n]", "x" if found[0][0] in "\"'bcr" else " ", found[0])
    masked = LITERALS.sub(blank, text)
    tests = masked.find("\n#[cfg(test)]\nmod tests")
    if tests >= 0:
        masked = masked[:tests] + re.sub(r"[^\n]", " ", masked[tests:])
    for found in reversed(list(re.finditer(r"#\[(cfg\(test\)|test)\]", masked))):
        end = min(end_of(masked, found.end(), stop) for stop in ";{")
        masked = masked[:found.start()] + re.sub(r"[^\n]", " ", masked[found.start():end]) + masked[end:]
    # Attributes and constant assertions.
    return re.sub(r"#!?\[[^\n]*\]", lambda found: " " * len(found[0]), masked)


def end_of(masked, start, stop):
    """Returns the end of an item: that of its block, or its semicolon."""
    at = masked.find(stop, start)
    if at < 0:
        return len(masked)
    return at + 1 if stop == ";" else closing(masked, at) + 1


def closing(masked, at):
    """Returns the place of the bracket that closes the one at `at`."""
    depth = 0
    for place in range(at, len(masked)):
        depth += (masked[place] in "([{") - (masked[place] in ")]}")
        if depth == 0:
            return place
    return len(masked)


def line_at(masked, place):
    return masked[masked.rfind("\n", 0, place) + 1:].split("\n", 1)[0]


def functions(masked):
    """Returns the functions: name, return type, and the place of the body without its braces."""
    found = []
    for match in re.finditer(r"^ *(?:pub(?:\([^)]*\))? )?(?:const |async )*fn (\w+)", masked, re.MULTILINE):
        at = match.end()
        while at < len(masked) and masked[at] not in "{;":
            at = closing(masked, at) + 1 if masked[at] in "([" else at + 1
        if masked[at:at + 1] == "{":
            signature = masked[match.end():at].rsplit("->", 1)
            result = signature[1].split("\nwhere")[0].split(" where")[0].strip() if len(signature) == 2 else ""
            # The arrow of a closure's type is in the parameters.
            result = result if result.count(")") == result.count("(") else ""
            found.append((match[1], result, at + 1, closing(masked, at)))
    return found


def arms(masked):
    """Yields the arms of each match with a wildcard, except the wildcard."""
    for match in re.finditer(r"^( *)[^\n]*\bmatch [^\n]*\{$", masked, re.MULTILINE):
        at, end = match.end() + 1, closing(masked, match.end() - 1)
        found = []
        while at < end:
            arrow = masked.find(" =>", at, end)
            if arrow < 0:
                break
            body = arrow + 4
            if masked[body] == "{":
                stop = closing(masked, body) + 1
                stop += masked[stop:stop + 1] == ","
            else:
                stop, depth = body, 0
                while stop < end and (depth > 0 or masked[stop] != ","):
                    depth += (masked[stop] in "([{") - (masked[stop] in ")]}")
                    stop += 1
                stop = min(stop + 1, end)
            start = at + len(masked[at:arrow]) - len(masked[at:arrow].lstrip())
            found.append((start, stop))
            at = stop
        if any(masked[start:].startswith("_ =>") for start, _ in found):
            yield from ((start, stop) for start, stop in found if not masked[start:].startswith("_ =>"))


def values(result):
    """Returns plain values of a type."""
    inner = re.fullmatch(r"(Option|Result|Vec|Box|Arc|io::Result)<(.*)>", result, re.DOTALL)
    if result == "":
        return [""]
    if result == "bool":
        return ["true", "false"]
    if result in INTEGERS:
        return ["0", "1"]
    if result == "f64":
        return ["0.0", "1.0"]
    if result == "String":
        return ["String::new()", '"xyzzy".into()']
    if re.fullmatch(r"&('\w+ )?str", result):
        return ['""', '"xyzzy"']
    if result == "fmt::Result":
        return ["Ok(())"]
    if inner and inner[1] == "Option":
        return ["None", *(f"Some({value})" for value in values(inner[2]))]
    if inner and inner[1].endswith("Result"):
        return [f"Ok({value or '()'})" for value in values(first_parameter(inner[2]))]
    if inner and inner[1] in ("Box", "Arc"):
        return [f"{inner[1]}::new({value})" for value in values(inner[2])]
    if result.startswith("impl Iterator"):
        return ["std::iter::empty()"]
    if result == "()":
        return [""]
    if result.startswith("&"):
        return ["Box::leak(Box::new(Default::default()))"]
    return [] if result.startswith("impl ") else ["Default::default()"]


def first_parameter(parameters):
    depth = 0
    for place, sign in enumerate(parameters):
        depth += (sign in "<([") - (sign in ">)]")
        if sign == "," and depth == 0:
            return parameters[:place].strip()
    return parameters.strip()
