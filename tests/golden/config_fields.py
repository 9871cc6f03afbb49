"""Lists the fields of `config.json` that transformers reads for a Qwen3 model, for `tests/checkpoints.rs`.

    python config_fields.py        writes the fields of the installed transformers to config_fields.json beside this file

Needs transformers; run it with version 4 and with version 5. The fields are those of the configuration's classes, and
those that the code of the model, its masks and its rotary embedding takes from the configuration.
"""

import ast
import inspect
import json
from pathlib import Path

import transformers
from transformers import PretrainedConfig, Qwen3Config

FILE = Path(__file__).with_suffix(".json")
MODULES = (
    "models/qwen3/configuration_qwen3.py",
    "models/qwen3/modeling_qwen3.py",
    "masking_utils.py",
    "modeling_layers.py",
    "modeling_rope_utils.py",
)


def of_config(node):
    """Returns whether an expression is `config` or `self.config`."""
    name = node.id if isinstance(node, ast.Name) else getattr(node, "attr", None)
    return name == "config"


def read_fields(source):
    """Yields the names in `config.NAME`, and in `getattr(config, "NAME")` and `hasattr(config, "NAME")`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and of_config(node.value):
            yield node.attr
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr"):
            config, name = node.args[:2]
            if of_config(config) and isinstance(name, ast.Constant):
                yield name.value


def fields():
    names = set(Qwen3Config().to_dict()) | set(PretrainedConfig().to_dict())
    # The parameters of the constructors, as far as they are named.
    for config in (Qwen3Config, PretrainedConfig):
        names |= set(inspect.signature(config.__init__).parameters) - {"self", "args", "kwargs"}
    folder = Path(transformers.__file__).parent
    for module in MODULES:
        names |= set(read_fields((folder / module).read_text()))
    # Methods and properties are no fields of a file, but for three whose setters read one.
    attributes = {name for name in dir(PretrainedConfig) if isinstance(getattr(PretrainedConfig, name, None), property)}
    attributes |= {name for name in dir(PretrainedConfig) if callable(getattr(PretrainedConfig, name, None))}
    attributes -= {"num_labels", "name_or_path", "output_attentions"}
    return sorted(name for name in names - attributes if not name.startswith("_"))


def main():
    found = json.loads(FILE.read_text()) if FILE.exists() else {}
    # There is one entry for each major version.
    major = transformers.__version__.split(".")[0]
    found = {version: names for version, names in found.items() if version.split(".")[0] != major}
    found[transformers.__version__] = fields()
    FILE.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
