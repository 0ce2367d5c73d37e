"""Two packages in one distribution: the training engine and the kernel library it stands on.

The folder `kernels/` is mapped to the import name `fastssl_kernels`; no top-level module called `kernels` is
installed, because that name belongs to another package.
"""

from pathlib import Path

from setuptools import Extension, find_packages, setup

# Triton's interpreter and compiler interfaces change between minor releases; these are the ones tested.
CORE = ["torch>=2.12", "numpy>=1.26", "triton>=3.7,<3.10; platform_system == 'Linux'"]
TRAIN = [
    "nvidia-dali-cuda130>=2.0; platform_system == 'Linux'",
    "torchvision>=0.23",
    "tyro>=1.0",
    "cattrs>=24.1",
    "pyyaml>=6.0",
    "rich>=13.0",
    "tensorboard>=2.15",
    "matplotlib>=3.8",
    "scikit-learn>=1.4",
    "safetensors>=0.4",
    "pillow>=10.3",
]
TEST = ["pytest>=8.0", "timm>=1.0", "ruff>=0.12", "mypy>=1.11", "types-PyYAML"]
PEERS = ["lightly==1.6.0", "timm>=1.0"]

# Instruction sets are chosen at run time, so -march has no place here.
COMPILE = ["-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]

# Same bits on every machine: no contraction.
RENDERER = Extension(
    "fastssl.data.native._render",
    sources=[f"fastssl/data/native/{name}.c" for name in ("render", "view_avx512", "view_avx2", "view_plain")],
    depends=[f"fastssl/data/native/{name}.h" for name in ("job", "view", "transpose", "study")],
    extra_compile_args=[*COMPILE, "-ffinite-math-only", "-fno-signed-zeros"],
    libraries=["m"],
    optional=True,
)

AVERAGE = Extension(
    "fastssl_kernels.ema.native._average",
    sources=["kernels/fastssl_kernels/ema/native/average.c"],
    extra_compile_args=[*COMPILE, "-ffp-contract=fast"],
    optional=True,
)

LOOKUP = "kernels/fastssl_kernels/nearest_neighbor/native"
SCANNER = Extension(
    "fastssl_kernels.nearest_neighbor.native._scan",
    sources=[f"{LOOKUP}/scan.c"],
    depends=[f"{LOOKUP}/scan.h"],
    extra_compile_args=COMPILE,
    libraries=["m"],
    optional=True,
)

setup(
    name="fastssl-vision",
    version="0.1.0",
    description="Fast, exact self-supervised pre-training of image backbones",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    packages=[
        *find_packages(include=["fastssl", "fastssl.*"]),
        *find_packages("kernels", include=["fastssl_kernels", "fastssl_kernels.*"]),
    ],
    package_dir={"fastssl_kernels": "kernels/fastssl_kernels"},
    package_data={"fastssl": ["py.typed"], "fastssl_kernels": ["py.typed"]},
    ext_modules=[RENDERER, AVERAGE, SCANNER],
    install_requires=CORE,
    extras_require={"train": TRAIN, "test": TEST, "peers": PEERS},
    entry_points={"console_scripts": ["fastssl = fastssl.cli:main"]},
)
