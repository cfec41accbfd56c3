"""The globals that the pickles of a checkpoint may name: an allowlist for each kind of file. Imports nothing to decide.

Files that the Trainer loads with `weights_only=True` get torch's own list (2.13) plus numpy's generator state: what is
refused here, a resumed training would refuse too.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from ckptsync.layouts.formats.pickle_values import Call, Content, Global
from ckptsync.layouts.formats.stream import Malformed

Allowlist = Callable[[Global], bool]

_TENSORS = re.compile(
    r"collections\.(?:OrderedDict|Counter|defaultdict)"
    r"|(?:builtins|__builtin__)\.(?:set|frozenset|bytearray|complex|slice|int|float|str|bool|list|dict|tuple)"
    r"|_codecs\.encode"
    r"|numpy\.(?:ndarray|dtype|dtypes\.\w+DType|(?:_core|core)\.multiarray\.(?:_reconstruct|scalar))"
    r"|torch\.(?:Size|device|Tensor|(?:cuda\.|sparse\.|cuda\.sparse\.)?[A-Z]\w+(?:Storage|Tensor))"
    r"|torch\.(?:bool|bfloat16|u?int\d+|float\d\w*|complex\d+|q?u?int\d\w*|bits\d\w*|per_\w+_(?:affine|symmetric)\w*)"
    r"|torch\.storage\.(?:Typed|Untyped)Storage"
    r"|torch\.serialization\._get_layout"
    r"|torch\._utils\._rebuild_\w+"
    r"|torch\._tensor\._rebuild_from_type_v2"
    r"|torch\.nn\.parameter\.(?:Parameter|Buffer)"
    r"|torch\.distributed\.(?:_?tensor(?:\.\w+)*\.[A-Z]\w+|device_mesh\.DeviceMesh)"
    r"|torchao(?:\.\w+)*\.[A-Z]\w+"
)
_DEEPSPEED = re.compile(r"deepspeed(?:\.\w+)+|pathlib\.\w*Path|argparse\.Namespace|enum\.\w+|datetime\.\w+")
_SHARDED = re.compile(r"torch\.distributed\.checkpoint(?:\.\w+)+|pathlib\.\w*Path")
_DANGEROUS = re.compile(
    r"(?:os|posix|nt|subprocess|_posixsubprocess|pty|runpy|importlib|socket|ctypes|webbrowser|code|pip|pdb|timeit|shutil|sys)"
    r"(?:\.\w+)+"
    r"|(?:builtins|__builtin__)\.(?:eval|exec|compile|__import__|open|input|setattr|globals|vars|breakpoint)"
    r"|torch\.(?:hub|utils\.cpp_extension)(?:\.\w+)+"
)


def tensors(found: Global) -> bool:
    """Tensors and plain values: optimizer, scheduler, RNG states and weights."""
    return bool(_TENSORS.fullmatch(str(found)))


def deepspeed(found: Global) -> bool:
    """Tensors, and what DeepSpeed's shards hold besides."""
    return tensors(found) or bool(_DEEPSPEED.fullmatch(str(found)))


def sharded(found: Global) -> bool:
    """Tensors, and what the .metadata of torch's distributed checkpoints holds besides."""
    return tensors(found) or bool(_SHARDED.fullmatch(str(found)))


def harmless(found: Global) -> bool:
    """Anything but names that run code or open files. For files that the Trainer does not load on resume.

    training_args.bin holds classes of the training program, which no allowlist can know; enums (Python 3.11.2, Debian 12's own),
    nested classes and bound methods are pickled as a call of getattr.
    """
    return not _DANGEROUS.fullmatch(str(found))


_GETATTR = {"builtins.getattr", "__builtin__.getattr"}


def _are_enum_members(content: Content, allowed: Allowlist) -> bool:
    """Whether getattr is called only to name a public member of an allowed class of torch, and what it gives is never called.

    So Python 3.11.2 (Debian 12's own) pickles the enums in the .metadata of torch's distributed checkpoints.
    """
    found = [call for call in content.calls if isinstance(call.by, Global) and str(call.by) in _GETATTR]
    called = {id(call.by) for call in content.calls}
    return all(_names_member(call, allowed) and id(call) not in called for call in found)


def _names_member(call: Call, allowed: Allowlist) -> bool:
    arguments = call.arguments
    if not isinstance(arguments, tuple | list) or len(arguments) != 2:
        return False
    owner, name = arguments
    named = isinstance(owner, Global) and owner.module.startswith("torch.") and allowed(owner)
    return named and isinstance(name, str) and name.isidentifier() and not name.startswith("_")


def enforce(content: Content, allowed: Allowlist) -> None:
    """Raise Malformed if the pickle names a global that is not on the allowlist."""
    members = _are_enum_members(content, allowed)
    refused = next((found for found in content.globals if not (allowed(found) or (members and str(found) in _GETATTR))), None)
    if refused is not None:
        reason = f"its pickle names {str(refused)[:100]!r}, which such a file may not name; nothing was executed"
        raise Malformed(reason, transient=False)
