"""How the kernels are proven on a machine without a GPU.

    interpreter   runs kernels on the CPU with correct low-precision arithmetic, and counts and checks what they touch
    compiler      compiles kernels for GPUs that are not there and reads what the assembler says about them
    sass          finds loops in disassembled code and counts their instructions
    ledger        the table of every shipped configuration: `python kernels/proof`
    peers         the same figures of public packages' kernels: `python kernels/proof --peers FOLDER`

Triton chooses between interpreter and compiler when it is imported, so the two need separate processes.
"""
