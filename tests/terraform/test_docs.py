"""The pages of the stacks say what the HCL says."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from .conftest import SOURCE

PAGES = SOURCE.parent / "docs" / "stacks"
STACKS = sorted(path.name for path in (SOURCE / "stacks").iterdir())


@pytest.fixture(scope="module")
def docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("terraform_docs", SOURCE / "docs.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_page_is_current() -> None:
    done = subprocess.run([sys.executable, SOURCE / "docs.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}run `make stack-docs`"


@pytest.mark.parametrize("stack", STACKS)
def test_every_variable_and_output_is_in_its_page_and_each_stack_in_the_list(stack: str, docs: ModuleType) -> None:
    page = (PAGES / f"{stack}.md").read_text()
    for what in ("variable", "output"):
        text = (SOURCE / "stacks" / stack / f"{what}s.tf").read_text()
        names = [line.split('"')[1] for line in text.splitlines() if line.startswith(f'{what} "')]
        assert names and [b.name for b in docs.blocks(text, what)] == names
        assert all(f"| `{name}` |" in page for name in names)
    assert f"[{stack}]({stack}.md)" in (PAGES / "README.md").read_text()


def test_a_new_default_makes_a_page_stale(docs: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "variables.tf").write_text(
        'variable "pools" {\n  description = <<-EOT\n    Pools.\n    slots: tasks at once.\n  EOT\n'
        "  type = map(object({\n    slots  = optional(number, 4)\n    queues = list(string)\n  }))\n  default = {}\n}\n"
    )
    (tmp_path / "outputs.tf").write_text('output "x" {\n  description = "One | two."\n  value = 1\n}\n')
    page = docs.render(f"# p\n{docs.BEGIN}{docs.END}\n", tmp_path)
    assert "| `pools` | `map(object)` | `{}` | Pools.<br>`slots` (4): tasks at once. |" in page
    assert r"| `x` | One \| two. |" in page
    assert docs.render(page, tmp_path) == page
    with pytest.raises(ValueError, match="has no"):
        docs.render("# p\n", tmp_path)
