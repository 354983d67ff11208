"""policy: what may be reached and spent, from YAML to frozen values. Nothing here touches the kernel or the network.

text ─ document.py ─▶ settings.py (host)          ┐
                   ─▶ manifest.py, routes.py      ├─ merge.py, scopes.py ─▶ effective.EffectivePolicy ─▶ compile
command line       ─▶ options.py                  ┘        change.py: allow and deny on a running bottle
rules/  one rule's grammar and its decisions (standard library only; the guard shares it)
explain.py, explain_text.py   check, explain, diff: as data, as text          values.py   readers both files share
"""
