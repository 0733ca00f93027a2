"""The tokenizer of a Hugging Face folder: tokenizer.json, or an older form of it, and the files beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxinfer.checkpoint import sentencepiece
from jaxinfer.checkpoint.pre_tokenizers import PRE_TOKENIZERS
from jaxinfer.checkpoint.spelling import Spelling
from jaxinfer.checkpoint.tokenizer import Tokenizer, TokenizerSettings, checked_ids, checked_template
from jaxinfer.errors import InputError, shown
from jaxinfer.host.files import parse_json, read_bytes, read_json, read_text, shown_error
from jaxinfer.host.optional import require

BACKEND, SENTENCEPIECE, VOCABULARY, MERGES = "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt"
SETTINGS, ADDED, SPECIAL = "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"
TEMPLATE, TEMPLATES = "chat_template.jinja", "additional_chat_templates"
MOST_BYTES = 256 << 20  # of a tokenizer.json
_WORDS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def tokenizer_from_folder(folder: Path, vocab_size: int | None = None) -> Tokenizer | None:
    """Return the tokenizer of a Hugging Face folder; None if it holds none. vocab_size: that of the model.

    Raises InputError if a file is damaged, or names tokens that there are not.
    """
    settings = _optional(folder / SPECIAL) | _optional(folder / SETTINGS)
    backend = _backend(folder, settings)
    if backend is None:
        return None
    generation, config = (_optional(folder / name) for name in ("generation_config.json", "config.json"))
    bos, eos = (_token_id(backend, settings.get(name)) for name in ("bos_token", "eos_token"))
    named = ("generation_config.json", generation) if "eos_token_id" in generation else ("config.json", config)
    ends = checked_ids(named[1].get("eos_token_id"), f"{folder / named[0]}: eos_token_id", vocab_size)
    if bos is not None and settings.get("add_bos_token") is not None:
        _set_bos(backend, bos, _flag(settings, "add_bos_token", folder))
    default, others = _chat_templates(folder, settings)
    return Tokenizer(
        backend,
        TokenizerSettings(
            bos_id=bos,
            eos_ids=tuple(dict.fromkeys(id for id in (eos, *ends) if id is not None)),
            chat_template=default,
            named_templates=others,
            special_tokens=_special_tokens(settings),
        ),
    )


def read_backend(file: Path) -> Any:
    """Read a `tokenizers.Tokenizer` from a tokenizer.json. Raises InputError if it is damaged."""
    tokenizers = require("tokenizers", "to turn text into tokens")
    data = read_bytes(file, most=MOST_BYTES)
    parse_json(data, str(file))  # which is bounded where the package's own reader is not
    try:
        backend = tokenizers.Tokenizer.from_buffer(data)
        backend.no_truncation()  # what a file says of either is of batches in training: transformers passes it over
        backend.no_padding()
        decoder = backend.decoder and parse_json(backend.decoder.__getstate__(), str(file))
    except BaseException as error:  # the package raises bare Exception, and panics
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise InputError(f"{file}: is not a valid tokenizer: {shown_error(error)}") from None
    Spelling.of(decoder, str(file))  # before long work, not at the first text
    return backend


def _backend(folder: Path, settings: Mapping[str, Any]) -> Any:
    if (folder / BACKEND).exists():
        return read_backend(folder / BACKEND)
    if (folder / VOCABULARY).exists() and (folder / MERGES).exists():
        backend = _byte_level(folder, settings)
    elif (folder / SENTENCEPIECE).exists():
        backend = sentencepiece.backend_of(folder / SENTENCEPIECE, settings.get("legacy") is not False)
        bos = _token_id(backend, settings.get("bos_token"))
        if bos is not None and settings.get("add_bos_token") is None:
            _set_bos(backend, bos, True)  # as the tokenizers of Llama, Mistral and Gemma do
    else:
        return None
    _add_tokens(backend, folder, settings)
    return backend


def _byte_level(folder: Path, settings: Mapping[str, Any]) -> Any:
    """Build GPT-2's way: bytes as printable characters, merged within words."""
    tokenizers = require("tokenizers", "to turn text into tokens")
    vocab, merges = read_json(folder / VOCABULARY, most=MOST_BYTES), []
    if not vocab or not all(type(id) is int and 0 <= id < 1 << 31 for id in vocab.values()):
        raise InputError(f"{folder / VOCABULARY}: must give each token its number")
    for number, line in enumerate(read_text(folder / MERGES, most=MOST_BYTES).split("\n"), start=1):
        if line.strip() and not (number == 1 and line.startswith("#version")):
            pair = line.rstrip("\r").split(" ")
            if len(pair) != 2:
                raise InputError(
                    f"{folder / MERGES}:{number}: must be two tokens with a space between, not {shown(line)}"
                )
            merges.append((pair[0], pair[1]))
    try:
        backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges))
    except Exception as error:  # bare
        raise InputError(f"{folder / MERGES}: does not fit {VOCABULARY}: {shown_error(error)}") from None
    pre, is_qwen = tokenizers.pre_tokenizers, "Qwen" in str(settings.get("tokenizer_class"))
    if is_qwen:
        splits = [pre.Split(tokenizers.Regex(pattern), "isolated") for pattern in PRE_TOKENIZERS["qwen2"]]
        backend.normalizer = tokenizers.normalizers.NFC()
        backend.pre_tokenizer = pre.Sequence([*splits, pre.ByteLevel(add_prefix_space=False, use_regex=False)])
    else:
        backend.pre_tokenizer = pre.ByteLevel(add_prefix_space=settings.get("add_prefix_space") is True)
    backend.decoder = tokenizers.decoders.ByteLevel()
    return backend


