"""The formats of JSON Schema that strings can be held to, as patterns.

Each is at most as wide as its standard: what it writes is right everywhere; not all that is right is written (no leap
seconds, no hyphens side by side in a host name, no quoted local part of an e-mail address).
"""

import functools

from jaxinfer.decoding.constraints.grammar.combine import both
from jaxinfer.decoding.constraints.grammar.machine import Machine
from jaxinfer.decoding.constraints.grammar.pattern import machine_of

_YEAR = r"(?:[0-9]{3}[1-9]|[0-9]{2}[1-9][0-9]|[0-9][1-9][0-9]{2}|[1-9][0-9]{3})"  # from 0001
_FOURTH = r"(?:0[48]|[2468][048]|[13579][26])"
_DATE = (
    rf"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    rf"|02-(?:0[1-9]|1[0-9]|2[0-8]))|(?:[0-9]{{2}}{_FOURTH}|(?:{_FOURTH})00)-02-29)"
)
_CLOCK = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_CLOCK}:[0-5][0-9](?:\.[0-9]{{1,9}})?(?:Z|[+-]{_CLOCK})"
_BYTE = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"{_BYTE}(?:\.{_BYTE}){{3}}"
_HEX = r"[0-9A-Fa-f]"
_PAIR, _WORD = f"(?:{_HEX}{{1,4}}:{_HEX}{{1,4}}|{_IPV4})", f"{_HEX}{{1,4}}:"
_IPV6 = "|".join(  # RFC 3986, section 3.2.2
    [f"(?:{_WORD}){{6}}{_PAIR}", f"::(?:{_WORD}){{5}}{_PAIR}"]
    + [
        f"(?:(?:{_WORD}){{0,{before}}}{_HEX}{{1,4}})?::{after}"
        for before, after in enumerate([f"(?:{_WORD}){{{n}}}{_PAIR}" for n in (4, 3, 2, 1, 0)] + [_HEX + "{1,4}", ""])
    ]
)
_LABEL = r"[A-Za-z0-9](?:-?[A-Za-z0-9]){0,30}"
_HOST = rf"{_LABEL}(?:\.{_LABEL}){{0,3}}"  # 4 labels of 61 characters: less than 253
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]{1,20}"
_PCHAR = rf"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%{_HEX}{{2}})"
_FIRST = rf"(?:[A-Za-z0-9._~!$&'()*+,;=@-]|%{_HEX}{{2}})"  # of a path that could be read as a scheme
_NAME = rf"(?:[A-Za-z0-9._~!$&'()*+,;=-]|%{_HEX}{{2}})"
_PATH = f"(?:/{_PCHAR}*)*"
_AUTHORITY = rf"//(?:(?:{_NAME}|:)*@)?(?:{_NAME}*|\[(?:{_IPV6})\])(?::[0-9]*)?{_PATH}"
_TAIL = rf"(?:\?(?:{_PCHAR}|[/?])*)?(?:#(?:{_PCHAR}|[/?])*)?"
_ROOTED = f"/(?:{_PCHAR}+{_PATH})?"
_POINTER = r"(?:/(?:[^~/]|~[01])*)*"
_CLOCK_PARTS = r"T(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S)"
_DATE_PARTS = r"(?:[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?|[0-9]+M(?:[0-9]+D)?|[0-9]+D)"

FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": f"P(?:[0-9]+W|{_DATE_PARTS}(?:{_CLOCK_PARTS})?|{_CLOCK_PARTS})",
    "uuid": f"{_HEX}{{8}}(?:-{_HEX}{{4}}){{3}}-{_HEX}{{12}}",
    "email": rf"{_ATOM}(?:\.{_ATOM}){{0,2}}@{_HOST}",
    "hostname": _HOST,
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "uri": f"[A-Za-z][A-Za-z0-9+.-]*:(?:{_AUTHORITY}|{_ROOTED}|{_PCHAR}+{_PATH}|){_TAIL}",
    "uri-reference": (
        f"(?:[A-Za-z][A-Za-z0-9+.-]*:(?:{_AUTHORITY}|{_ROOTED}|{_PCHAR}+{_PATH}|)"
        f"|{_AUTHORITY}|{_ROOTED}|{_FIRST}+{_PATH}|){_TAIL}"
    ),
    "json-pointer": _POINTER,
    "relative-json-pointer": f"(?:0|[1-9][0-9]*)(?:#|{_POINTER})",
}


@functools.cache
def machine_of_format(name: str) -> Machine:
    """Give the machine of a format's texts. Raises KeyError for one that is not in FORMATS."""
    found = machine_of(FORMATS[name], "ecma")
    return both(found, machine_of("[^@]{1,64}@[^@]*")) if name == "email" else found
