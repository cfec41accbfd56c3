"""Which globals the pickles of a checkpoint may name. A closed list per kind of file; what is not on it is refused.

What Trainer loads with `weights_only=True` gets that list of torch (2.13) and numpy's generator state, so a refusal
here is a file that a resumed training would refuse too. Nothing is imported to find out.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from ckptsync.layouts.formats.pickle_values import Content, Global
from ckptsync.layouts.formats.stream import Malformed

Rule = Callable[[Global], bool]

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
    r"|(?:builtins|__builtin__)\.(?:eval|exec|compile|__import__|open|input|getattr|setattr|globals|vars|breakpoint)"
    r"|torch\.(?:hub|utils\.cpp_extension)(?:\.\w+)+"
)


def tensors(found: Global) -> bool:
    """Tensors and plain values: optimizer, scheduler, generators and weights."""
    return bool(_TENSORS.fullmatch(str(found)))


def deepspeed(found: Global) -> bool:
    """What the shards of DeepSpeed hold besides tensors."""
    return tensors(found) or bool(_DEEPSPEED.fullmatch(str(found)))


def sharded(found: Global) -> bool:
    """What the .metadata of torch's distributed checkpoints holds."""
    return tensors(found) or bool(_SHARDED.fullmatch(str(found)))


def harmless(found: Global) -> bool:
    """Anything but names that run code or open files: training_args.bin holds classes of whatever program trains.

    The Trainer never loads that file when it resumes.
    """
    return not _DANGEROUS.fullmatch(str(found))


def enforce(content: Content, rule: Rule) -> None:
    """Raise Malformed when a pickle names a global that the rule refuses."""
    refused = next((found for found in content.globals if not rule(found)), None)
    if refused is not None:
        reason = f"its pickle names {str(refused)[:100]!r}, which has no place in such a file; nothing of it was executed"
        raise Malformed(reason, transient=False)
