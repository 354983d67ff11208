"""policy: what may be reached and spent, from YAML to frozen values. Nothing here touches the kernel or the network.

rules.py      one rule's grammar, canonical hosts, matching (standard library only; the guard shares it)
settings.py   /etc/agentmon/settings.yml      manifest.py   bottle manifests, `extends`
effective.py  settings + manifest chain + command-line options ─▶ one EffectivePolicy
"""