def _add_tokens(backend: Any, folder: Path, settings: Mapping[str, Any]) -> None:
    """Add what the files beside a vocabulary add to it, in the order of its numbers."""
    from tokenizers import AddedToken

    wanted: dict[int, Any] = {}
    for text, id in _optional(folder / ADDED).items():
        for number in checked_ids(id, f"{folder / ADDED}: {shown(text)}"):
            wanted[number] = AddedToken(text, normalized=False, special=False)
    decoder = settings.get("added_tokens_decoder") or {}
    if not isinstance(decoder, Mapping):
        raise InputError(f"{folder / SETTINGS}: added_tokens_decoder must be an object, not {shown(decoder)}")
    for id, entry in decoder.items():
        if (
            not id.isdecimal()
            or len(id) > 9
            or not isinstance(entry, Mapping)
            or not isinstance(entry.get("content"), str)
        ):
            raise InputError(
                f"{folder / SETTINGS}: added_tokens_decoder: {shown(id)} must be a number with its content"
            )
        flags = {name: entry.get(name) is True for name in ("single_word", "lstrip", "rstrip", "normalized", "special")}
        wanted[int(id)] = AddedToken(entry["content"], **flags)
    for id in sorted(wanted):
        token = wanted[id]
        (backend.add_special_tokens if token.special else backend.add_tokens)([token])
        if (has := backend.token_to_id(token.content)) != id:
            raise InputError(
                f"{folder}: the added token {shown(token.content)} is {has} after the others, and should be {id}"
            )
    names = [_content(settings.get(name)) for name in _WORDS]
    special = [AddedToken(name, normalized=False) for name in names if name and backend.token_to_id(name) is not None]
    backend.add_special_tokens(special)


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _content(token: Any) -> str | None:
    """Return the text of a token given as a string, or as the object that transformers writes for an added token."""
    text = token.get("content") if isinstance(token, Mapping) else token
    return text if isinstance(text, str) else None


def _token_id(backend: Any, token: Any) -> int | None:
    text = _content(token)
    return None if text is None else backend.token_to_id(text)


def _flag(settings: Mapping[str, Any], name: str, folder: Path) -> bool:
    if not isinstance(settings[name], bool):
        raise InputError(f"{folder / SETTINGS}: {name} must be true or false, not {shown(settings[name])}")
    return settings[name]


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Collect the tokens that templates may name: pad_token and the like."""
    found: dict[str, Any] = {name: text for name in _WORDS if (text := _content(settings.get(name))) is not None}
    more = settings.get("additional_special_tokens")
    if isinstance(more, list):
        found["additional_special_tokens"] = [text for token in more if (text := _content(token)) is not None]
    return found


def _set_bos(backend: Any, bos: int, wanted: bool) -> None:
    """Make the post-processor agree with `add_bos_token`, as llama.cpp's conversion does; transformers 5 does not."""
    from tokenizers import processors

    if (bos in backend.encode("").ids) == wanted:
        return
    token = backend.id_to_token(bos)
    single, pair = (f"{token} $A", f"{token} $A $B") if wanted else ("$A", "$A $B")
    backend.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(token, bos)] if wanted else []
    )


def _chat_templates(folder: Path, settings: Mapping[str, Any]) -> tuple[str | None, dict[str, str]]:
    """Read the template of a folder, and others by name. Files of templates come before what the settings say."""
    given, where = settings.get("chat_template"), f"{folder / SETTINGS}: chat_template"
    found: dict[str, str] = {}
    if isinstance(given, list):  # several, by name
        for entry in given:
            name = entry.get("name") if isinstance(entry, Mapping) else None
            if not isinstance(name, str) or entry.get("template") is None:
                raise InputError(f"{where}: must be a list of names and templates, and holds {shown(entry)}")
            found[name] = checked_template(entry["template"], where) or ""
    elif given is not None:
        found["default"] = checked_template(given, where) or ""
    if (folder / TEMPLATES).is_dir():
        found |= {file.stem: read_text(file) for file in sorted((folder / TEMPLATES).glob("*.jinja"))}
    if (folder / TEMPLATE).exists():
        found["default"] = read_text(folder / TEMPLATE)
    return found.pop("default", None), found
