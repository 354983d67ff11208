"""audit_native: which native code of an environment could talk to the network without the guard's knowledge.

    tree.find ─ files ─▶ elf.read ─ Image ─┐
    packages.Owners ─ (name, version) ─────┼─▶ judge.judge ─▶ Finding ─▶ report.to_dict, agentmon.render.audit_native
    sightings.Sightings (layer 3's events) ┘                        └─▶ linter.contract (import-linter)

The guard sees what raises audit events (PEP 578): the interpreter's own socket calls. Native code that calls libc or
the kernel by itself raises none. What this finds is what such a file *could* do, by what it imports and contains; it is
not proof that it does, and code can hide from it (symbols looked up at run time). Layers 1 to 4 hold all of it.
"""
