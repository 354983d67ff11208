"""The kernel matrix: the BPF and nft tests on other kernels, in QEMU (`make test-kernels`; docs/testing.md).

config.KERNELS ─ archive (which packages) ─ fetch (apt-get download) ─▶ .cache/kernels/NAME: vmlinuz, modules
initramfs (static shell, 9p modules) ─ boot (QEMU, TCG) ─▶ guest: init.sh ─ guest.sh ─ inside.py ─ pytest
junit.xml, findings.json, log in .cache/kernels/NAME/run ─ table ─▶ the terminal, exit 1 for what failed
"""
